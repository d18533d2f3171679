//! The real ingestor, which runs in this process and reads a topic of its own on the Kafka of the tests.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ingestor::config::Cli;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use shared::db::rights::Role;
use shared::testing::{TestDatabase, parse_arguments};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;

use crate::support::{PATIENCE, model, send_bytes};

const PARTITIONS: i32 = 2;
/// How many orders a feed sends at once. Together with [`INTERVAL`] this makes 1,000 orders per second, which a debug build can
/// store while other tests run.
const ORDERS_AT_ONCE: usize = 10;
const INTERVAL: Duration = Duration::from_millis(10);
const METRICS: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

pub struct Ingestion {
    topic: String,
    producer: ThreadedProducer<DefaultProducerContext>,
    ops_port: u16,
    stop: CancellationToken,
    daemon: Option<tokio::task::JoinHandle<anyhow::Result<()>>>,
}

impl Ingestion {
    pub async fn start(database: &TestDatabase) -> Self {
        let brokers = std::env::var("KAFKA_BROKERS").expect("KAFKA_BROKERS is not set");
        let topic = format!("test-{}", uuid::Uuid::new_v4());
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &brokers);
        let admin: AdminClient<DefaultClientContext> = client.create().unwrap();
        let new_topics = [NewTopic::new(
            &topic,
            PARTITIONS,
            TopicReplication::Fixed(1),
        )];
        let created = admin.create_topics(&new_topics, &AdminOptions::new());
        for outcome in created.await.unwrap() {
            outcome.unwrap();
        }

        let arguments = [
            ["--kafka-brokers", &brokers],
            ["--kafka-topic", &topic],
            ["--kafka-group-id", &topic],
        ];
        let cli: Cli = parse_arguments(arguments.as_flattened()).unwrap();
        let mut settings = cli.settings().unwrap();
        settings.database = database.settings_as(Role::Ingestor);
        let ops_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ops_port = ops_listener.local_addr().unwrap().port();
        let stop = CancellationToken::new();
        let config = settings.into_run_config(false);
        let daemon = tokio::spawn(ingestor::run(config, ops_listener, stop.clone()));
        Self {
            topic,
            producer: client.create().unwrap(),
            ops_port,
            stop,
            daemon: Some(daemon),
        }
    }

    /// Sends the model order with another id and amount.
    pub fn send(&self, uid: &str, amount: i64) {
        send(&self.producer, &self.topic, uid, amount);
    }

    /// Starts sending new orders.
    pub fn feed(&self) -> Feed {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (producer, topic) = (self.producer.clone(), self.topic.clone());
        let thread = thread::spawn(move || {
            let mut sent = 0;
            let mut due = Instant::now();
            while !stopped.is_cancelled() {
                for _ in 0..ORDERS_AT_ONCE {
                    send(&producer, &topic, &fed_uid(sent), 1);
                    sent += 1;
                }
                due += INTERVAL;
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            producer.flush(PATIENCE).unwrap();
            sent
        });
        Feed { stop, thread }
    }

    /// The usage of the database's queue of notifications, as operators see it.
    pub async fn reported_queue_usage(&self) -> f64 {
        let metrics = send_bytes(self.ops_port, METRICS).await.body;
        let name = "orders_ingestor_notify_queue_usage_ratio ";
        let value = metrics.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap().parse().unwrap()
    }

    pub async fn stop(mut self) {
        self.stop.cancel();
        self.daemon.take().unwrap().await.unwrap().unwrap();
    }
}

impl Drop for Ingestion {
    /// Stops the daemon after a failed test as well. Otherwise the test's runtime would wait for the daemon's threads, and these
    /// would wait for a database that is gone.
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(daemon) = self.daemon.take() {
            block_in_place(|| Handle::current().block_on(daemon)).ok();
        }
    }
}

/// Orders on their way into the topic.
pub struct Feed {
    stop: CancellationToken,
    thread: JoinHandle<usize>,
}

impl Feed {
    /// Stops the feed, and returns how many orders were sent.
    pub fn finish(self) -> usize {
        self.stop.cancel();
        self.thread.join().unwrap()
    }
}

/// The uid is as long as a uid may be, so that events are large.
pub fn fed_uid(number: usize) -> String {
    format!("{number:064}")
}

fn send(producer: &ThreadedProducer<DefaultProducerContext>, topic: &str, uid: &str, amount: i64) {
    let mut order = model();
    order.order_uid = uid.parse().unwrap();
    order.payment.amount = amount;
    let payload = serde_json::to_vec(&order).unwrap();
    let sent = producer.send(BaseRecord::to(topic).key(uid).payload(&payload));
    sent.map_err(|(error, _)| error).unwrap();
}
