//! Kafka's committed offsets follow those in the database, so that lag tools show no lag that does not exist.

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use shared::testing::wait_until;

use crate::support::{PATIENCE, Scene};

/// The answer to a member that commits while its group rebalances.
const REFUSAL: RDKafkaRespErr = RDKafkaRespErr::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS;

#[test]
fn an_offset_that_kafka_did_not_take_is_sent_again() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.request_errors(RDKafkaApiKey::OffsetCommit, &[REFUSAL]);
    let mut scene = Scene::on_mock(&cluster);
    scene.produce_orders(10);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(10);

    daemon.wait_until_logged("Offset commit (manual) failed");
    wait_until_mirrored(&scene, 10);
}

#[test]
fn the_next_owner_mirrors_what_its_predecessor_could_not() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.request_errors(RDKafkaApiKey::OffsetCommit, &[REFUSAL; 1000]);
    let mut scene = Scene::on_mock(&cluster);
    scene.produce_orders(10);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(10);
    daemon.kill_nine();
    cluster.clear_request_errors(RDKafkaApiKey::OffsetCommit);
    assert_eq!(committed(&scene), None);

    let _daemon = scene.start_daemon();
    wait_until_mirrored(&scene, 10);
}

fn wait_until_mirrored(scene: &Scene, offset: i64) {
    wait_until("Kafka has the offset", PATIENCE, || {
        committed(scene) == Some(offset)
    });
}

/// Returns the group's committed offset of partition 0; `None` if there is none, or if no broker tells it.
fn committed(scene: &Scene) -> Option<i64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", scene.brokers())
        .set("group.id", &scene.group)
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition(&scene.topic, 0);
    match consumer.committed_offsets(list, PATIENCE).ok()?.elements()[0].offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    }
}
