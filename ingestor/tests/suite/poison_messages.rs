//! Messages that can never become an order.

use shared::testing::InvalidKind;

use crate::support::Scene;

#[test]
fn invalid_messages_become_dead_letters_and_good_ones_are_stored() {
    let mut scene = Scene::new(1);
    let good = scene.produce_orders(10);
    let mut expected = Vec::new();
    for kind in InvalidKind::ALL {
        let (message, reason) = kind.of(&scene.later("unused"));
        scene.send(Some("bad"), Some(&message));
        expected.push(reason.to_owned());
    }
    scene.flush();
    let more = scene.produce_orders(10);
    let too_large = vec![b' '; 300 * 1024];
    scene.send(None, Some(&too_large));
    expected.push("too_large".to_owned());
    // It is the last one, so that no later good message can hide that its offset does not advance.
    scene.send(Some("gone"), None);
    scene.flush();
    expected.push("tombstone".to_owned());

    let daemon = scene.start_daemon();
    let records = i64::try_from(good.len() + more.len() + expected.len()).unwrap();
    scene.wait_until_settled(records);
    assert_eq!(scene.stored(), 20);
    let reasons = scene
        .database
        .texts("SELECT reason AS value FROM dead_letters ORDER BY \"offset\"");
    assert_eq!(reasons, expected);
    assert!((daemon.metric("orders_ingestor_dead_letters_total") - 7.0).abs() < f64::EPSILON);
}

#[test]
fn a_dead_letter_keeps_the_bytes_the_key_and_the_headers() {
    let scene = Scene::new(1);
    let payload = b"\xff\x00 not json";
    let headers = rdkafka::message::OwnedHeaders::new().insert(rdkafka::message::Header {
        key: "trace",
        value: Some("abc"),
    });
    let producer: rdkafka::producer::BaseProducer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", scene.brokers())
        .create()
        .unwrap();
    let record = rdkafka::producer::BaseRecord::to(&scene.topic)
        .key("k")
        .payload(&payload[..])
        .headers(headers);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    rdkafka::producer::Producer::flush(&producer, crate::support::PATIENCE).unwrap();

    let _daemon = scene.start_daemon();
    scene.wait_until_settled(1);
    let rows = scene.database.texts(
        "SELECT concat_ws('|', encode(key, 'escape'), encode(payload, 'hex'), payload_size, headers, state,
                          message_timestamp IS NOT NULL) AS value FROM dead_letters",
    );
    assert_eq!(
        rows,
        [r#"k|ff00206e6f74206a736f6e|11|[{"key": "trace", "value": "YWJj"}]|new|t"#]
    );
}
