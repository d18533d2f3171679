//! PostgreSQL or Kafka is frozen or killed when the ingestor is told to stop: it ends in time, and nothing is lost.

use std::path::Path;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use rustix::process::{Pid, Signal, kill_process};
use servers::kafka::PrivateKafka;
use servers::postgres::{Options, PrivatePostgres};
use shared::order::Order;
use shared::testing::{TestDatabase, settings_of, wait_until};

use crate::support::{Daemon, PATIENCE, Scene};

const TIMEOUT: (&str, &str) = ("SHUTDOWN_TIMEOUT_MS", "4000");
/// The time-out, and what a busy machine takes to start and to reap a process.
const IN_TIME: Duration = Duration::from_secs(7);

/// A process and its children, frozen until this is dropped. PostgreSQL's children are no group.
struct Frozen(Vec<Pid>);

impl Frozen {
    fn freeze(parent: u32) -> Self {
        let pid = |text: &str| Pid::from_raw(text.parse().unwrap()).unwrap();
        let mut frozen = Self(vec![pid(&parent.to_string())]);
        // The parent first, so that it makes no more children.
        kill_process(frozen.0[0], Signal::STOP).unwrap();
        let tasks = Path::new("/proc").join(parent.to_string()).join("task");
        for task in std::fs::read_dir(tasks).unwrap() {
            let children = std::fs::read_to_string(task.unwrap().path().join("children")).unwrap();
            for child in children.split_whitespace().map(pid) {
                kill_process(child, Signal::STOP).unwrap();
                frozen.0.push(child);
            }
        }
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in &self.0 {
            // A child may have ended.
            kill_process(*pid, Signal::CONT).ok();
        }
    }
}

/// Sends SIGTERM, and returns whether the process ends with status 0. It must end in time.
fn stop_in_time(mut daemon: Daemon) -> bool {
    let started_at = Instant::now();
    daemon.signal(Signal::TERM);
    let status = daemon.wait(PATIENCE);
    let taken = started_at.elapsed();
    assert!(taken < IN_TIME, "{taken:?}: {}", daemon.log());
    status.success()
}

/// A daemon that has just stored orders whose offsets Kafka has not been told.
fn with_offsets_to_mirror(kafka: &PrivateKafka) -> (Scene, Daemon, Vec<Order>) {
    let mut scene = Scene::with_servers(2, TestDatabase::create(), kafka.bootstrap(), &[]);
    scene.audit_writes();
    let daemon = scene.start_daemon_with(&[TIMEOUT]);
    let mut orders = scene.produce_orders(100);
    scene.wait_until_settled(100);
    orders.extend(scene.produce_orders(100));
    scene.wait_until_settled(200);
    (scene, daemon, orders)
}

fn assert_continues(mut scene: Scene, mut orders: Vec<Order>) {
    let daemon = scene.start_daemon();
    orders.extend(scene.produce_orders(100));
    scene.wait_until_settled(i64::try_from(orders.len()).unwrap());
    scene.assert_each_stored_once(&orders);
    assert!(daemon.stop().success());
}

#[test]
fn a_frozen_kafka_is_not_waited_for() {
    let kafka = PrivateKafka::start(None).unwrap();
    let (scene, daemon, orders) = with_offsets_to_mirror(&kafka);
    let frozen = Frozen::freeze(kafka.pid().unwrap());
    assert!(stop_in_time(daemon), "everything was stored");
    // One that has not got further than asking for its group.
    let started = scene.start_daemon_with(&[TIMEOUT]);
    started.wait_until_logged("subscribed");
    assert!(stop_in_time(started));
    drop(frozen);
    assert_continues(scene, orders);
}

#[test]
fn a_dead_kafka_is_not_waited_for() {
    let mut kafka = PrivateKafka::start(None).unwrap();
    let (scene, daemon, orders) = with_offsets_to_mirror(&kafka);
    kafka.kill_nine();
    assert!(stop_in_time(daemon), "everything was stored");
    kafka.restart().unwrap();
    assert_continues(scene, orders);
}

#[test]
fn a_frozen_postgresql_ends_the_process_at_the_deadline() {
    let server = PrivatePostgres::start(&Options::default()).unwrap();
    let mut scene = Scene::with_database(2, TestDatabase::create_on(settings_of(&server)));
    scene.audit_writes();
    let daemon = scene.start_daemon_with(&[TIMEOUT]);
    let mut orders = scene.produce_orders(100);
    scene.wait_until_settled(100);
    let frozen = Frozen::freeze(server.pid().unwrap());
    orders.extend(scene.produce_orders(1_000));
    // One that is at its first look at the database.
    let started = scene.start_daemon_with(&[TIMEOUT]);
    started.wait_until_logged("starting");
    assert!(stop_in_time(started), "it has begun nothing");
    assert!(!stop_in_time(daemon), "a batch was under way");
    drop(frozen);
    assert_continues(scene, orders);
}

#[test]
fn both_frozen_end_the_process_at_the_deadline() {
    let kafka = PrivateKafka::start(None).unwrap();
    let server = PrivatePostgres::start(&Options::default()).unwrap();
    let database = TestDatabase::create_on(settings_of(&server));
    let mut scene = Scene::with_servers(2, database, kafka.bootstrap(), &[]);
    scene.audit_writes();
    let daemon = scene.start_daemon_with(&[TIMEOUT]);
    let mut orders = scene.produce_orders(100);
    scene.wait_until_settled(100);
    let frozen_postgres = Frozen::freeze(server.pid().unwrap());
    orders.extend(scene.produce_orders(1_000));
    let frozen_kafka = Frozen::freeze(kafka.pid().unwrap());
    stop_in_time(daemon);
    drop((frozen_postgres, frozen_kafka));
    assert_continues(scene, orders);
}

#[test]
fn a_row_that_is_locked_for_a_minute_holds_up_its_partition_only() {
    const LOCKED: Duration = Duration::from_secs(60);
    // Partitions 0 and 4 have the same writer.
    let mut scene = Scene::new(5);
    scene.audit_writes();
    let daemon = scene.start_daemon();
    let mut orders = scene.produce_to(0, 100);
    scene.wait_until_settled(100);
    let mut holder = scene.lock_row_of_partition_0();
    let locked_at = Instant::now();
    orders.extend(scene.produce_to(0, 1_000));
    let (mut stored, mut slowest) = (100, Duration::ZERO);
    while locked_at.elapsed() < LOCKED {
        orders.extend(scene.produce_to(4, 10));
        let sent_at = Instant::now();
        stored += 10;
        wait_until("orders of partition 4 are stored", PATIENCE, || {
            scene.stored() == stored
        });
        slowest = slowest.max(sent_at.elapsed());
        let (code, body) = daemon.get("/readyz").unwrap();
        assert_eq!(code, 200, "{body}");
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    holder.batch_execute("COMMIT").unwrap();
    scene.wait_until_settled(i64::try_from(orders.len()).unwrap());
    scene.assert_each_stored_once(&orders);
    assert!(daemon.stop().success());
}
