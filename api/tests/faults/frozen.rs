//! A process is frozen while the real ingestor stores what Kafka brings. It must not hold up anybody.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use servers::postgres::{Options, PrivatePostgres};
use shared::testing::{TestDatabase, eventually, settings_of};
use tokio::task::block_in_place;

use crate::ingestion::{Ingestion, fed_uid};
use crate::support::PATIENCE;
use crate::support::program::Program;

/// How long a process is frozen.
const FREEZE: Duration = Duration::from_secs(60);
/// Within this time the server must drop the frozen listener. It includes the time in which the buffers fill.
const DROPPED_WITHIN: Duration = Duration::from_secs(20);
/// The longest time in which no order may become visible. It allows for a busy machine.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
const HOT: &str = "hot";
const STORED: &str = "SELECT count(*) AS value FROM orders";
const LISTENERS: &str = "SELECT count(*) AS value FROM pg_stat_activity \
                         WHERE datname = current_database() AND application_name = 'orders-api-listener'";
/// The usage of the queue in millionths. A page of the queue is nearly one of them.
const QUEUE_PPM: &str = "SELECT ceil(pg_notification_queue_usage() * 1000000)::bigint AS value";
/// What this load adds in some seconds. In a minute it adds 500.
const DRAINED_PPM: i64 = 60;

#[tokio::test(flavor = "multi_thread")]
async fn ingestor_goes_on_while_a_process_is_frozen() {
    // A server of its own, because all databases of a server share the queue.
    let server = block_in_place(|| PrivatePostgres::start(&Options::default())).unwrap();
    let database = TestDatabase::create_on(settings_of(&server));
    let (frozen, other) = (
        Program::start(&database, &[]).await,
        Program::start(&database, &[]).await,
    );
    let ingestion = Ingestion::start(&database).await;
    ingestion.send(HOT, 1);
    for program in [&frozen, &other] {
        eventually("the first order is a hit", PATIENCE, async || {
            amount(program, HOT).await == Some((1, true))
        })
        .await;
    }
    let feed = ingestion.feed();
    eventually("orders are stored", FREEZE, async || {
        database.integer(STORED) > 500
    })
    .await;

    let signal = |signal| kill_process(Pid::from_child(&frozen.process), signal).unwrap();
    signal(Signal::STOP);
    let frozen_at = Instant::now();
    // The frozen process must not answer with what it had cached before.
    ingestion.send(HOT, 2);
    let stored_before = database.integer(STORED);
    let (mut stored, mut risen_at, mut longest_pause) = (stored_before, frozen_at, Duration::ZERO);
    let (mut dropped_after, mut most_ppm, mut ppm) = (None, 0, 0);
    while frozen_at.elapsed() < FREEZE {
        ppm = database.integer(QUEUE_PPM);
        most_ppm = most_ppm.max(ppm);
        if dropped_after.is_none() && database.integer(LISTENERS) == 1 {
            dropped_after = Some(frozen_at.elapsed());
        }
        let now_stored = database.integer(STORED);
        longest_pause = longest_pause.max(risen_at.elapsed());
        if now_stored > stored {
            (stored, risen_at) = (now_stored, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let meanwhile = stored - stored_before;
    let reported_ppm = ingestion.reported_queue_usage().await * 1e6;
    println!(
        "frozen listener dropped after {dropped_after:?}; {meanwhile} orders stored meanwhile, longest pause \
         {longest_pause:?}; queue at most {most_ppm} millionths, at the end {ppm}, as reported {reported_ppm:.0}"
    );
    eventually("the other process has the change", PATIENCE, async || {
        amount(&other, HOT).await == Some((2, true))
    })
    .await;
    signal(Signal::CONT);
    let (amount_when_woken, _) = amount(&frozen, HOT).await.unwrap();
    assert_eq!(amount_when_woken, 2, "what was cached before the freeze");

    let dropped_after = dropped_after.expect("the frozen listener was never dropped");
    assert!(dropped_after < DROPPED_WITHIN);
    assert!(ppm < DRAINED_PPM && reported_ppm < DRAINED_PPM as f64);
    assert!(longest_pause < LONGEST_PAUSE && meanwhile > 5_000);
    let sent = block_in_place(|| feed.finish());
    eventually("all that was sent is stored", FREEZE, async || {
        database.integer(STORED) == i64::try_from(sent).unwrap() + 1
    })
    .await;
    let newest = fed_uid(sent - 1);
    for program in [&frozen, &other] {
        eventually("the newest order is a hit", PATIENCE, async || {
            amount(program, &newest).await == Some((1, true))
        })
        .await;
    }
    ingestion.stop().await;
}

/// The amount of an order, and whether it came from the cache.
async fn amount(program: &Program, uid: &str) -> Option<(i64, bool)> {
    let request = [
        "GET /order/",
        uid,
        " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ];
    let answer = program.send(&request.concat()).await;
    let is_hit = answer.header("cache-status") == Some("orders; hit");
    (answer.status == 200).then(|| (answer.json()["payment"]["amount"].as_i64().unwrap(), is_hit))
}
