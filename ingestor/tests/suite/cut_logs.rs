//! Logs that were cut, and topics that were made anew with the records that were read: nothing older wins, and nothing newer is
//! lost in silence.

use std::fs::OpenOptions;

use servers::kafka::PrivateKafka;
use shared::order::Order;
use shared::testing::{TestDatabase, wait_until};

use crate::support::{PATIENCE, Scene, segment_of};

fn scene_on(kafka: &PrivateKafka) -> Scene {
    Scene::with_servers(1, TestDatabase::create(), kafka.bootstrap(), &[])
}

/// Cuts the log before the record of an order, as an unclean election does: the broker crashes, and what it has not written to
/// the disk is gone.
fn cut_before(kafka: &mut PrivateKafka, scene: &Scene, order: &Order) {
    kafka.kill_nine();
    let segment = segment_of(kafka, &scene.topic);
    let bytes = std::fs::read(&segment).unwrap();
    let uid = order.order_uid.as_str().as_bytes();
    let at = bytes
        .windows(uid.len())
        .position(|part| part == uid)
        .unwrap();
    let file = OpenOptions::new().write(true).open(&segment).unwrap();
    // The broker drops a batch that is not whole, and everything after it.
    file.set_len(at as u64).unwrap();
    kafka.restart().unwrap();
}

/// Stores orders one by one, so that each is a batch.
fn store_one_by_one(scene: &mut Scene, count: usize) -> Vec<Order> {
    let mut orders = Vec::new();
    for _ in 0..count {
        orders.extend(scene.produce_orders(1));
        scene.wait_until_settled(i64::try_from(orders.len()).unwrap());
    }
    orders
}

/// In milliseconds since 1970. Kafka's retention would remove much older records.
fn an_hour_ago() -> i64 {
    chrono::Utc::now().timestamp_millis() - 3_600_000
}

/// What PUT does.
fn put(scene: &Scene, order: &Order) {
    scene.database.execute(&format!(
        "UPDATE orders SET entry = 'PUT', source_partition = NULL, source_offset = NULL, source_incarnation = NULL,
                           version = nextval('order_version_seq') WHERE order_uid = '{}'",
        order.order_uid.as_str()
    ));
}

fn entry_of(scene: &Scene, order: &Order) -> Vec<String> {
    scene.database.texts(&format!(
        "SELECT entry AS value FROM orders WHERE order_uid = '{}'",
        order.order_uid.as_str()
    ))
}

fn letters(scene: &Scene) -> Vec<String> {
    scene.database.texts(
        "SELECT concat_ws(' ', incarnation, \"offset\", reason, state) AS value FROM dead_letters ORDER BY id",
    )
}

#[test]
fn after_a_cut_reading_continues_where_the_log_is_still_the_same() {
    let mut kafka = PrivateKafka::start(None).unwrap();
    let mut scene = scene_on(&kafka);
    let daemon = scene.start_daemon();
    let orders = store_one_by_one(&mut scene, 5);
    put(&scene, &orders[1]);
    assert!(daemon.stop().success());
    cut_before(&mut kafka, &scene, &orders[4]);
    scene.reconnect_producer();
    // A new order, and an order that is newer than the one that was cut off.
    let new = scene.produce_orders(1);
    let mut later = orders[3].clone();
    later.entry = "LATER".into();
    scene.produce(std::slice::from_ref(&later));

    let daemon = scene.start_daemon();
    scene.wait_for_incidents(1);
    assert_eq!(scene.incidents(), ["truncated p0 5 0..6 -> 4 inc open"]);
    daemon.wait_until_logged("it is the one that was read up to offset 3");
    let printed = scene.accept_gap(&[]);
    assert!(
        printed.contains("continues at 4 as incarnation 2"),
        "{printed}"
    );
    scene.wait_until_at(6, 2);
    assert_eq!(scene.stored_of(&new), 1);
    assert_eq!(entry_of(&scene, &orders[1]), ["PUT"]);
    assert_eq!(entry_of(&scene, &later), ["LATER"]);
    assert_eq!(letters(&scene), [] as [&str; 0]);

    // A rewind is possible again, and undoes nothing.
    scene.run_well(&["offsets", "rewind", "--all", "--to", "earliest", "--yes"]);
    wait_until("everything is read again", PATIENCE, || {
        let settled = "SELECT count(*) AS value FROM consumer_offsets WHERE next_offset = 6 AND owner IS NOT NULL";
        scene.database.integer(settled) == 1
    });
    assert_eq!(entry_of(&scene, &orders[1]), ["PUT"]);
    assert_eq!(entry_of(&scene, &later), ["LATER"]);
    assert_eq!(letters(&scene), ["2 1 held_back superseded"]);
    assert!(daemon.stop().success());
}

#[test]
fn a_message_that_is_held_back_becomes_a_letter_which_an_operator_can_replay() {
    let mut kafka = PrivateKafka::start(None).unwrap();
    let mut scene = scene_on(&kafka);
    let daemon = scene.start_daemon();
    let orders = store_one_by_one(&mut scene, 4);
    put(&scene, &orders[0]);
    assert!(daemon.stop().success());
    cut_before(&mut kafka, &scene, &orders[2]);
    scene.reconnect_producer();
    // Its time does not tell whether it is newer than what was read: the producer's clock is late.
    let mut late = orders[0].clone();
    late.entry = "LATE".into();
    scene.produce_at(&late, an_hour_ago());

    let daemon = scene.start_daemon();
    scene.wait_for_incidents(1);
    scene.accept_gap(&[]);
    scene.wait_until_at(3, 2);
    assert_eq!(
        entry_of(&scene, &late),
        ["PUT"],
        "it may be older than the PUT"
    );
    assert_eq!(letters(&scene), ["2 2 held_back superseded"]);
    daemon.wait_until_logged("were held back");
    let letters_total = daemon.metric("orders_ingestor_dead_letters_total");
    assert!((letters_total - 1.0).abs() < f64::EPSILON);

    // A replay by a filter passes it over. By its number it is stored.
    let id = scene
        .database
        .texts("SELECT id::text AS value FROM dead_letters")
        .remove(0);
    scene.run_well(&["dead-letters", "replay", "--all", "--yes"]);
    assert_eq!(entry_of(&scene, &late), ["PUT"]);
    // This is what DELETE does. What was deleted comes back only on demand.
    let uid = late.order_uid.as_str();
    scene.database.execute(&format!(
        "DELETE FROM orders WHERE order_uid = '{uid}'; SELECT record_removed('order', ARRAY['{uid}'], 'deleted')"
    ));
    scene.run_well(&["dead-letters", "replay", &id, "--yes"]);
    assert_eq!(entry_of(&scene, &late), [] as [&str; 0]);
    scene.run_well(&["dead-letters", "replay", &id, "--revive-deleted", "--yes"]);
    assert_eq!(entry_of(&scene, &late), ["LATE"]);
    assert_eq!(letters(&scene), ["2 2 held_back replayed"]);
    assert!(daemon.stop().success());
}

#[test]
fn a_copy_of_the_topic_at_other_offsets_undoes_nothing_however_it_is_accepted() {
    for how in ["--new-topic", "--resume-at=1"] {
        let mut scene = Scene::new(1);
        let daemon = scene.start_daemon();
        let orders = store_one_by_one(&mut scene, 4);
        put(&scene, &orders[1]);
        let newer = scene.later(orders[2].order_uid.as_str());
        scene.produce(std::slice::from_ref(&newer));
        scene.wait_until_settled(5);
        assert!(daemon.stop().success());

        // The copy begins with the second record, and lacks the last one.
        scene.recreate_topic(1);
        for (order, timestamp_ms) in orders[1..].iter().zip(an_hour_ago()..) {
            scene.produce_at(order, timestamp_ms);
        }
        let new = scene.produce_orders(1);
        let daemon = scene.start_daemon();
        scene.wait_for_incidents(1);
        let refusal = scene.run(&["offsets", "accept-gap", "--partition", "0", how]);
        assert!(
            !refusal.success
                && refusal
                    .stderr
                    .contains("1 orders were last written by a PUT, and 0 were deleted"),
            "{refusal:?}"
        );
        scene.accept_gap(&[how]);
        scene.wait_until_at(4, 2);
        assert_eq!(entry_of(&scene, &orders[1]), ["PUT"], "{how:?}");
        let track_number = format!(
            "SELECT track_number AS value FROM orders WHERE order_uid = '{}'",
            newer.order_uid.as_str()
        );
        assert_eq!(
            scene.database.texts(&track_number),
            [newer.track_number.as_str()]
        );
        assert_eq!(scene.stored_of(&new), 1);
        let held_back = letters(&scene);
        assert!(
            held_back.contains(&"2 1 held_back superseded".to_owned()),
            "{how:?}: {held_back:?}"
        );
        assert!(daemon.stop().success());
    }
}

#[test]
fn an_incarnation_never_comes_twice_even_if_the_offsets_were_deleted_by_hand() {
    let mut scene = Scene::new(1);
    scene.send(None, Some(b"rubbish"));
    scene.flush();
    let daemon = scene.start_daemon();
    scene.wait_until_settled(1);
    assert!(daemon.stop().success());
    scene.database.execute("DELETE FROM consumer_offsets");
    scene.recreate_topic(1);
    scene.send(None, Some(b"other rubbish"));
    scene.flush();
    let daemon = scene.start_daemon();
    scene.wait_until_at(1, 2);
    // With the incarnation of the first letter, the second would have met its key and vanished.
    assert_eq!(letters(&scene), ["1 0 not_json new", "2 0 not_json new"]);
    assert!(daemon.stop().success());
}
