//! Damage in Kafka's log: a batch that cannot be read is never skipped.

use std::os::unix::fs::FileExt;

use servers::kafka::PrivateKafka;
use shared::testing::{TestDatabase, wait_until};

use crate::support::{PATIENCE, Scene, segment_of};

#[test]
fn a_batch_whose_checksum_is_wrong_stops_the_partition_until_it_is_repaired() {
    let kafka = PrivateKafka::start(None).unwrap();
    let mut scene = Scene::with_servers(1, TestDatabase::create(), kafka.bootstrap(), &[]);
    scene.audit_writes();
    let mut orders = scene.produce_orders(40);
    let damaged = scene.produce_orders(20);
    orders.extend_from_slice(&damaged);
    orders.extend(scene.produce_orders(40));

    let segment = segment_of(&kafka, &scene.topic);
    let uid = damaged[10].order_uid.as_str().as_bytes();
    let bytes = std::fs::read(&segment).unwrap();
    let at = bytes
        .windows(uid.len())
        .position(|part| part == uid)
        .unwrap();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&segment)
        .unwrap();
    file.write_all_at(b"!", at as u64).unwrap();

    let daemon = scene.start_daemon();
    // The batch has 20 records, or fewer if the producer has sent them in two batches.
    wait_until("everything before the damage is stored", PATIENCE, || {
        scene.settled() >= 40
    });
    wait_until("the process is degraded", PATIENCE, || {
        daemon
            .get("/health")
            .is_some_and(|(status, body)| status == 200 && body.contains("degraded"))
    });
    daemon.wait_until_logged("cannot be read");
    assert!(scene.settled() <= 50, "{} are settled", scene.settled());
    assert_eq!(scene.stored(), scene.settled());

    file.write_all_at(&uid[..1], at as u64).unwrap();
    scene.wait_until_settled(100);
    scene.assert_each_stored_once(&orders);
    assert!(daemon.log().lines().count() < 50, "{}", daemon.log());
    assert!(daemon.stop().success());
}
