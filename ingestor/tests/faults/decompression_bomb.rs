//! Batches that unpack to a thousand times their size. librdkafka unpacks a whole batch before anybody can look at it.

use std::process::Command;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use shared::testing::wait_until;

use crate::support::{Daemon, PATIENCE, Scene};

/// The unpacked size, which exceeds `receive.message.max.bytes` (100 MB).
const BOMB_BYTES: usize = 250_000_000;
/// The memory that the daemon may map: enough for itself, but too little for the bomb.
const LIMIT_BYTES: usize = 200_000_000;

/// 100 orders, the bomb, 100 orders.
fn scene_with_bomb(codec: &str) -> Scene {
    let mut scene = Scene::new(1);
    scene.produce_orders(100);
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", scene.brokers())
        .set("compression.type", codec)
        .set("message.max.bytes", "1000000000")
        .create()
        .unwrap();
    let bomb = vec![0; BOMB_BYTES];
    let record = BaseRecord::to(&scene.topic).key("bomb").payload(&bomb);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(PATIENCE).unwrap();
    scene.produce_orders(100);
    scene
}

fn assert_all_is_settled(scene: &Scene) {
    scene.wait_until_settled(201);
    assert_eq!(scene.stored(), 200);
    let letters = scene.database.texts(
        "SELECT concat_ws(' ', \"offset\", reason, payload_size, octet_length(payload)) AS value FROM dead_letters",
    );
    assert_eq!(letters, [format!("100 too_large {BOMB_BYTES} 1048576")]);
}

#[test]
fn a_bomb_beyond_the_memory_limit_loses_nothing() {
    let scene = scene_with_bomb("gzip");
    let daemon = scene.start_daemon();
    daemon.wait_until_logged("subscribed");
    limit_memory(&daemon);
    wait_until("the bomb has gone off", PATIENCE, || {
        daemon.get("/livez").is_none() || daemon.log().contains("cannot be read")
    });
    assert!(scene.settled() <= 100);
    drop(daemon);

    let daemon = scene.start_daemon();
    assert_all_is_settled(&scene);
    assert!(daemon.stop().success());
}

#[test]
fn a_bomb_beyond_the_clients_bound_stops_its_partition_until_that_is_raised() {
    let scene = scene_with_bomb("zstd");
    let daemon = scene.start_daemon();
    daemon.wait_until_logged("cannot be read");
    wait_until("the process is degraded", PATIENCE, || {
        daemon
            .get("/health")
            .is_some_and(|(status, body)| status == 200 && body.contains("degraded"))
    });
    wait_until("everything before the bomb is stored", PATIENCE, || {
        scene.settled() == 100
    });
    assert!(daemon.stop().success());

    let raised = [("KAFKA_CONFIG", "receive.message.max.bytes=1000000000")];
    let daemon = scene.start_daemon_with(&raised);
    assert_all_is_settled(&scene);
    assert!(daemon.stop().success());
}

fn limit_memory(daemon: &Daemon) {
    let limited = Command::new("prlimit")
        .arg(format!("--pid={}", daemon.pid()))
        .arg(format!("--data={LIMIT_BYTES}"))
        .status()
        .unwrap();
    assert!(limited.success());
}
