//! What every test of the suite needs: a topic, a database, the program as a child process, an api.

mod api_process;
pub mod checker;
pub mod cuts;
mod daemon;
pub mod load;
pub mod postgres_proxy;
mod raw_record;
pub mod token_endpoint;
mod topic;
mod watch;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::OwnedMessage;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use rdkafka::{Offset, TopicPartitionList};
use shared::db::rights::Role;
use shared::order::Order;
use shared::testing::{OrderGenerator, TestDatabase, variables_of, wait_until};

pub use api_process::Api;
pub use daemon::{Daemon, command};
pub use load::Load;
pub use raw_record::{RawHeader, RawRecord};
pub use topic::{Answer, segment_of};
pub use watch::Watch;

/// Long enough for a loaded machine. What tests wait for usually takes a second.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A topic and a database of a test's own.
pub struct Scene {
    pub database: TestDatabase,
    pub topic: String,
    pub group: String,
    brokers: String,
    producer: BaseProducer,
    generator: OrderGenerator,
}

impl Scene {
    pub fn new(partitions: i32) -> Self {
        Self::with_database(partitions, TestDatabase::create())
    }

    pub fn with_database(partitions: i32, database: TestDatabase) -> Self {
        let brokers = std::env::var("KAFKA_BROKERS")
            .expect("KAFKA_BROKERS is not set: run the tests by `make test`");
        Self::with_servers(partitions, database, brokers, &[])
    }

    /// Uses the test's own brokers, and these settings of the topic.
    pub fn with_servers(
        partitions: i32,
        database: TestDatabase,
        brokers: String,
        topic_settings: &[(&str, &str)],
    ) -> Self {
        let topic = format!("test-{}", uuid::Uuid::new_v4());
        create_topic(&brokers, &topic, partitions, topic_settings);
        Self::with_topic(database, brokers, topic)
    }

    /// Uses librdkafka's in-process broker, for errors that a real one does not give on demand.
    pub fn on_mock(cluster: &MockCluster<'_, DefaultProducerContext>) -> Self {
        let topic = format!("test-{}", uuid::Uuid::new_v4());
        cluster.create_topic(&topic, 1, 1).unwrap();
        Self::with_topic(TestDatabase::create(), cluster.bootstrap_servers(), topic)
    }

    fn with_topic(database: TestDatabase, brokers: String, topic: String) -> Self {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", &brokers)
            .create()
            .unwrap();
        let generator = OrderGenerator::new(7, "2026-01-01T00:00:00Z".parse().unwrap());
        Self {
            database,
            group: format!("group-{topic}"),
            topic,
            brokers,
            producer,
            generator,
        }
    }

    /// Uses librdkafka's in-process broker, for errors that a real one does not give on demand.
    pub fn with_mock_broker(
        partitions: i32,
    ) -> (Self, MockCluster<'static, DefaultProducerContext>) {
        let cluster = MockCluster::new(1).unwrap();
        let topic = format!("test-{}", uuid::Uuid::new_v4());
        cluster.create_topic(&topic, partitions, 1).unwrap();
        let scene = Self::with_topic(TestDatabase::create(), cluster.bootstrap_servers(), topic);
        (scene, cluster)
    }

    /// The program's environment.
    pub fn environment(&self) -> Vec<(String, String)> {
        self.environment_as(Role::Ingestor)
    }

    /// The program's environment for a command that another role of the database runs.
    pub fn environment_as(&self, role: Role) -> Vec<(String, String)> {
        let mut variables = variables_of(&self.database.settings_as(role));
        let more = [
            ("KAFKA_BROKERS", self.brokers.as_str()),
            ("KAFKA_TOPIC", &self.topic),
            ("KAFKA_GROUP_ID", &self.group),
            // Any port that is free: other tests run at the same time.
            ("INGESTOR_PORT", "0"),
            // The group notices in seconds that a member is gone.
            (
                "KAFKA_CONFIG",
                "session.timeout.ms=6000,heartbeat.interval.ms=1000",
            ),
        ];
        variables.extend(more.map(|(name, value)| (name.to_owned(), value.to_owned())));
        variables
    }

    pub fn start_daemon(&self) -> Daemon {
        self.start_daemon_with(&[])
    }

    pub fn start_daemon_with(&self, more: &[(&str, &str)]) -> Daemon {
        let mut environment = self.environment();
        environment.extend(
            more.iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        Daemon::start(&environment)
    }

    /// Sends new orders, keyed by uid, and waits until Kafka has them all.
    pub fn produce_orders(&mut self, count: usize) -> Vec<Order> {
        let orders: Vec<Order> = (0..count).map(|_| self.generator.next_order()).collect();
        self.produce(&orders);
        orders
    }

    /// A later state of an order.
    pub fn later(&mut self, uid: &str) -> Order {
        self.generator.order_with_uid(uid)
    }

    pub fn produce(&self, orders: &[Order]) {
        orders.iter().for_each(|order| self.send_order(order));
        self.flush();
    }

    /// Sends an order, keyed by uid; Kafka has it after [`Self::flush`].
    pub fn send_order(&self, order: &Order) {
        self.send(
            Some(order.order_uid.as_str()),
            Some(&serde_json::to_vec(order).unwrap()),
        );
    }

    /// Sends new orders to one partition, and waits until Kafka has them all.
    pub fn produce_to(&mut self, partition: i32, count: usize) -> Vec<Order> {
        let orders: Vec<Order> = (0..count).map(|_| self.generator.next_order()).collect();
        self.produce_again(partition, &orders);
        orders
    }

    /// Sends these orders to one partition, and waits until Kafka has them all.
    pub fn produce_again(&self, partition: i32, orders: &[Order]) {
        for order in orders {
            let payload = serde_json::to_vec(order).unwrap();
            let mut record: BaseRecord<'_, str, [u8]> = BaseRecord::to(&self.topic);
            record.payload = Some(&payload);
            record.partition = Some(partition);
            self.send_record(record);
        }
        self.flush();
    }

    /// Sends an order with a timestamp of the producer's choice, and waits until Kafka has it.
    pub fn produce_at(&self, order: &Order, timestamp_ms: i64) {
        let payload = serde_json::to_vec(order).unwrap();
        self.send_at(
            Some(order.order_uid.as_str()),
            Some(&payload),
            Some(timestamp_ms),
        );
        self.flush();
    }

    /// Sends a message as it is.
    pub fn send(&self, key: Option<&str>, payload: Option<&[u8]>) {
        self.send_at(key, payload, None);
    }

    /// The same, with a timestamp of the producer's choice.
    pub fn send_at(&self, key: Option<&str>, payload: Option<&[u8]>, timestamp_ms: Option<i64>) {
        let mut record: BaseRecord<'_, str, [u8]> = BaseRecord::to(&self.topic);
        record.key = key;
        record.payload = payload;
        record.timestamp = timestamp_ms;
        self.send_record(record);
    }

    /// Sends a record to the topic.
    pub fn send_record(&self, mut record: BaseRecord<'_, str, [u8]>) {
        loop {
            match self.producer.send(record) {
                Ok(()) => return,
                // The producer's queue is full. Polling empties it.
                Err((_, back)) => {
                    record = back;
                    self.producer.poll(Duration::from_millis(50));
                }
            }
        }
    }

    pub fn flush(&self) {
        self.producer.flush(PATIENCE).unwrap();
    }

    /// Adds partitions to the topic, and makes a producer that knows them.
    pub fn add_partitions(&mut self, total: usize) {
        let (admin, runtime) = admin(&self.brokers);
        let grown = runtime.block_on(admin.create_partitions(
            &[NewPartitions::new(&self.topic, total)],
            &AdminOptions::new(),
        ));
        grown
            .unwrap()
            .into_iter()
            .for_each(|outcome| drop(outcome.unwrap()));
        self.producer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .create()
            .unwrap();
    }

    /// Makes the broker delete the older records of partition 0, as retention does.
    pub fn delete_records_below(&self, offset: i64) {
        let (admin, runtime) = admin(&self.brokers);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, 0, Offset::Offset(offset))
            .unwrap();
        runtime
            .block_on(admin.delete_records(&list, &AdminOptions::new()))
            .unwrap();
    }

    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// The number of settled records of all partitions, according to the database.
    pub fn settled(&self) -> i64 {
        self.database
            .integer("SELECT coalesce(sum(next_offset), 0)::bigint AS value FROM consumer_offsets")
    }

    pub fn wait_until_settled(&self, records: i64) {
        let start = Instant::now();
        while self.settled() < records {
            assert!(
                start.elapsed() < PATIENCE,
                "{records} records are not settled: {:?}",
                self.progress()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.settled(), records);
    }

    /// The offset of each partition, for the message of a failure.
    fn progress(&self) -> Vec<String> {
        self.database.texts(
            "SELECT concat_ws(' ', partition, next_offset, epoch, owner) AS value FROM consumer_offsets ORDER BY partition",
        )
    }

    pub fn stored(&self) -> i64 {
        self.database
            .integer("SELECT count(*) AS value FROM orders")
    }

    pub fn dead_letters(&self) -> i64 {
        self.database
            .integer("SELECT count(*) AS value FROM dead_letters")
    }

    /// Makes the database record every write of an order, in the transaction that writes it.
    pub fn audit_writes(&self) {
        self.database.execute(checker::INSTALL);
    }

    /// Locks the row of partition 0 as an operator does, until the returned connection commits.
    pub fn lock_row_of_partition_0(&self) -> PgConnection {
        let mut holder = self.database.connect();
        holder
            .batch_execute(
                "SET application_name = 'a-person'; SET idle_in_transaction_session_timeout = 0;
                 BEGIN; SELECT FROM consumer_offsets WHERE partition = 0 FOR UPDATE",
            )
            .unwrap();
        holder
    }

    /// Makes each COMMIT that moves an offset wait until the returned connection is closed.
    pub fn hold_commits(&self) -> PgConnection {
        let mut holder = self.database.connect();
        // A deferred trigger runs within the COMMIT.
        holder
            .batch_execute(
                "CREATE FUNCTION wait_for_test() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                     PERFORM pg_advisory_xact_lock_shared(4);
                     RETURN NULL;
                 END $$;
                 CREATE CONSTRAINT TRIGGER held AFTER UPDATE ON consumer_offsets DEFERRABLE INITIALLY DEFERRED
                     FOR EACH ROW WHEN (OLD.next_offset <> NEW.next_offset) EXECUTE FUNCTION wait_for_test();
                 SELECT pg_advisory_lock(4);",
            )
            .unwrap();
        holder
    }

    pub fn wait_until_a_commit_is_held(&self) {
        let held = "SELECT count(*) AS value FROM pg_stat_activity
            WHERE datname = current_database() AND query = 'COMMIT' AND wait_event = 'advisory'";
        wait_until("a COMMIT is held", PATIENCE, || {
            self.database.integer(held) > 0
        });
    }

    pub fn wait_until_a_lock_is_awaited(&self) {
        let waiting =
            "SELECT count(*) AS value FROM pg_stat_activity WHERE datname = current_database()
            AND application_name = 'orders-ingestor' AND wait_event_type = 'Lock'";
        wait_until("the daemon waits for a lock", PATIENCE, || {
            self.database.integer(waiting) > 0
        });
    }

    /// Asserts that every order is stored whole and was written once.
    pub fn assert_each_stored_once(&self, orders: &[Order]) {
        let count = i64::try_from(orders.len()).unwrap();
        assert_eq!(self.stored(), count);
        assert_eq!(
            self.database.integer("SELECT count(*) AS value FROM audit"),
            count,
            "an order was written twice"
        );
        let places = "SELECT count(DISTINCT (partition, \"offset\")) AS value FROM audit";
        assert_eq!(self.database.integer(places), count);
        let items: usize = orders.iter().map(|order| order.items.len()).sum();
        assert_eq!(
            self.database
                .integer("SELECT count(*) AS value FROM order_items"),
            i64::try_from(items).unwrap()
        );
        let stored: HashSet<String> = self
            .database
            .texts("SELECT order_uid AS value FROM orders")
            .into_iter()
            .collect();
        assert!(
            orders
                .iter()
                .all(|order| stored.contains(order.order_uid.as_str()))
        );
        assert_eq!(self.dead_letters(), 0);
    }
}

/// Reads `count` messages of a topic's partition 0, and those that follow immediately.
pub fn read_topic(brokers: &str, topic: &str, count: usize) -> Vec<OwnedMessage> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "nobody")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning)
        .unwrap();
    consumer.assign(&list).unwrap();
    let mut messages = Vec::new();
    wait_until("the messages are in the topic", PATIENCE, || {
        while let Some(message) = consumer.poll(Duration::from_millis(200)) {
            messages.push(message.unwrap().detach());
        }
        messages.len() >= count
    });
    messages
}

pub fn create_topic(brokers: &str, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
    let new_topic = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    let topics = [settings
        .iter()
        .fold(new_topic, |topic, (name, value)| topic.set(name, value))];
    let (admin, runtime) = admin(brokers);
    let created = runtime
        .block_on(admin.create_topics(&topics, &AdminOptions::new()))
        .unwrap();
    created
        .into_iter()
        .for_each(|outcome| drop(outcome.unwrap()));
}

fn admin(brokers: &str) -> (AdminClient<DefaultClientContext>, tokio::runtime::Runtime) {
    let admin = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()
        .unwrap();
    (
        admin,
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap(),
    )
}
