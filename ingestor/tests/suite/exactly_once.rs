//! Each order is stored once, whatever ends the process or repeats the message.

use rdkafka::ClientConfig;
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::TopicPartitionList;
use shared::testing::wait_until;

use crate::support::{PATIENCE, Scene};

#[test]
fn kill_nine_in_the_middle_neither_loses_nor_repeats_an_order() {
    const ORDERS: usize = 20_000;
    let mut scene = Scene::new(4);
    scene.audit_writes();
    let orders = scene.produce_orders(ORDERS);
    // With small batches, every kill hits several of them under way.
    for threshold in [1_000, 6_000, 12_000] {
        let daemon = scene.start_daemon_with(&[("BATCH_MAX_RECORDS", "100")]);
        wait_until("some orders are stored", PATIENCE, || {
            scene.stored() > threshold
        });
        daemon.kill_nine();
        assert!(scene.stored() < 20_000, "killed too late to prove anything");
    }
    let daemon = scene.start_daemon();
    scene.wait_until_settled(20_000);
    scene.assert_each_stored_once(&orders);
    assert!(daemon.stop().success());
}

#[test]
fn a_restart_with_kafkas_offsets_reset_changes_nothing() {
    let mut scene = Scene::new(2);
    scene.audit_writes();
    let orders = scene.produce_orders(500);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(500);
    assert!(daemon.stop().success());

    reset_committed_offsets(&scene, 2);
    let daemon = scene.start_daemon();
    let later = scene.produce_orders(1);
    scene.wait_until_settled(501);
    scene.assert_each_stored_once(&[orders, later].concat());
    assert!(daemon.stop().success());
}

#[test]
fn a_clean_stop_tells_kafka_what_is_stored() {
    let mut scene = Scene::new(1);
    scene.produce_orders(300);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(300);
    assert!(daemon.stop().success());
    assert_eq!(committed(&scene, 1), [Offset::Offset(300)]);
}

#[test]
fn later_messages_of_an_order_replace_it_in_one_batch_and_over_batches() {
    let mut scene = Scene::new(2);
    let first = scene.produce_orders(200);
    let mut latest = first.clone();
    for _ in 0..3 {
        latest = first
            .iter()
            .map(|order| scene.later(order.order_uid.as_str()))
            .collect();
        scene.produce(&latest);
    }
    let daemon = scene.start_daemon_with(&[("BATCH_MAX_RECORDS", "150")]);
    scene.wait_until_settled(800);
    assert_eq!(scene.stored(), 200);
    let amounts = scene
        .database
        .texts("SELECT payment_amount::text AS value FROM orders ORDER BY order_uid COLLATE \"C\"");
    latest.sort_by(|left, right| left.order_uid.cmp(&right.order_uid));
    let expected: Vec<String> = latest
        .iter()
        .map(|order| order.payment.amount.to_string())
        .collect();
    assert_eq!(amounts, expected);
    let items: usize = latest.iter().map(|order| order.items.len()).sum();
    let stored_items = scene
        .database
        .integer("SELECT count(*) AS value FROM order_items");
    assert_eq!(stored_items, i64::try_from(items).unwrap());
    assert!(daemon.metric("orders_ingestor_superseded_total") > 0.0);
}

fn group_consumer(scene: &Scene) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", scene.brokers())
        .set("group.id", &scene.group)
        .set("enable.auto.commit", "false")
        .create()
        .unwrap()
}

fn partitions(scene: &Scene, count: i32, offset: Offset) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for partition in 0..count {
        list.add_partition_offset(&scene.topic, partition, offset)
            .unwrap();
    }
    list
}

fn reset_committed_offsets(scene: &Scene, count: i32) {
    let consumer = group_consumer(scene);
    consumer
        .commit(
            &partitions(scene, count, Offset::Offset(0)),
            CommitMode::Sync,
        )
        .unwrap();
    assert!(
        committed(scene, count)
            .iter()
            .all(|offset| *offset == Offset::Offset(0))
    );
}

fn committed(scene: &Scene, count: i32) -> Vec<Offset> {
    let list = group_consumer(scene)
        .committed_offsets(partitions(scene, count, Offset::Invalid), PATIENCE)
        .unwrap();
    list.elements()
        .iter()
        .map(|element| element.offset())
        .collect()
}

#[test]
fn a_daemon_that_logs_nothing_works_and_stops_all_the_same() {
    let mut scene = Scene::new(1);
    scene.produce_orders(10);
    let daemon = scene.start_daemon_with(&[("RUST_LOG", "off")]);
    scene.wait_until_settled(10);
    assert_eq!(daemon.log(), "");
    assert!(daemon.stop().success());
}
