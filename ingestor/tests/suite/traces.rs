//! Traces: what the header of a message leads to, and that a collector in trouble holds nothing up.

use std::time::{Duration, Instant};

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::BaseRecord;
use shared::testing::{Manner, ReceivedSpan, TestCollector, wait_until};

use crate::support::{Daemon, PATIENCE, Scene};

/// The span of a producer.
const SPAN: &str = "00f067aa0ba902b7";

fn new_trace() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

fn start_traced(scene: &Scene, collector: &TestCollector, more: &[(&str, &str)]) -> Daemon {
    let endpoint = collector.endpoint();
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ("OTEL_TRACES_SAMPLER", "parentbased_always_off"),
    ];
    scene.start_daemon_with(&[&settings, more].concat())
}

/// Sends a message whose producer has a span in this trace.
fn send_traced(scene: &Scene, payload: &[u8], trace_id: &str, flags: &str) {
    let traceparent = format!("00-{trace_id}-{SPAN}-{flags}");
    let mut record: BaseRecord<'_, str, [u8]> = BaseRecord::to(&scene.topic);
    record.payload = Some(payload);
    record.headers = Some(
        OwnedHeaders::new()
            .insert(Header {
                key: "other",
                value: Some("value"),
            })
            .insert(Header {
                key: "traceparent",
                value: Some(&traceparent),
            })
            .insert(Header {
                key: "tracestate",
                value: Some("vendor=1"),
            }),
    );
    scene.send_record(record);
    scene.flush();
}

/// Sends a later state of an order.
fn send_order(scene: &mut Scene, uid: &str, trace_id: &str) {
    let payload = serde_json::to_vec(&scene.later(uid)).unwrap();
    send_traced(scene, &payload, trace_id, "01");
}

/// Waits for the span of the message of a trace.
fn message_span(collector: &TestCollector, trace_id: &str) -> ReceivedSpan {
    collector.wait_for("the message", |span| span.trace_id == trace_id)
}

/// Waits for the span of the batch that a message was in.
fn batch_of(collector: &TestCollector, message: &ReceivedSpan) -> ReceivedSpan {
    let batch = collector.wait_for("the batch", |span| message.is_linked_to(span));
    let sender = (message.trace_id.clone(), SPAN.to_owned());
    assert!(batch.links.contains(&sender), "{batch:#?}");
    batch
}

fn child(collector: &TestCollector, parent: &ReceivedSpan, name: &str) -> ReceivedSpan {
    collector.wait_for(name, |span| span.name == name && span.is_child_of(parent))
}

#[test]
fn the_trace_of_a_message_leads_to_the_transaction_that_stored_it() {
    let mut scene = Scene::new(1);
    let collector = TestCollector::start(Manner::Takes);
    let _daemon = start_traced(&scene, &collector, &[]);
    let trace_id = new_trace();
    scene.produce_orders(2);
    send_order(&mut scene, "traced", &trace_id);
    scene.wait_until_settled(3);

    let message = message_span(&collector, &trace_id);
    assert_eq!(message.name, format!("process {}", scene.topic));
    assert_eq!(message.parent_id, SPAN);
    assert_eq!(message.attribute("orders.fate"), "stored");
    assert_eq!(message.attribute("messaging.kafka.offset"), "2");
    assert_eq!(message.attribute("messaging.destination.name"), scene.topic);
    assert_eq!(message.resource["service.name"], "orders-ingestor");
    let batch = batch_of(&collector, &message);
    assert_ne!(batch.trace_id, trace_id);
    assert_eq!(batch.name, format!("store {}", scene.topic));
    assert_eq!(batch.attribute("orders.offset.last"), "2");
    assert_eq!(batch.attribute("orders.dead_letters"), "0");
    assert_eq!(batch.attribute("messaging.destination.partition.id"), "0");
    let transaction = child(&collector, &batch, "transaction");
    for step in [
        "fence",
        "lock existing orders",
        "copy new orders",
        "look at the ledger",
        "notify the caches",
        "COMMIT",
    ] {
        child(&collector, &transaction, step);
    }
    let everything = format!("{:?}", collector.spans());
    assert!(!everything.contains("traced"), "{everything}");

    // A later state of the order replaces it.
    let trace_id = new_trace();
    send_order(&mut scene, "traced", &trace_id);
    let batch = batch_of(&collector, &message_span(&collector, &trace_id));
    let transaction = child(&collector, &batch, "transaction");
    child(&collector, &transaction, "replace orders");
}

#[test]
fn a_message_says_what_became_of_it() {
    let mut scene = Scene::new(1);
    let collector = TestCollector::start(Manner::Takes);
    let traces: Vec<String> = (0..3).map(|_| new_trace()).collect();
    // One batch, because all of them are there when the daemon starts.
    send_traced(&scene, b"{", &traces[0], "01");
    send_order(&mut scene, "a", &traces[1]);
    send_order(&mut scene, "a", &traces[2]);
    let _daemon = start_traced(&scene, &collector, &[("BATCH_MAX_AGE_MS", "2000")]);
    scene.wait_until_settled(3);
    let spans: Vec<ReceivedSpan> = traces
        .iter()
        .map(|trace_id| message_span(&collector, trace_id))
        .collect();
    let fates: Vec<&str> = spans
        .iter()
        .map(|span| span.attribute("orders.fate"))
        .collect();
    assert_eq!(fates, ["dead_letter", "superseded", "stored"]);
    assert!(spans[0].has_failed && !spans[1].has_failed);
    assert_eq!(spans[0].attribute("error.type"), "not_json");
    let batch = batch_of(&collector, &spans[0]);
    assert!(spans.iter().all(|span| span.is_linked_to(&batch)));
    assert_eq!(batch.links.len(), 3);
    assert_eq!(batch.attribute("orders.stored"), "1");
    let transaction = child(&collector, &batch, "transaction");
    child(&collector, &transaction, "insert dead letters");
}

#[test]
fn a_message_that_is_not_sampled_leaves_nothing() {
    let mut scene = Scene::new(1);
    let collector = TestCollector::start(Manner::Takes);
    let _daemon = start_traced(&scene, &collector, &[]);
    let order = serde_json::to_vec(&scene.later("a")).unwrap();
    send_traced(&scene, &order, &new_trace(), "00");
    scene.produce_orders(3);
    scene.wait_until_settled(4);
    let trace_id = new_trace();
    send_order(&mut scene, "b", &trace_id);
    let message = message_span(&collector, &trace_id);
    let batch = batch_of(&collector, &message);
    let spans = collector.spans();
    let ours = [&message.trace_id, &batch.trace_id];
    assert!(
        spans.iter().all(|span| ours.contains(&&span.trace_id)),
        "{spans:#?}"
    );
}

#[test]
fn a_batch_links_to_no_more_messages_than_a_span_may_have_links() {
    let mut scene = Scene::new(1);
    let collector = TestCollector::start(Manner::Takes);
    for number in 0..200 {
        let payload = serde_json::to_vec(&scene.later(&format!("uid-{number}"))).unwrap();
        send_traced(&scene, &payload, &new_trace(), "01");
    }
    let daemon = start_traced(&scene, &collector, &[("BATCH_MAX_AGE_MS", "2000")]);
    scene.wait_until_settled(200);
    assert!(daemon.stop().success());
    let spans = collector.spans();
    let batches = spans.iter().filter(|span| span.name.starts_with("store "));
    let most = batches.map(|batch| batch.links.len()).max();
    assert_eq!(most, Some(128));
}

#[test]
fn a_batch_that_is_retried_says_so() {
    let mut scene = Scene::new(1);
    scene.produce_orders(1);
    let collector = TestCollector::start(Manner::Takes);
    let daemon = start_traced(&scene, &collector, &[]);
    scene.wait_until_settled(1);
    scene.database.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'sick'; END $$;
         CREATE TRIGGER fail BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION fail()",
    );
    let trace_id = new_trace();
    send_order(&mut scene, "a", &trace_id);
    daemon.wait_until_logged("cannot store a batch, retrying: sick");
    scene.database.execute("DROP TRIGGER fail ON orders");
    scene.wait_until_settled(2);

    let batch = batch_of(&collector, &message_span(&collector, &trace_id));
    assert!(batch.events.contains(&"retry".to_owned()), "{batch:#?}");
    assert!(!batch.has_failed);
    let attempt = |has_failed| {
        collector.wait_for("an attempt", |span| {
            span.name == "transaction" && span.is_child_of(&batch) && span.has_failed == has_failed
        })
    };
    let failed = attempt(true);
    assert!(child(&collector, &failed, "copy new orders").has_failed);
    attempt(false);
    child(&collector, &batch, "look whether the batch is stored");
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("retrying: sick"));
    assert!(line.unwrap().contains(&batch.trace_id), "{log}");
}

#[test]
fn a_sampler_can_trace_every_batch() {
    let mut scene = Scene::new(1);
    scene.produce_orders(5);
    let collector = TestCollector::start(Manner::Takes);
    let always = [("OTEL_TRACES_SAMPLER", "always_on")];
    let daemon = start_traced(&scene, &collector, &always);
    scene.wait_until_settled(5);
    assert!(daemon.stop().success());
    let spans = collector.spans();
    let batches = spans.iter().filter(|span| span.name.starts_with("store "));
    let count = |span: &ReceivedSpan| -> i64 {
        let count = span.attribute("messaging.batch.message_count");
        count.parse().unwrap()
    };
    assert_eq!(batches.map(count).sum::<i64>(), 5);
}

#[test]
fn a_collector_that_hangs_or_refuses_holds_nothing_up() {
    for manner in [Manner::Hangs, Manner::Refuses] {
        let mut scene = Scene::new(1);
        let collector = TestCollector::start(manner);
        let more = [
            ("OTEL_TRACES_SAMPLER", "always_on"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "10"),
            ("SHUTDOWN_TIMEOUT_MS", "3000"),
        ];
        let daemon = start_traced(&scene, &collector, &more);
        for _ in 0..5 {
            scene.produce_orders(20);
        }
        scene.wait_until_settled(100);
        let outcome = match manner {
            Manner::Hangs => "dropped",
            _ => "failed",
        };
        let series = format!("orders_ingestor_trace_spans_total{{outcome=\"{outcome}\"}}");
        wait_until("spans are counted", PATIENCE, || {
            scene.produce_orders(1);
            let metrics = daemon.get("/metrics").unwrap().1;
            let mut lines = metrics.lines();
            lines.any(|line| line.starts_with(&series) && !line.ends_with(" 0"))
        });
        // The log tells of it, and not once per batch.
        assert!(
            daemon.log().matches("spans").count() <= 6,
            "{}",
            daemon.log()
        );
        let stopped_at = Instant::now();
        assert!(daemon.stop().success());
        assert!(stopped_at.elapsed() < Duration::from_secs(6));
    }
}
