//! A topic is deleted and recreated while it is read, and is longer than the old one at once.

use std::time::Duration;

use servers::kafka::PrivateKafka;
use shared::testing::TestDatabase;

use crate::support::{Daemon, Scene};

fn read_ten_orders() -> (Scene, Daemon) {
    let mut scene = Scene::new(1);
    scene.produce_orders(10);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(10);
    (scene, daemon)
}

/// Returns the offset at which the partition was stopped.
fn recreate_while_running(scene: &mut Scene, daemon: &Daemon, away: Duration) -> i64 {
    scene.delete_topic();
    std::thread::sleep(away);
    scene.create_topic_again(1);
    let orders = scene.produce_orders(30);
    scene.wait_for_incidents(1);
    let stopped_at = scene.settled();
    assert_eq!(
        scene.incidents(),
        [format!("recreated p0 {stopped_at} 0..30 -> inc open")]
    );
    assert!((daemon.metric("orders_ingestor_offset_incidents_total") - 1.0).abs() < f64::EPSILON);
    scene.accept_gap(&["--new-topic"]);
    scene.wait_until_at(30, 2);
    assert_eq!(scene.stored_of(&orders), 30);
    stopped_at
}

#[test]
fn a_topic_recreated_at_once_is_noticed_although_reading_continues_in_its_middle() {
    // The record that was read is looked up every 30 seconds. Until then the client continues at its offset.
    let (mut scene, daemon) = read_ten_orders();
    let stopped_at = recreate_while_running(&mut scene, &daemon, Duration::ZERO);
    assert!((10..=30).contains(&stopped_at));
}

#[test]
fn of_a_topic_that_comes_back_after_a_while_nothing_is_read() {
    // Long enough for the group to notice that the topic is gone and to revoke the partition.
    let away = Duration::from_secs(45);
    let (mut scene, daemon) = read_ten_orders();
    let stopped_at = recreate_while_running(&mut scene, &daemon, away);
    assert_eq!(stopped_at, 10);
}

/// A restart gives the partition a higher leader epoch. That of the new topic is lower again, and a client that knows the old topic
/// takes it for outdated.
#[test]
fn a_topic_recreated_after_a_restart_of_kafka_is_noticed() {
    let mut kafka = PrivateKafka::start(None).unwrap();
    let mut scene = Scene::with_servers(1, TestDatabase::create(), kafka.bootstrap(), &[]);
    let daemon = scene.start_daemon();
    scene.produce_orders(5);
    scene.wait_until_settled(5);
    kafka.stop().unwrap();
    kafka.restart().unwrap();
    scene.produce_orders(5);
    scene.wait_until_settled(10);
    let stopped_at = recreate_while_running(&mut scene, &daemon, Duration::ZERO);
    assert!((10..=30).contains(&stopped_at));
    assert!(daemon.metric("orders_ingestor_client_renewals_total") >= 1.0);
}
