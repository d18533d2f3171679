//! `ingestor doctor`: each broken precondition is found, and nothing else is. The tests of the api break the database.

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;
use shared::testing::{TestDatabase, wait_until};

use crate::support::{Answer, PATIENCE, Scene};

/// A topic about which there is nothing to say, with more settings.
fn scene_with(more: &[(&str, &str)]) -> Scene {
    let brokers = std::env::var("KAFKA_BROKERS").unwrap();
    let settings = [&[("message.timestamp.type", "LogAppendTime")], more].concat();
    Scene::with_servers(2, TestDatabase::create(), brokers, &settings)
}

/// Returns each check that found something, and how bad it is.
fn found(answer: &Answer) -> Vec<(String, String)> {
    let document: Value =
        serde_json::from_str(&answer.stdout).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let checks = document["checks"].as_array().unwrap().iter();
    let found = checks.filter(|checked| checked["result"] == "found");
    found
        .map(|checked| (text(&checked["check"]), text(&checked["severity"])))
        .collect()
}

/// Asserts that this is found and nothing else, and that the exit status says whether something must be mended.
fn assert_found(scene: &Scene, variables: &[(&str, &str)], expected: &[(&str, &str)]) {
    let answer = scene.run_with(&["doctor", "--json"], variables);
    let found = found(&answer);
    let found: Vec<(&str, &str)> = found
        .iter()
        .map(|(check, severity)| (&**check, &**severity))
        .collect();
    assert_eq!(found, expected, "{answer:?}");
    let must_be_mended = found.iter().any(|(_, severity)| *severity == "error");
    assert_eq!(answer.success, !must_be_mended, "{answer:?}");
}

fn plain_consumer(scene: &Scene) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", scene.brokers())
        .set("group.id", &scene.group)
        .set("client.id", "somebody-else")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap()
}

#[test]
fn a_healthy_setup_has_no_finding_before_and_while_the_daemon_runs() {
    let mut scene = scene_with(&[]);
    assert_found(&scene, &[], &[]);
    let daemon = scene.start_daemon();
    scene.produce_orders(10);
    scene.wait_until_settled(10);
    let port = daemon.port().to_string();
    assert_found(&scene, &[("INGESTOR_PORT", &port)], &[]);
    assert!(daemon.stop().success());
}

#[test]
fn settings_of_the_topic_are_found_alone() {
    for (setting, value, check, severity) in [
        ("retention.ms", "7200000", "kafka.retention", "warning"),
        (
            "max.message.bytes",
            "100000",
            "kafka.message_size",
            "warning",
        ),
        ("cleanup.policy", "compact", "kafka.compaction", "warning"),
        (
            "message.timestamp.type",
            "CreateTime",
            "kafka.timestamps",
            "advice",
        ),
    ] {
        let scene = scene_with(&[(setting, value)]);
        assert_found(&scene, &[], &[(check, severity)]);
    }
    // Whoever promises to be back sooner is content with less.
    let scene = scene_with(&[("retention.ms", "172800000")]);
    assert_found(&scene, &[], &[("kafka.retention", "warning")]);
    let answer = scene.run_with(&["doctor", "--json", "--longest-stop", "1d"], &[]);
    assert_eq!(found(&answer), []);
}

#[test]
fn brokers_and_topics_that_are_not_there_are_found_alone() {
    let scene = scene_with(&[]);
    for (variable, value, check) in [
        ("KAFKA_BROKERS", "127.0.0.1:1", "kafka.topic"),
        ("KAFKA_TOPIC", "no-such-topic", "kafka.topic"),
        ("KAFKA_DLQ_TOPIC", "no-such-topic", "kafka.dead_letters"),
    ] {
        assert_found(&scene, &[(variable, value)], &[(check, "error")]);
    }
}

#[test]
fn another_program_in_the_group_is_found_alone() {
    let scene = scene_with(&[]);
    let other = plain_consumer(&scene);
    other.subscribe(&[&scene.topic]).unwrap();
    wait_until("the other program is a member", PATIENCE, || {
        other.poll(std::time::Duration::from_millis(100));
        other.assignment().unwrap().count() > 0
    });
    assert_found(&scene, &[], &[("kafka.members", "error")]);
}

#[test]
fn a_group_that_would_begin_in_the_wrong_place_is_found_alone() {
    let mut scene = scene_with(&[]);
    scene.produce_to(0, 3);
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&scene.topic, 0, Offset::Offset(3))
        .unwrap();
    plain_consumer(&scene)
        .commit(&list, CommitMode::Sync)
        .unwrap();
    assert_found(&scene, &[], &[("kafka.committed", "warning")]);
    scene.database.execute(&format!(
        "INSERT INTO consumer_offsets (group_id, topic, partition, next_offset) VALUES ('former', '{}', 0, 3)",
        scene.topic
    ));
    assert_found(&scene, &[], &[("kafka.start", "error")]);
}

#[test]
fn offsets_that_the_topic_does_not_hold_are_found_alone() {
    let mut scene = scene_with(&[]);
    scene.produce_to(0, 10);
    scene.database.execute(&format!(
        "INSERT INTO consumer_offsets (group_id, topic, partition, next_offset) VALUES ('{}', '{}', 0, 5)",
        scene.group, scene.topic
    ));
    assert_found(&scene, &[], &[]);
    scene.delete_records_below(8);
    assert_found(&scene, &[], &[("kafka.offsets", "error")]);
}

#[test]
fn a_right_that_the_daemon_lacks_and_too_little_memory_are_found_alone() {
    let scene = scene_with(&[]);
    assert_found(
        &scene,
        &[("INGEST_MEMORY_MB", "65536")],
        &[("machine.memory", "warning")],
    );
    scene
        .database
        .execute("REVOKE USAGE ON SEQUENCE incarnation_seq FROM orders_ingestor");
    assert_found(&scene, &[], &[("postgres.rights", "error")]);
}
