//! Dead letters in `KAFKA_DLQ_TOPIC`: each is published at least once, with its original bytes, and holds nothing up.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use diesel::connection::SimpleConnection;
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::mocking::{MockCluster, MockCoordinator};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use shared::testing::wait_until;

use crate::support::{Daemon, PATIENCE, Scene, create_topic, read_topic};

/// A topic for the letters of a scene.
fn dlq(scene: &Scene) -> String {
    dlq_with(scene, &[])
}

/// A topic with these settings for the letters of a scene.
fn dlq_with(scene: &Scene, settings: &[(&str, &str)]) -> String {
    let topic = format!("{}-dlq", scene.topic);
    create_topic(scene.brokers(), &topic, 1, settings);
    topic
}

/// Inserts a letter, whose columns are SQL.
fn seed(scene: &Scene, offset: i64, columns: &[(&str, &str)]) {
    let names: String = columns
        .iter()
        .map(|(name, _)| format!(", {name}"))
        .collect();
    let values: String = columns
        .iter()
        .map(|(_, value)| format!(", {value}"))
        .collect();
    scene.database.execute(&format!(
        "INSERT INTO dead_letters (group_id, topic, incarnation, partition, \"offset\", reason, detail{names})
         VALUES ('{}', '{}', 0, 0, {offset}, 'not_json', 'seeded'{values})",
        scene.group, scene.topic
    ));
}

/// SQL for bytes that cannot be compressed, a multiple of 32.
fn noise(bytes: usize) -> String {
    let blocks = bytes / 32;
    format!(
        "(SELECT string_agg(sha256(block::text::bytea), '' ORDER BY block) FROM generate_series(1, {blocks}) AS block)"
    )
}

/// Inserts a letter with a payload that cannot be compressed.
fn seed_noise(scene: &Scene, offset: i64, bytes: usize) {
    let (payload, size) = (noise(bytes), bytes.to_string());
    let columns = [
        ("key", "'k'"),
        ("payload", payload.as_str()),
        ("payload_size", &size),
        ("headers", "'[]'"),
    ];
    seed(scene, offset, &columns);
}

/// What `/health` says about the relay, and about the process.
fn health(daemon: &Daemon) -> (serde_json::Value, String) {
    let body = daemon
        .get("/health")
        .map_or_else(String::new, |(_, body)| body);
    let health: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
    let status = health["status"].as_str().unwrap_or_default().to_owned();
    (health["checks"]["relay"].clone(), status)
}

/// The message of the letter at this offset.
fn of_offset(messages: &[OwnedMessage], offset: i64) -> &OwnedMessage {
    let found = messages.iter().find(|message| offset_of(message) == offset);
    found.unwrap_or_else(|| panic!("offset {offset} is not published"))
}

fn offset_of(message: &OwnedMessage) -> i64 {
    headers(message)["__connect.errors.offset"].parse().unwrap()
}

fn refused(scene: &Scene) -> Vec<String> {
    scene.database.texts(
        "SELECT concat_ws(' ', \"offset\", relay_error) AS value FROM dead_letters WHERE relay_error IS NOT NULL ORDER BY id",
    )
}

fn headers(message: &OwnedMessage) -> BTreeMap<String, String> {
    let text =
        |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
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
    let messages = read_topic(scene.brokers(), &topic, 2);
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
    assert_eq!(read_topic(scene.brokers(), &topic, 1).len(), 1);
    late.batch_execute("COMMIT").unwrap();
    for offset in 3..300 {
        scene.database.execute(&insert(offset));
    }
    wait_until("all are noted", PATIENCE, || unrelayed(&scene) == 0);
    let mut offsets: Vec<String> = read_topic(scene.brokers(), &topic, 299)
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
    assert_eq!(read_topic(scene.brokers(), &topic, 1).len(), 1);
    assert!(daemon.stop().success());
}

#[test]
fn a_letter_too_large_for_the_topic_is_published_cut() {
    let scene = Scene::new(1);
    let topic = dlq_with(&scene, &[("max.message.bytes", "100000")]);
    seed_noise(&scene, 0, 200_000);
    let daemon = scene.start_daemon_with(&[("KAFKA_DLQ_TOPIC", &topic)]);
    let messages = read_topic(scene.brokers(), &topic, 1);
    let kept = messages[0].payload().unwrap().len();
    assert!((50_000..100_000).contains(&kept), "{kept}");
    assert_eq!(messages[0].key().unwrap(), b"k");
    let told = headers(&messages[0]);
    assert_eq!(told["orders.payload.size"], "200000");
    assert!(!told.contains_key("orders.key.size"), "{told:?}");
    wait_until("it is noted", PATIENCE, || unrelayed(&scene) == 0);
    assert!(daemon.stop().success());
}

#[test]
fn large_keys_headers_and_payloads_are_cut_and_hold_up_nobody() {
    let scene = Scene::new(1);
    let topic = dlq_with(&scene, &[("max.message.bytes", "30000")]);
    let key = noise(900_000);
    let of_key = [
        ("key", key.as_str()),
        ("payload", "'not json'"),
        ("payload_size", "8"),
        ("headers", "'[]'"),
    ];
    seed(&scene, 1, &of_key);
    let value = format!("translate(encode({}, 'base64'), E'\\n', '')", noise(960));
    let many = format!(
        "(SELECT jsonb_agg(jsonb_build_object('key', 'h' || n, 'value', {value})) FROM generate_series(0, 49) AS n)"
    );
    // 50 headers of 960 bytes, which differ in the block that is not compressed away.
    let many = many.replace("block::text::bytea", "(block * 100 + n)::text::bytea");
    let of_headers = [
        ("key", "'k'"),
        ("payload", "'not json'"),
        ("payload_size", "8"),
        ("headers", many.as_str()),
    ];
    seed(&scene, 2, &of_headers);
    seed_noise(&scene, 3, 1_000_000);
    // Together they are more than a batch of this topic may have.
    for offset in 4..104 {
        seed_noise(&scene, offset, 1_024);
    }
    let daemon = scene.start_daemon_with(&[("KAFKA_DLQ_TOPIC", &topic)]);
    wait_until("all are noted", PATIENCE, || unrelayed(&scene) == 0);
    assert_eq!(refused(&scene), Vec::<String>::new());
    let messages = read_topic(scene.brokers(), &topic, 103);
    assert_eq!(messages.len(), 103);

    let told = headers(of_offset(&messages, 1));
    assert_eq!(told["orders.key.size"], "900000");
    assert!(!told.contains_key("orders.payload.size"), "{told:?}");
    let cut = of_offset(&messages, 1).key().unwrap();
    assert!((1_024..30_000).contains(&cut.len()), "{}", cut.len());
    assert_eq!(of_offset(&messages, 1).payload().unwrap(), b"not json");

    let told = headers(of_offset(&messages, 2));
    assert_eq!(told["orders.headers.count"], "50");
    assert!(told.contains_key("h0") && !told.contains_key("h49"));
    assert_eq!(of_offset(&messages, 2).payload().unwrap(), b"not json");

    assert_eq!(
        headers(of_offset(&messages, 3))["orders.payload.size"],
        "1000000"
    );
    let behind: Vec<&OwnedMessage> = messages
        .iter()
        .filter(|message| offset_of(message) >= 4)
        .collect();
    let offsets: Vec<i64> = behind.iter().map(|message| offset_of(message)).collect();
    assert_eq!(offsets, (4..104).collect::<Vec<i64>>(), "in their order");
    for message in behind {
        assert_eq!(message.payload().unwrap().len(), 1_024);
        assert!(!headers(message).contains_key("orders.payload.size"));
    }
    assert!(daemon.stop().success());
}

#[test]
fn a_letter_that_the_topic_never_takes_is_marked_passed_over_and_tried_again_on_demand() {
    let scene = Scene::new(1);
    // Such a topic refuses what has no key.
    let compacted = dlq_with(&scene, &[("cleanup.policy", "compact")]);
    for (offset, key) in [(1, "NULL"), (2, "'a'"), (3, "NULL"), (4, "'b'")] {
        let columns = [
            ("key", key),
            ("payload", "'not json'"),
            ("payload_size", "8"),
            ("headers", "'[]'"),
        ];
        seed(&scene, offset, &columns);
    }
    for offset in 5..200 {
        seed_noise(&scene, offset, 64);
    }
    let daemon = scene.start_daemon_with(&[("KAFKA_DLQ_TOPIC", &compacted)]);
    wait_until("all are decided", PATIENCE, || unrelayed(&scene) == 0);
    let messages = read_topic(scene.brokers(), &compacted, 197);
    let offsets: Vec<i64> = messages.iter().map(offset_of).collect();
    let expected: Vec<i64> = (1..200).filter(|offset| ![1, 3].contains(offset)).collect();
    assert_eq!(offsets, expected, "in their order");

    let marks = refused(&scene);
    assert_eq!(marks.len(), 2, "{marks:?}");
    assert!(
        marks[0].starts_with(&format!("1 {compacted}: ")),
        "{marks:?}"
    );
    daemon.wait_until_logged("has refused 2 dead letters");
    let count = |name: &str| daemon.metric(&format!("orders_ingestor_dead_letters_{name}_total"));
    assert!((count("relay_refused") - 2.0).abs() < f64::EPSILON);
    assert!((count("relayed") - 197.0).abs() < f64::EPSILON);
    assert_eq!(health(&daemon).0["ok"], true);

    let listed = scene.run_well(&["dead-letters", "list", "--relay-refused", "--json"]);
    let rows: Vec<serde_json::Value> = listed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 2);
    assert!(
        rows[0]["relay_error"]
            .as_str()
            .unwrap()
            .starts_with(&compacted)
    );
    let table = scene.run_well(&["dead-letters", "list", "--relay-refused"]);
    assert_eq!(table.matches(" refused ").count(), 2, "{table}");
    let id = rows[1]["id"].to_string();
    let shown = scene.run_well(&["dead-letters", "show", &id]);
    assert!(
        shown.contains(&format!("{compacted}: InvalidRecord")),
        "{shown}"
    );
    assert!(daemon.stop().success());

    let other = format!("{}-other", scene.topic);
    create_topic(scene.brokers(), &other, 1, &[]);
    let daemon = scene.start_daemon_with(&[("KAFKA_DLQ_TOPIC", &other)]);
    let answer = scene.run_well(&["dead-letters", "relay-again", &id]);
    assert!(answer.starts_with('1'), "{answer}");
    assert_eq!(offset_of(&read_topic(scene.brokers(), &other, 1)[0]), 1);
    let refusal = scene.run_badly(&["dead-letters", "relay-again", &id]);
    assert!(refusal.contains("not refused"), "{refusal}");
    scene.run_well(&["dead-letters", "relay-again", "--all"]);
    let messages = read_topic(scene.brokers(), &other, 2);
    assert_eq!(messages.iter().map(offset_of).collect::<Vec<_>>(), [1, 3]);
    wait_until("all are noted", PATIENCE, || unrelayed(&scene) == 0);
    assert_eq!(refused(&scene), Vec::<String>::new());
    assert!(daemon.stop().success());
}

#[test]
fn a_topic_too_small_for_the_least_of_a_letter_stops_nothing_in_silence() {
    let scene = Scene::new(1);
    let topic = dlq_with(&scene, &[("max.message.bytes", "200")]);
    seed_noise(&scene, 1, 1_024);
    seed_noise(&scene, 2, 1_000_000);
    let daemon = scene.start_daemon_with(&[("KAFKA_DLQ_TOPIC", &topic)]);
    wait_until("both are decided", PATIENCE, || unrelayed(&scene) == 0);
    let marks = refused(&scene);
    assert_eq!(marks.len(), 2, "{marks:?}");
    assert!(marks[0].contains("Message size too large"), "{marks:?}");
    daemon.wait_until_logged("refused");
    assert!(daemon.stop().success());
}

#[test]
fn a_letter_is_published_with_the_present_time_and_says_the_original_one() {
    let scene = Scene::new(1);
    let settings = [
        ("message.timestamp.before.max.ms", "3600000"),
        ("message.timestamp.after.max.ms", "3600000"),
    ];
    let topic = dlq_with(&scene, &settings);
    for (offset, time) in [
        (1, "'9000-01-01T00:00:00Z'"),
        (2, "'2001-02-03T04:05:06.789Z'"),
        (3, "NULL"),
    ] {
        let columns = [
            ("payload", "'not json'"),
            ("payload_size", "8"),
            ("headers", "'[]'"),
            ("message_timestamp", time),
        ];
        seed(&scene, offset, &columns);
    }
    let now_ms = || {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        i64::try_from(since_1970.as_millis()).unwrap()
    };
    let before_ms = now_ms();
    let daemon = scene.start_daemon_with(&[("KAFKA_DLQ_TOPIC", &topic)]);
    let messages = read_topic(scene.brokers(), &topic, 3);
    let after_ms = now_ms();
    for message in &messages {
        let time_ms = message.timestamp().to_millis().unwrap();
        assert!((before_ms..=after_ms).contains(&time_ms), "{time_ms}");
    }
    let time = |index: usize| headers(&messages[index]).get("orders.timestamp").cloned();
    assert_eq!(time(0).as_deref(), Some("9000-01-01T00:00:00.000Z"));
    assert_eq!(time(1).as_deref(), Some("2001-02-03T04:05:06.789Z"));
    assert_eq!(time(2), None);
    assert!(daemon.stop().success());
}

#[test]
fn a_missing_topic_degrades_the_health_marks_nothing_and_heals() {
    let scene = Scene::new(1);
    let topic = format!("{}-dlq", scene.topic);
    seed_noise(&scene, 1, 64);
    let daemon = scene.start_daemon_with(&[("KAFKA_DLQ_TOPIC", &topic)]);
    wait_until("the health is degraded", PATIENCE, || {
        health(&daemon).1 == "degraded"
    });
    let (relay, _) = health(&daemon);
    assert_eq!(relay["ok"], false);
    let reason = relay["reason"].as_str().unwrap();
    assert!(
        reason.contains(&topic) && reason.contains("topic or partition"),
        "{reason}"
    );
    daemon.wait_until_logged("cannot relay dead letters");
    assert_eq!((refused(&scene).len(), unrelayed(&scene)), (0, 1));
    dlq(&scene);
    assert_eq!(read_topic(scene.brokers(), &topic, 1).len(), 1);
    wait_until("the health is restored", PATIENCE, || {
        health(&daemon).1 == "ok"
    });
    assert!(daemon.stop().success());
}

#[test]
fn brokers_that_are_away_degrade_the_health_and_mark_nothing() {
    let scene = Scene::new(1);
    let topic = dlq(&scene);
    seed_noise(&scene, 1, 64);
    let away = [
        ("KAFKA_DLQ_TOPIC", topic.as_str()),
        ("KAFKA_BROKERS", "127.0.0.1:1"),
    ];
    let daemon = scene.start_daemon_with(&away);
    daemon.wait_until_logged("cannot relay dead letters");
    let (relay, status) = health(&daemon);
    assert_eq!(
        (relay["ok"].as_bool(), status.as_str()),
        (Some(false), "degraded")
    );
    let reason = relay["reason"].as_str().unwrap();
    assert!(reason.contains("127.0.0.1:1"), "{reason}");
    assert_eq!((refused(&scene).len(), unrelayed(&scene)), (0, 1));
    assert!(daemon.stop().success());
}

#[test]
fn a_relay_without_authority_marks_nothing_and_heals_when_it_is_granted() {
    let scene = Scene::new(1);
    let topic = dlq(&scene);
    seed_noise(&scene, 1, 64);
    // The real broker of the tests authorises everybody.
    let cluster = MockCluster::new(1).unwrap();
    for name in [&scene.topic, &topic] {
        cluster.create_topic(name, 1, 1).unwrap();
    }
    cluster
        .coordinator(MockCoordinator::Group(scene.group.clone()), 1)
        .unwrap();
    let forbid = |api, code| cluster.request_errors(api, &[code]);
    // The client gives itself up for ever after the first error, and the topic after the second one.
    forbid(
        RDKafkaApiKey::InitProducerId,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
    );
    forbid(
        RDKafkaApiKey::Produce,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
    );
    let brokers = cluster.bootstrap_servers();
    let daemon = scene.start_daemon_with(&[
        ("KAFKA_DLQ_TOPIC", topic.as_str()),
        ("KAFKA_BROKERS", &brokers),
    ]);
    daemon.wait_until_logged("luster authorization failed");
    wait_until("it is published", PATIENCE, || unrelayed(&scene) == 0);
    assert_eq!(refused(&scene), Vec::<String>::new());
    wait_until("the relay is well", PATIENCE, || {
        health(&daemon).0["ok"] == true
    });
    assert!(daemon.stop().success());
}
