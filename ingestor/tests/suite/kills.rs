//! `kill -9` exactly at each phase of the program's work.

use std::os::unix::process::ExitStatusExt;

use ingestor::failpoints::Phase;
use rustix::process::Signal;
use shared::config::DatabaseSettings;
use shared::testing::wait_until;

use crate::support::postgres_proxy::{PostgresProxy, Strike};
use crate::support::{Daemon, Load, PATIENCE, Scene};

const MESSAGES: usize = 3_000;
/// With small batches, there are many of them before and after a kill.
const SMALL_BATCHES: (&str, &str) = ("BATCH_MAX_RECORDS", "20");
/// A restarted member with a known name takes its place at once. Without a name it would wait until the session of the dead
/// one ends.
const STATIC_MEMBER: (&str, &str) = ("KAFKA_CONFIG", "group.instance.id=one");

fn loaded_scene() -> (Scene, Load) {
    let scene = Scene::new(3);
    let mut load = Load::new(&scene);
    load.produce(MESSAGES);
    (scene, load)
}

/// For each n, kills a daemon when it reaches a phase for the n-th time. Then another one finishes.
fn kill_at(phase: Phase, times: &[usize]) {
    let (scene, load) = loaded_scene();
    for time in times {
        let failpoint = format!("{}={time}*off->return(kill)", <&str>::from(phase));
        let variables = [SMALL_BATCHES, STATIC_MEMBER, ("FAILPOINTS", &failpoint)];
        assert_killed(scene.start_daemon_with(&variables));
    }
    finish(&scene, &load);
}

fn assert_killed(mut daemon: Daemon) {
    let status = daemon.wait(PATIENCE);
    assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{status}");
}

fn finish(scene: &Scene, load: &Load) {
    let all = i64::try_from(load.acknowledged()).unwrap();
    assert!(scene.settled() < all, "killed too late to prove anything");
    let daemon = scene.start_daemon_with(&[STATIC_MEMBER]);
    load.assert_exactly_once(scene);
    assert!(daemon.stop().success());
}

#[test]
fn killed_before_the_first_fetch() {
    kill_at(Phase::Start, &[0, 1, 2]);
}

#[test]
fn killed_while_a_batch_goes_to_its_writer() {
    kill_at(Phase::Steady, &[0, 5, 30]);
}

#[test]
fn killed_between_the_rows_and_their_commit() {
    kill_at(Phase::BeforeCommit, &[0, 5, 30]);
}

#[test]
fn killed_when_committed_but_not_noted() {
    kill_at(Phase::Committed, &[0, 5, 30]);
}

#[test]
fn killed_between_a_commit_and_its_answer() {
    let (scene, load) = loaded_scene();
    let DatabaseSettings { host, port, .. } = scene.database.settings();
    let proxy = PostgresProxy::start(&host, port);
    let proxy_port = proxy.port().to_string();
    let through_proxy = [
        SMALL_BATCHES,
        STATIC_MEMBER,
        ("DB_HOST", "127.0.0.1"),
        ("DB_PORT", &proxy_port),
    ];
    for _ in 0..3 {
        proxy.arm(Strike::HoldAnswer);
        let daemon = scene.start_daemon_with(&through_proxy);
        proxy.wait_until_struck();
        daemon.kill_nine();
        proxy.release();
    }
    finish(&scene, &load);
}

/// The server still works on the dead process's COMMIT when the next process claims the partition.
#[test]
fn killed_while_the_commit_runs() {
    let (scene, load) = loaded_scene();
    let holder = scene.hold_commits();
    let daemon = scene.start_daemon_with(&[SMALL_BATCHES, STATIC_MEMBER]);
    scene.wait_until_a_commit_is_held();
    daemon.kill_nine();
    let next = scene.start_daemon_with(&[STATIC_MEMBER]);
    // It waits for the dead process's lock on the partition's row, and then ends that session.
    wait_until("every partition is claimed", PATIENCE, || {
        next.log().matches("claimed kafka.partition").count() == 3
    });
    drop(holder);
    load.assert_exactly_once(&scene);
    assert!(next.stop().success());
}

#[test]
fn killed_while_it_owes_the_group_an_answer() {
    let (scene, load) = loaded_scene();
    let slow = ("FAILPOINTS", "rebalance=return(kill);committed=sleep(50)");
    let first = scene.start_daemon_with(&[SMALL_BATCHES, slow]);
    wait_until("some orders are stored", PATIENCE, || scene.settled() > 0);
    let second = scene.start_daemon();
    assert_killed(first);
    load.assert_exactly_once(&scene);
    assert!(second.stop().success());
}

#[test]
fn killed_while_it_stops() {
    let (scene, load) = loaded_scene();
    let slow = ("FAILPOINTS", "drain=return(kill);committed=sleep(50)");
    let daemon = scene.start_daemon_with(&[SMALL_BATCHES, STATIC_MEMBER, slow]);
    wait_until("some orders are stored", PATIENCE, || scene.settled() > 0);
    daemon.signal(Signal::TERM);
    assert_killed(daemon);
    finish(&scene, &load);
}
