//! Messages as a shop sends them: mostly new orders, updates of a few hot ones, and some bad messages. It remembers what
//! Kafka acknowledged, and [`check`](super::checker) compares the database with that.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use shared::order::Order;
use shared::testing::{InvalidKind, OrderGenerator};

use super::checker::{Evidence, Violation, violations};
use super::{PATIENCE, Scene};

/// How many of a hundred messages are updates of hot orders, and how many are bad.
const UPDATES_PERCENT: u8 = 30;
const BAD_PERCENT: u8 = 1;
const HOT_ORDERS: usize = 20;

/// How often the database is read while a test waits for it.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A message that Kafka has acknowledged.
#[derive(Clone, Debug)]
pub struct Message {
    pub partition: i32,
    pub offset: i64,
    pub content: Content,
}

#[derive(Clone, Debug)]
pub enum Content {
    Order(Box<Order>),
    Bad(Vec<u8>),
}

/// Collects delivery reports: number of the message, partition, offset.
#[derive(Default)]
struct Receipts(Mutex<Vec<(usize, i32, i64)>>);

impl ClientContext for Receipts {}

impl ProducerContext for Receipts {
    type DeliveryOpaque = Box<usize>;

    fn delivery(&self, result: &DeliveryResult<'_>, number: Box<usize>) {
        let message = result.as_ref().expect("Kafka refused a message");
        let receipt = (*number, message.partition(), message.offset());
        self.0.lock().unwrap().push(receipt);
    }
}

pub struct Load {
    topic: String,
    producer: BaseProducer<Receipts>,
    generator: OrderGenerator,
    random: fastrand::Rng,
    /// The number of messages of each order so far.
    sequences: HashMap<String, u64>,
    hot: Vec<String>,
    messages: Vec<Message>,
}

impl Load {
    /// Prepares the scene's database and topic for [`Self::check`]. Nothing else may write to them.
    pub fn new(scene: &Scene) -> Self {
        scene.audit_writes();
        let producer = ClientConfig::new()
            .set("bootstrap.servers", scene.brokers())
            // Without this, a repeated send would be a second message.
            .set("enable.idempotence", "true")
            .create_with_context(Receipts::default())
            .unwrap();
        let mut generator = OrderGenerator::new(11, "2026-01-01T00:00:00Z".parse().unwrap());
        let hot = (0..HOT_ORDERS)
            .map(|_| generator.next_order().order_uid.to_string())
            .collect();
        Self {
            topic: scene.topic.clone(),
            producer,
            generator,
            random: fastrand::Rng::with_seed(11),
            sequences: HashMap::new(),
            hot,
            messages: Vec::new(),
        }
    }

    /// Sends `count` messages and waits until Kafka has them all.
    pub fn produce(&mut self, count: usize) {
        let contents = (0..count).map(|_| self.next_content()).collect();
        self.send(contents);
    }

    /// Sends a batch that has all kinds: a new order, a hot one, a bad message.
    pub fn produce_one_of_each(&mut self) {
        let contents = vec![self.new_order(), self.update(), self.bad()];
        self.send(contents);
    }

    /// Messages that Kafka has acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.messages.len()
    }

    fn next_content(&mut self) -> (String, Content) {
        let dice = self.random.u8(0..100);
        if dice < BAD_PERCENT {
            self.bad()
        } else if dice < BAD_PERCENT + UPDATES_PERCENT {
            self.update()
        } else {
            self.new_order()
        }
    }

    fn bad(&mut self) -> (String, Content) {
        let order = self.generator.next_order();
        let kind = InvalidKind::ALL[self.random.usize(..InvalidKind::ALL.len())];
        (order.order_uid.to_string(), Content::Bad(kind.of(&order).0))
    }

    fn new_order(&mut self) -> (String, Content) {
        let order = self.generator.next_order();
        self.numbered(order)
    }

    fn update(&mut self) -> (String, Content) {
        let uid = &self.hot[self.random.usize(..self.hot.len())];
        let order = self.generator.order_with_uid(uid);
        self.numbered(order)
    }

    /// Writes the message's number among the order's messages into a text field.
    fn numbered(&mut self, mut order: Order) -> (String, Content) {
        let uid = order.order_uid.to_string();
        let sequence = self.sequences.entry(uid.clone()).or_default();
        *sequence += 1;
        order.internal_signature = sequence.to_string().into();
        (uid, Content::Order(Box::new(order)))
    }

    fn send(&mut self, contents: Vec<(String, Content)>) {
        for (number, (key, content)) in contents.iter().enumerate() {
            let payload = match content {
                Content::Order(order) => serde_json::to_vec(order).unwrap(),
                Content::Bad(bytes) => bytes.clone(),
            };
            let mut record = BaseRecord::with_opaque_to(&self.topic, Box::new(number))
                .key(key)
                .payload(&payload);
            // The producer's queue may be full. Polling empties it.
            while let Err((_, back)) = self.producer.send(record) {
                record = back;
                self.producer.poll(Duration::from_millis(50));
            }
        }
        self.producer.flush(PATIENCE).unwrap();
        let mut receipts = std::mem::take(&mut *self.producer.context().0.lock().unwrap());
        assert_eq!(
            receipts.len(),
            contents.len(),
            "every message is acknowledged"
        );
        receipts.sort_unstable();
        let acknowledged = receipts.into_iter().zip(contents);
        self.messages.extend(
            acknowledged.map(|((_, partition, offset), (_, content))| Message {
                partition,
                offset,
                content,
            }),
        );
    }

    /// Waits until the ingestors have settled everything.
    pub fn wait_until_settled(&self, scene: &Scene) {
        let expected = i64::try_from(self.messages.len()).unwrap();
        let start = Instant::now();
        while scene.settled() < expected {
            assert!(
                start.elapsed() < PATIENCE,
                "{expected} records are not settled: {:?}",
                scene.progress()
            );
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Returns what is wrong with the database when everything is settled.
    pub fn check(&self, scene: &Scene) -> Vec<Violation> {
        violations(&self.messages, &Evidence::collect(&scene.database))
    }

    /// Waits until everything is settled, and asserts that nothing is wrong.
    pub fn assert_exactly_once(&self, scene: &Scene) {
        self.wait_until_settled(scene);
        let found = self.check(scene);
        let first: Vec<&Violation> = found.iter().take(20).collect();
        assert!(found.is_empty(), "{} violations: {first:#?}", found.len());
    }
}
