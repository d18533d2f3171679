//! Partitions move between processes: one that comes and goes, and one that was frozen while another took over.

use diesel::connection::SimpleConnection;
use rustix::process::Signal;
use shared::testing::wait_until;

use crate::support::{PATIENCE, Scene};

const OWNERS: &str =
    "SELECT count(DISTINCT owner) AS value FROM consumer_offsets WHERE owner IS NOT NULL";

#[test]
fn a_frozen_member_writes_nothing_of_its_past_when_it_wakes_and_rejoins() {
    let mut scene = Scene::new(4);
    scene.audit_writes();
    let small_batches = [("BATCH_MAX_RECORDS", "20")];
    let frozen = scene.start_daemon_with(&small_batches);
    let taker = scene.start_daemon_with(&small_batches);
    wait_until("each has claimed partitions", PATIENCE, || {
        scene.database.integer(OWNERS) == 2
    });

    // Nothing is stored before all orders are in Kafka, so that the frozen one leaves work behind.
    let mut gate = scene.database.connect();
    gate.batch_execute("BEGIN; LOCK TABLE orders IN EXCLUSIVE MODE")
        .unwrap();
    let mut orders = scene.produce_orders(40_000);
    gate.batch_execute("COMMIT").unwrap();
    wait_until("both are storing", PATIENCE, || scene.stored() > 500);
    frozen.signal(Signal::STOP);
    assert!(scene.stored() < 40_000, "frozen too late to prove anything");
    scene.wait_until_settled(40_000);
    assert_eq!(
        scene.database.integer(OWNERS),
        1,
        "the other has taken over everything"
    );

    // Its client sees that the session has ended, or a writer meets the fence. Either may come first.
    frozen.signal(Signal::CONT);
    wait_until("the woken one owns partitions again", PATIENCE, || {
        scene.database.integer(OWNERS) == 2
    });
    orders.extend(scene.produce_orders(1_000));
    scene.wait_until_settled(41_000);
    scene.assert_each_stored_once(&orders);
    assert!(frozen.stop().success());
    assert!(taker.stop().success());
}

#[test]
fn members_that_come_and_go_lose_nothing_and_stall_nothing() {
    let mut scene = Scene::new(4);
    scene.audit_writes();
    let small_batches = [("BATCH_MAX_RECORDS", "20")];
    let steady = scene.start_daemon_with(&small_batches);
    let mut orders = Vec::new();
    for _ in 0..4 {
        orders.extend(scene.produce_orders(5_000));
        let guest = scene.start_daemon_with(&small_batches);
        wait_until("both own partitions", PATIENCE, || {
            scene.database.integer(OWNERS) == 2
        });
        assert!(guest.stop().success());
        wait_until("the steady one owns everything", PATIENCE, || {
            scene.database.integer(OWNERS) == 1
        });
    }
    scene.wait_until_settled(20_000);
    scene.assert_each_stored_once(&orders);
    assert!(steady.stop().success());
}

/// Settings of a static member: it has a name and keeps its partitions over a restart.
///
/// The session is longer than any restart on a slow machine. When a session ends, the group moves the partitions.
fn named(name: &str) -> (&'static str, String) {
    let settings =
        format!("session.timeout.ms=120000,heartbeat.interval.ms=1000,group.instance.id={name}");
    ("KAFKA_CONFIG", settings)
}

#[test]
fn a_named_member_that_restarts_moves_no_partition() {
    /// The beginning of the log line of a claim. There is one line per partition.
    const CLAIMED: &str = "claimed kafka.partition";
    const OWNERS_OF_TWO: &str = "SELECT count(*) AS value FROM (SELECT FROM consumer_offsets \
        WHERE owner IS NOT NULL GROUP BY owner HAVING count(*) = 2) AS owners";
    const PLACES: &str =
        "SELECT concat_ws(' ', partition, epoch, owner) AS value FROM consumer_offsets ORDER BY 1";
    let mut scene = Scene::new(4);
    scene.audit_writes();
    let start = |name: &str| {
        let (variable, settings) = named(name);
        scene.start_daemon_with(&[(variable, &settings)])
    };
    // They start one after the other, so that the second member claims its own two partitions and no others before.
    let first = start("first");
    wait_until("the first owns everything", PATIENCE, || {
        first.log().matches(CLAIMED).count() == 4
    });
    let second = start("second");
    wait_until("both own two partitions", PATIENCE, || {
        scene.database.integer(OWNERS_OF_TWO) == 2
    });
    let places = scene.database.texts(PLACES);
    assert!(first.stop().success());
    let first = start("first");
    first.wait_until_logged(CLAIMED);
    first.kill_nine();
    let first = start("first");
    first.wait_until_logged(CLAIMED);

    let orders = scene.produce_orders(1_000);
    scene.wait_until_settled(1_000);
    scene.assert_each_stored_once(&orders);
    let kept = scene
        .database
        .texts(PLACES)
        .iter()
        .filter(|place| places.contains(place))
        .count();
    assert_eq!(kept, 2, "the second one's partitions were claimed again");
    // Only claims count: a slow machine adds warnings to the log, and a rebalance that moves nothing adds a line.
    assert_eq!(
        second.log().matches(CLAIMED).count(),
        2,
        "the second one claimed partitions again, or those of the first"
    );
    assert!(first.stop().success() && second.stop().success());
}

#[test]
fn of_two_members_with_one_name_only_the_younger_runs() {
    let scene = Scene::new(1);
    let (variable, settings) = named("twin");
    let mut elder = scene.start_daemon_with(&[(variable, &settings)]);
    elder.wait_until_logged("claimed");
    let younger = scene.start_daemon_with(&[(variable, &settings)]);
    assert!(!elder.wait(PATIENCE).success());
    assert!(elder.log().contains("group.instance.id"), "{}", elder.log());
    younger.wait_until_logged("claimed");
    assert!(younger.stop().success());
}
