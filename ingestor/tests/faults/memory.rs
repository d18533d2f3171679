//! The ingestor's memory as the kernel counts it, including the client library and its buffers.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::json;
use shared::testing::wait_until;

use crate::support::{Daemon, Scene};

/// The default of `INGEST_MEMORY_MB`. A debug build has 25 MB of the program's files in memory, a release build 18 MB.
const BUDGET_MB: usize = if cfg!(debug_assertions) { 96 + 7 } else { 96 };
/// The time for a drain in a debug build while other tests run.
const PATIENCE: Duration = Duration::from_secs(600);

/// Sends messages in compressed batches, as producers of large messages do.
struct Sender {
    producer: BaseProducer,
    topic: String,
    sent: i64,
}

impl Sender {
    fn new(scene: &Scene, compression: &str) -> Self {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", scene.brokers())
            .set("compression.type", compression)
            .set("linger.ms", "20")
            .set("batch.size", "1000000")
            .set("queue.buffering.max.kbytes", "65536")
            .create()
            .unwrap();
        Self {
            producer,
            topic: scene.topic.clone(),
            sent: 0,
        }
    }

    fn send(&mut self, key: &[u8], payload: &[u8], headers: Option<OwnedHeaders>) {
        let mut record = BaseRecord::to(&self.topic).key(key).payload(payload);
        record.headers = headers;
        loop {
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    self.producer.poll(Duration::from_millis(20));
                }
                Err((error, _)) => panic!("{error}"),
            }
        }
        self.sent += 1;
    }

    fn flush(&self) {
        self.producer.flush(PATIENCE).unwrap();
    }
}

/// Orders as text, each with a different id.
struct Template {
    before: String,
    after: String,
}

impl Template {
    /// `more` is JSON that follows the id and ends with a comma.
    fn new(scene: &mut Scene, items: usize, more: &str) -> Self {
        let mut order = scene.later("TEMPLATE");
        let first = order.items[0].clone();
        order.items = (0..items).map(|_| first.clone()).collect();
        for (number, item) in order.items.iter_mut().enumerate() {
            item.chrt_id = fastrand::i64(0..1 << 40);
            item.rid = format!("{:032x}", fastrand::u128(..)).into();
            item.name = format!("{} {number}", item.name).into();
        }
        let text = serde_json::to_string(&order).unwrap();
        let (before, after) = text.split_once("TEMPLATE\",").unwrap();
        Self {
            before: before.to_owned(),
            after: format!("\",{more}{after}"),
        }
    }

    fn with_uid(&self, uid: &str) -> Vec<u8> {
        [&self.before, uid, &self.after].concat().into_bytes()
    }
}

fn peak_mb(daemon: &Daemon) -> usize {
    servers::proc::peak_memory_mib(daemon.pid()).unwrap() as usize
}

fn wait_until_settled(scene: &Scene, records: i64) {
    wait_until("everything is settled", PATIENCE, || {
        std::thread::sleep(Duration::from_millis(200));
        scene.settled() >= records
    });
    assert_eq!(scene.settled(), records);
}

/// Lets the daemon work against a database that does nothing for a while, so that everything that can fill up is full.
fn drain_after_a_stall(scene: &Scene, records: i64) -> Daemon {
    let mut holder = scene.database.connect();
    holder
        .batch_execute("BEGIN; LOCK TABLE orders, dead_letters IN ACCESS EXCLUSIVE MODE")
        .unwrap();
    let daemon = scene.start_daemon();
    // Longer than the 5 s after which reading is paused.
    std::thread::sleep(Duration::from_secs(12));
    holder.batch_execute("COMMIT").unwrap();
    let started_at = Instant::now();
    wait_until_settled(scene, records);
    let peak = peak_mb(&daemon);
    eprintln!(
        "{records} records in {:?}, peak {peak} MiB",
        started_at.elapsed()
    );
    daemon
}

fn assert_within_budget(daemon: &Daemon) {
    let peak = peak_mb(daemon);
    assert!(peak <= BUDGET_MB, "{peak} MiB of {BUDGET_MB}");
}

#[test]
fn a_million_small_orders() {
    const ORDERS: usize = 1_000_000;
    let mut scene = Scene::new(4);
    // As different from each other as a shop's orders: equal ones would be compressed to a hundredth.
    let templates: Vec<Template> = (0..1_000)
        .map(|number| Template::new(&mut scene, 1 + number % 3, ""))
        .collect();
    let mut sender = Sender::new(&scene, "lz4");
    for number in 0..ORDERS {
        let uid = format!("order-{number:08}");
        let template = &templates[number % templates.len()];
        sender.send(uid.as_bytes(), &template.with_uid(&uid), None);
    }
    sender.flush();
    let daemon = drain_after_a_stall(&scene, sender.sent);
    assert_eq!((scene.stored(), scene.dead_letters()), (sender.sent, 0));
    assert_within_budget(&daemon);
}

#[test]
fn ten_thousand_orders_of_100_kb() {
    const ORDERS: i64 = 10_000;
    let mut scene = Scene::new(4);
    let many_items = Template::new(&mut scene, 300, "");
    let padding: String = (0..98_000).map(|_| fastrand::alphanumeric()).collect();
    let padded = Template::new(&mut scene, 2, &format!("\"padding\": \"{padding}\","));
    let mut sender = Sender::new(&scene, "lz4");
    for number in 0..ORDERS {
        let uid = format!("order-{number:08}");
        let template = if number % 4 == 0 {
            &many_items
        } else {
            &padded
        };
        sender.send(uid.as_bytes(), &template.with_uid(&uid), None);
    }
    sender.flush();
    let daemon = drain_after_a_stall(&scene, ORDERS);
    assert_eq!((scene.stored(), scene.dead_letters()), (ORDERS, 0));
    assert_within_budget(&daemon);
}

/// Kinds of messages that take more memory than their bytes, or that have many bytes in unusual places.
#[derive(Clone, Copy, Debug)]
enum Greedy {
    LongKey,
    LongKeyOfBad,
    LongBad,
    ManyHeaders,
    ManyHeadersOfBad,
    LongHeader,
    ManyItems,
    Brackets,
}

#[test]
fn messages_that_are_made_to_take_memory() {
    use Greedy::*;
    let kinds = [
        LongKey,
        LongKeyOfBad,
        LongBad,
        ManyHeaders,
        ManyHeadersOfBad,
        LongHeader,
        ManyItems,
        Brackets,
    ];
    let tests = kinds.map(|kind| std::thread::spawn(move || drain_greedy(kind)));
    for test in tests {
        test.join().unwrap();
    }
}

fn drain_greedy(kind: Greedy) {
    const MESSAGES: usize = 300;
    let mut scene = Scene::new(4);
    let small = Template::new(&mut scene, 1, "");
    // As many items as possible in as few bytes as possible.
    let mut many_items = serde_json::to_value(scene.later("TEMPLATE")).unwrap();
    let item = json!({"chrt_id": 1, "name": "a", "brand": "b", "price": 1, "total_price": 1});
    many_items["items"] = json!(vec![item; 1_000]);
    let many_items = many_items.to_string();
    let noise: Vec<u8> = (0..900_000).map(|_| fastrand::u8(..)).collect();
    let text: String = (0..900_000).map(|_| fastrand::alphanumeric()).collect();
    let header = |value| Header {
        key: "",
        value: Some(value),
    };
    let many_headers = || {
        let none = OwnedHeaders::new_with_capacity(50_000);
        (0..50_000).fold(none, |headers, _| headers.insert(header("")))
    };
    let mut sender = Sender::new(&scene, "none");
    for number in 0..MESSAGES {
        let uid = format!("order-{number:08}");
        let key = uid.as_bytes();
        let order = small.with_uid(&uid);
        match kind {
            Greedy::LongKey => sender.send(&noise[number..], &order, None),
            Greedy::LongKeyOfBad => sender.send(&noise[number..], b"bad", None),
            Greedy::LongBad => sender.send(key, &noise, None),
            Greedy::ManyHeaders => sender.send(key, &order, Some(many_headers())),
            Greedy::ManyHeadersOfBad => sender.send(key, b"bad", Some(many_headers())),
            Greedy::LongHeader => {
                let headers = OwnedHeaders::new().insert(header(text.as_str()));
                sender.send(key, &order, Some(headers));
            }
            Greedy::ManyItems => {
                sender.send(key, many_items.replace("TEMPLATE", &uid).as_bytes(), None);
            }
            Greedy::Brackets => sender.send(key, &vec![b'['; 256 * 1024], None),
        }
    }
    sender.flush();
    let daemon = drain_after_a_stall(&scene, sender.sent);
    // librdkafka's queue is bounded by the bytes of the values: keys and headers add to the budget.
    if !matches!(
        kind,
        Greedy::LongKey | Greedy::LongKeyOfBad | Greedy::LongHeader
    ) {
        assert_within_budget(&daemon);
    }
}
