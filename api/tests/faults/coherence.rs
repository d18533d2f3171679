//! Under every fault, no answer is older than the lease and none goes back in time on one process. Afterwards all caches equal
//! the table.

use std::time::{Duration, Instant};

use api::cache::listener::APPLICATION_NAME as LISTENER;
use diesel::RunQueryDsl;
use diesel::dsl::sql;
use diesel::sql_types::BigInt;
use rustix::process::Signal;
use serde_json::Value;
use servers::postgres::{Options, PrivatePostgres};
use shared::db::{self, StartupError};
use shared::testing::eventually;
use tokio::task::block_in_place;
use tokio::time::interval;

use crate::scene::{
    EventFlood, HotWriter, LEASE, Readers, Scene, Writers, assert_kept, reissue, truncate,
};
use crate::support::coherence::{Committed, Failover, Write};
use crate::support::{PATIENCE, terminate_listener};

/// The pause of a writer between two writes.
const PAUSE: Duration = Duration::from_millis(10);
/// For how long a link passes nothing on.
const BLACK_HOLE: Duration = Duration::from_secs(20);
/// For how long a process is frozen.
const FREEZE: Duration = Duration::from_secs(60);
const LISTENERS: &str = "SELECT count(*) AS value FROM pg_stat_activity \
                         WHERE datname = current_database() AND application_name = 'orders-api-listener'";
/// The number of loads that the processes have under way.
const LOADS: &str = "(SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                      AND application_name = 'orders-api' AND state = 'active' AND query LIKE '%\"orders\".\"items\"%')";
const LIST: &str = "GET /api/v1/orders HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
/// The pause of each of a thousand readers between two requests. Without it they would leave the writer no core.
const READERS_PAUSE: Duration = Duration::from_millis(500);
/// The pause between two looks at the loads under way. A look costs the server half a millisecond.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// For how long one order is hot.
const HEAT: Duration = Duration::from_secs(20);
const QUEUE_PPM: &str = "SELECT (pg_notification_queue_usage() * 1000000)::bigint AS value";

#[tokio::test(flavor = "multi_thread")]
async fn listener_killed_every_second() {
    let scene = Scene::start().await;
    let (writers, readers) = (Writers::start(&scene, PAUSE), Readers::start(&scene));
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        terminate_listener(&scene.database);
    }
    assert_kept(&scene.conclude(writers, readers).await);
}

/// Only the listener's connection is held. Reads that go to the database see what the cache was not told.
#[tokio::test(flavor = "multi_thread")]
async fn listener_in_a_black_hole() {
    let scene = Scene::start().await;
    let (writers, readers) = (Writers::start(&scene, PAUSE), Readers::start(&scene));
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        scene.link.hold_named(LISTENER);
        tokio::time::sleep(BLACK_HOLE).await;
        scene.link.mend();
    }
    assert_kept(&scene.conclude(writers, readers).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn database_in_a_black_hole() {
    let scene = Scene::start().await;
    let (writers, readers) = (Writers::start(&scene, PAUSE), Readers::start(&scene));
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        scene.link.hold();
        tokio::time::sleep(BLACK_HOLE).await;
        scene.link.mend();
    }
    assert_kept(&scene.conclude(writers, readers).await);
}

/// The proof is alternately younger and older than the lease. Reads therefore use the cache and pass it in turns.
#[tokio::test(flavor = "multi_thread")]
async fn listener_as_slow_as_the_lease() {
    let scene = Scene::start().await;
    let (writers, readers) = (Writers::start(&scene, PAUSE), Readers::start(&scene));
    tokio::time::sleep(Duration::from_secs(3)).await;
    scene
        .link
        .slow_named(LISTENER, LEASE - Duration::from_millis(500));
    tokio::time::sleep(BLACK_HOLE).await;
    for program in &scene.programs {
        let log = program.read_log();
        assert!(!log.contains("listener is away") && log.contains("listener is suspect"));
    }
    scene.link.mend();
    assert_kept(&scene.conclude(writers, readers).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn table_emptied_by_truncate() {
    let scene = Scene::start().await;
    let (writers, readers) = (Writers::start(&scene, PAUSE), Readers::start(&scene));
    let mut truncations = Vec::new();
    for number in 0..10 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        truncations.extend(truncate(&scene, number % 2 == 0).await);
    }
    let mut history = scene.conclude(writers, readers).await;
    history.writes.extend(truncations);
    assert_kept(&history);
}

#[tokio::test(flavor = "multi_thread")]
async fn database_restarted() {
    let mut server = block_in_place(|| PrivatePostgres::start(&Options::default())).unwrap();
    let scene = Scene::start_on_server(&server).await;
    let (writers, readers) = (Writers::start(&scene, PAUSE), Readers::start(&scene));
    for stop in [
        PrivatePostgres::stop,
        PrivatePostgres::stop_immediately,
        PrivatePostgres::kill_nine,
    ] {
        tokio::time::sleep(Duration::from_secs(5)).await;
        block_in_place(|| stop(&mut server)).unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        block_in_place(|| server.restart()).unwrap();
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_kept(&scene.conclude(writers, readers).await);
}

/// A frozen process reads nothing. Without the server's own time-out, its listener would fill the queue of notifications, and in
/// the end no writer could commit.
#[tokio::test(flavor = "multi_thread")]
async fn process_frozen_for_a_minute() {
    let server = block_in_place(|| PrivatePostgres::start(&Options::default())).unwrap();
    let scene = Scene::start_on_server(&server).await;
    let (writers, readers) = (Writers::start(&scene, PAUSE), Readers::start(&scene));
    let flood = EventFlood::start(&scene);
    tokio::time::sleep(Duration::from_secs(5)).await;
    scene.signal(0, Signal::STOP);
    let frozen = scene.now();
    eventually(
        "the server drops the frozen listener",
        PATIENCE,
        async || scene.database.integer(LISTENERS) == 1,
    )
    .await;
    let dropped = scene.now() - frozen;
    tokio::time::sleep(FREEZE.saturating_sub(dropped)).await;
    let queue_ppm = scene.database.integer(QUEUE_PPM);
    scene.signal(0, Signal::CONT);
    let woken = scene.now();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let events = flood.finish().await;
    let history = scene.conclude(writers, readers).await;
    let meanwhile = history.writes.iter().filter(|write| {
        let acknowledged = write.committed.map(|committed| committed.acknowledged);
        acknowledged.is_some_and(|moment| frozen + dropped < moment && moment < woken)
    });
    let meanwhile = meanwhile.count();
    println!(
        "frozen listener dropped after {dropped:?}; {events} events; {meanwhile} writes after that, before it woke; \
         queue at the end {queue_ppm} millionths"
    );
    assert_kept(&history);
    assert!(meanwhile > 200, "writers were held up");
    // One second of this load adds 400 millionths.
    assert!(queue_ppm < 2_000, "the queue has not drained");
}

/// The standby lacks the last commits, and gives their versions out again to other writes.
#[tokio::test(flavor = "multi_thread")]
async fn failover_that_loses_commits() {
    let mut primary = block_in_place(|| PrivatePostgres::start(&Options::default())).unwrap();
    let scene = Scene::start_on_server(&primary).await;
    let mut standby = block_in_place(|| primary.start_standby()).unwrap();
    let (writers, readers) = (Writers::start(&scene, PAUSE), Readers::start(&scene));
    tokio::time::sleep(Duration::from_secs(5)).await;
    block_in_place(|| standby.stop()).unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = writers.finish().await;
    scene.assert_converged().await;
    let lost = scene.rows();

    block_in_place(|| primary.kill_nine()).unwrap();
    let killed = scene.now();
    block_in_place(|| standby.restart_in_place_of(&primary)).unwrap();
    for program in &scene.programs {
        program
            .wait_until_logged("the server accepts no writes")
            .await;
        // It is not read either, because its rows lag behind the events.
        let answer = program.send(LIST).await;
        assert_eq!(answer.problem(), (503, "database_unavailable".into()));
    }
    let first_look = db::check(&scene.database.settings(), "orders-test").await;
    let waits = matches!(first_look, Err(StartupError::Unreachable(why)) if why.contains(db::NOT_A_PRIMARY));
    assert!(waits, "a program that starts now waits for the promotion");
    scene.link.cut();
    standby.promote().unwrap();
    let mut reissued = 0;
    for (sequence, (order, seen)) in (1_000_000..).zip(lost) {
        if scene
            .rows()
            .get(&order)
            .is_none_or(|row| row.version < seen.version)
        {
            reissue(&scene, order, seen.version, sequence).await;
            reissued += 1;
        }
    }
    assert!(
        reissued > 20,
        "{reissued} of the last commits were lost, too few"
    );
    let kept = "SELECT setval('order_version_seq', max(version)) AS value FROM orders";
    scene.database.integer(kept);
    let inherited = scene.rows();
    // So long that nothing can prove an answer which comes in this time.
    let dead = LEASE + Duration::from_secs(3);
    tokio::time::sleep((killed + dead).saturating_sub(scene.now())).await;
    let replaced = scene.now();
    scene.link.mend();
    scene.assert_converged().await;
    let writers = Writers::start_from(&scene, PAUSE, 2_000_000);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let mut after = scene.conclude(writers, readers).await;
    after
        .writes
        .extend(inherited.into_iter().map(|(order, row)| Write {
            order,
            sequence: Some(row.sequence),
            sent: replaced,
            committed: Some(Committed {
                version: row.version,
                acknowledged: replaced,
            }),
        }));

    let failover = Failover {
        before: before.writes,
        after: after.writes,
        killed,
        replaced,
    };
    let observations = [before.observations, after.observations].concat();
    let divided = failover.divide(observations, LEASE);
    let of_dead = divided.before.observations.iter();
    let of_dead = of_dead.filter(|observation| observation.ended > killed);
    println!("{} answers of the dead server", of_dead.count());
    let unproven = &divided.unproven;
    assert!(
        unproven.is_empty(),
        "{} answers that nothing could prove, the first is {:#?}",
        unproven.len(),
        unproven[0]
    );
    assert_kept(&divided.before);
    assert_kept(&divided.after);
}

/// However many readers ask for the order, a process has at most one load of it under way, and none without an event before it.
#[tokio::test(flavor = "multi_thread")]
async fn one_hot_order() {
    let scene = Scene::start().await;
    let mut history = Writers::start(&scene, PAUSE).finish().await;
    let readers = Readers::start_many(&scene, 1_000, 1, READERS_PAUSE);
    let before = scene.stats().await;
    let writer = HotWriter::start(&scene, 1_000_000);
    let started = Instant::now();
    let mut watcher = scene.database.connect();
    let (mut looks, mut most_loads) = (0, 0);
    let mut ticks = interval(LOOK_INTERVAL);
    while started.elapsed() < HEAT {
        ticks.tick().await;
        let loads: i64 = diesel::select(sql::<BigInt>(LOADS))
            .get_result(&mut watcher)
            .unwrap();
        looks += 1;
        most_loads = most_loads.max(loads);
    }
    let writes = writer.finish().await;
    let duration = started.elapsed();
    let after = scene.stats().await;
    history.observations.extend(readers.finish().await);
    scene.assert_converged().await;
    println!(
        "{} writes/s, {} answers/s; at most {most_loads} loads at once in {looks} looks",
        writes.len() as f64 / duration.as_secs_f64(),
        history.observations.len() as f64 / duration.as_secs_f64(),
    );
    let commits = writes.len() as u64;
    for (before, after) in before.iter().zip(&after) {
        let rise = |pointer: &str| {
            let count = |stats: &Value| stats.pointer(pointer).unwrap().as_u64().unwrap();
            count(after) - count(before)
        };
        let (loads, shared) = (rise("/loads/started"), rise("/loads/coalesced"));
        println!("{loads} loads, shared by {shared} more");
        assert!(loads <= commits + 1);
        assert!(shared > loads, "nothing was hot");
    }
    assert!(looks > 100);
    assert!((1..=2).contains(&most_loads), "of two processes");
    history.writes.extend(writes);
    assert_kept(&history);
}
