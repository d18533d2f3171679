//! Dead letters in `KAFKA_DLQ_TOPIC`: each is published at least once, with its original bytes, and holds nothing up.

use std::collections::BTreeMap;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use rdkafka::ClientConfig;
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::topic_partition_list::TopicPartitionList;
use shared::testing::wait_until;

use crate::support::{PATIENCE, Scene, create_topic};

/// A topic for the letters of a scene.
fn dlq(scene: &Scene) -> String {
    let topic = format!("{}-dlq", scene.topic);
    create_topic(scene.brokers(), &topic, 1, &[]);
    topic
}

/// Reads `count` messages of a topic, and those that follow immediately.
fn read(scene: &Scene, topic: &str, count: usize) -> Vec<OwnedMessage> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", scene.brokers())
        .set("group.id", "nobody")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning)
        .unwrap();
    consumer.assign(&list).unwrap();
    let mut messages = Vec::new();
    wait_until("the letters are in the topic", PATIENCE, || {
        while let Some(message) = consumer.poll(Duration::from_millis(200)) {
            messages.push(message.unwrap().detach());
        }
        messages.len() >= count
    });
    messages
}

fn headers(message: &OwnedMessage) -> BTreeMap<String, String> {
    let text =
        |value: Option<&[u8]>| String::from_utf8(value.unwrap_or_default().to_vec()).unwrap();
    let headers = message.headers().unwrap();
    headers
        .iter()
        .map(|header| (header.key.to_owned(), text(header.value)))
        .collect()
}

fn unrelayed(scene: &Scene) -> i64 {
    scene
        .database
        .integer("SELECT count(*) AS value FROM dead_letters WHERE relayed_at IS NULL")
}

#[test]
fn a_letter_is_published_with_its_bytes_and_where_it_came_from() {
    let scene = Scene::new(1);
    let topic = dlq(&scene);
    scene.send(Some("k"), Some(b"\xff not json"));
    scene.send(Some("gone"), None);
    scene.flush();
    let daemon = scene.start_daemon_with(&[("KAFKA_DLQ_TOPIC", &topic)]);
    let messages = read(&scene, &topic, 2);
    assert_eq!(messages.len(), 2);
    assert_eq!(
        (messages[0].key(), messages[0].payload()),
        (Some(&b"k"[..]), Some(&b"\xff not json"[..]))
    );
    assert_eq!(
        (messages[1].key(), messages[1].payload()),
        (Some(&b"gone"[..]), None)
    );
    let told = headers(&messages[0]);
    let header = |name: &str| told[&format!("__connect.errors.{name}")].as_str();
    assert_eq!(
        (header("topic"), header("partition"), header("offset")),
        (scene.topic.as_str(), "0", "0")
    );
    assert_eq!(
        (header("connector.name"), header("stage")),
        (scene.group.as_str(), "VALUE_CONVERTER")
    );
    assert_eq!(header("exception.class.name"), "not_json");
    assert!(!header("exception.message").is_empty());
    wait_until("it is noted", PATIENCE, || unrelayed(&scene) == 0);
    assert!(
        (daemon.metric("orders_ingestor_dead_letters_relayed_total") - 2.0).abs() < f64::EPSILON
    );
    assert!(daemon.stop().success());
}

#[test]
fn a_letter_that_commits_late_is_published_though_its_number_is_lower() {
    let scene = Scene::new(1);
    let topic = dlq(&scene);
    let insert = |offset: i64| {
        format!(
            "INSERT INTO dead_letters (group_id, topic, incarnation, partition, \"offset\", payload, payload_size, headers,
                                       reason, detail)
             VALUES ('{}', '{}', 0, 0, {offset}, 'x', 1, '[]', 'not_json', 'seeded')",
            scene.group, scene.topic
        )
    };
    let mut late = scene.database.connect();
    late.batch_execute("BEGIN").unwrap();
    late.batch_execute(&insert(1)).unwrap();
    scene.database.execute(&insert(2));
    // Two processes relay at once, each some of the letters.
    let daemons = [(); 2].map(|()| scene.start_daemon_with(&[("KAFKA_DLQ_TOPIC", &topic)]));
    assert_eq!(read(&scene, &topic, 1).len(), 1);
    late.batch_execute("COMMIT").unwrap();
    for offset in 3..300 {
        scene.database.execute(&insert(offset));
    }
    wait_until("all are noted", PATIENCE, || unrelayed(&scene) == 0);
    let mut offsets: Vec<String> = read(&scene, &topic, 299)
        .iter()
        .map(|message| headers(message)["__connect.errors.offset"].clone())
        .collect();
    offsets.sort_by_key(|offset| offset.parse::<i64>().unwrap());
    assert_eq!(
        offsets,
        (1..300)
            .map(|offset: i64| offset.to_string())
            .collect::<Vec<_>>()
    );
    for daemon in daemons {
        assert!(daemon.stop().success());
    }
}

#[test]
fn a_topic_that_accepts_nothing_stops_neither_the_orders_nor_the_process() {
    let mut scene = Scene::new(1);
    scene.send(None, Some(b"not json"));
    scene.flush();
    // Kafka rejects such a name.
    let daemon = scene.start_daemon_with(&[("KAFKA_DLQ_TOPIC", "no such/topic")]);
    let orders = scene.produce_orders(50);
    scene.wait_until_settled(51);
    assert_eq!(scene.stored(), i64::try_from(orders.len()).unwrap());
    daemon.wait_until_logged("cannot relay dead letters");
    assert_eq!(unrelayed(&scene), 1);
    assert!(daemon.stop().success());
    let topic = dlq(&scene);
    let daemon = scene.start_daemon_with(&[("KAFKA_DLQ_TOPIC", &topic)]);
    assert_eq!(read(&scene, &topic, 1).len(), 1);
    assert!(daemon.stop().success());
}

#[test]
fn a_letter_too_large_for_the_topic_is_published_cut() {
    let scene = Scene::new(1);
    let topic = format!("{}-dlq", scene.topic);
    create_topic(
        scene.brokers(),
        &topic,
        1,
        &[("max.message.bytes", "100000")],
    );
    // Bytes that cannot be compressed.
    let mut random = fastrand::Rng::with_seed(1);
    let noise: Vec<u8> = (0..200_000).map(|_| random.u8(..)).collect();
    scene.send(None, Some(&noise));
    scene.flush();
    let daemon = scene.start_daemon_with(&[("KAFKA_DLQ_TOPIC", &topic)]);
    let messages = read(&scene, &topic, 1);
    assert_eq!(messages[0].payload().unwrap().len(), 64 * 1024);
    assert_eq!(headers(&messages[0])["orders.payload.size"], "200000");
    wait_until("it is noted", PATIENCE, || unrelayed(&scene) == 0);
    assert!(daemon.stop().success());
}
