//! A topic is deleted and recreated while it is read, and is longer than the old one at once.

use std::time::Duration;

use crate::support::Scene;

/// Returns the offset at which the partition was stopped.
fn recreate_while_running(away: Duration) -> i64 {
    let mut scene = Scene::new(1);
    scene.produce_orders(10);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(10);
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
    assert!((10..=30).contains(&recreate_while_running(Duration::ZERO)));
}

#[test]
fn of_a_topic_that_comes_back_after_a_while_nothing_is_read() {
    // Long enough for the group to notice that the topic is gone and to revoke the partition.
    assert_eq!(recreate_while_running(Duration::from_secs(45)), 10);
}
