//! Sends messages at a pace, and counts which ones were delivered.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use shared::order::Order;
use shared::testing::model_json;
use shared::throttle::Throttle;

use crate::orders::{Kind, Message, Messages, Mix};

const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);

/// Where messages are sent to. The environment variables are those of the services.
#[derive(Args, Debug)]
pub(crate) struct Target {
    /// Bootstrap servers of Kafka
    #[arg(long, env = "KAFKA_BROKERS", default_value = "localhost:9092")]
    pub brokers: String,
    /// The topic
    #[arg(long, env = "KAFKA_TOPIC", default_value = "orders")]
    pub topic: String,
    /// Settings of librdkafka: key=value, separated by commas
    #[arg(long, env = "KAFKA_CONFIG", default_value = "", hide_env_values = true)]
    pub kafka_config: String,
}

/// Counts the delivered and the failed messages.
#[derive(Debug, Default)]
struct Deliveries {
    delivered: AtomicU64,
    failed: AtomicU64,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => {
                self.delivered.fetch_add(1, Ordering::Relaxed);
            }
            Err((error, _)) => {
                // The first failure tells the reason. If a broker is down, all messages fail.
                if self.failed.fetch_add(1, Ordering::Relaxed) == 0 {
                    eprintln!("a message was not delivered: {error}");
                }
            }
        }
    }
}

/// Sends the sample order.
pub(crate) fn send_sample(target: &Target) -> anyhow::Result<()> {
    let payload = model_json().as_bytes().to_vec();
    let order = Order::decode(&payload)
        .map_err(|fault| anyhow::anyhow!("the sample order is invalid: {fault:?}"))?;
    let message = Message {
        payload,
        ..Message::new(Kind::New, &order)?
    };
    let producer = Producer::connect(target)?;
    producer.send(&message)?;
    producer.finish()?;
    println!("sent order {} to topic {}", message.key, target.topic);
    Ok(())
}

/// Sends orders as they are, as fast as Kafka takes them. If a share is traced, all of them say whether they are.
pub(crate) fn send_orders(
    target: &Target,
    orders: &[Order],
    traced_share: Option<f64>,
) -> anyhow::Result<()> {
    let producer = Producer::connect(target)?;
    let mut random = fastrand::Rng::with_seed(2);
    for order in orders {
        let traceparent = traced_share.map(|share| {
            let is_traced = u8::from(random.f64() < share);
            let (trace, span) = (random.u128(1..), random.u64(1..));
            format!("00-{trace:032x}-{span:016x}-{is_traced:02x}")
        });
        let message = Message::new(Kind::New, order)?;
        producer.send(&Message {
            traceparent,
            ..message
        })?;
    }
    producer.finish()
}

/// Sends a stream of messages. With the rate 0 it sends as fast as Kafka takes them; with the count 0 it never ends.
pub(crate) fn produce(target: &Target, mix: Mix, rate: u32, count: usize) -> anyhow::Result<()> {
    let producer = Producer::connect(target)?;
    let mut messages = Messages::new(mix);
    let pace = Pace::start(rate);
    let mut throttle = Throttle::for_reports();
    // The first report is due after an interval.
    throttle.is_due();
    let (mut sent, mut updates, mut invalid) = (0, 0_u64, 0_u64);
    while count == 0 || sent < count {
        pace.wait_for(sent);
        let message = messages.next_message()?;
        producer.send(&message)?;
        sent += 1;
        match message.kind {
            Kind::New => {}
            Kind::Update => updates += 1,
            Kind::Invalid => invalid += 1,
        }
        if throttle.is_due() {
            println!("sent {sent}: {updates} updates, {invalid} invalid");
        }
    }
    producer.finish()?;
    let seconds = pace.started_at.elapsed().as_secs_f64();
    println!(
        "sent {sent}: {updates} updates, {invalid} invalid; {seconds:.2} s, {:.0} per second",
        sent as f64 / seconds
    );
    Ok(())
}

/// The pace of a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    started_at: Instant,
    per_second: f64,
}

impl Pace {
    /// Starts a stream. The rate 0 means that no message has to wait.
    pub(crate) fn start(per_second: u32) -> Self {
        Self {
            started_at: Instant::now(),
            per_second: per_second.into(),
        }
    }

    /// Waits until a message is due. Messages are numbered from 0.
    ///
    /// The time counts from the start and not from the message before it. So a late message does not slow the stream down.
    pub(crate) fn wait_for(&self, number: usize) {
        if self.per_second > 0.0 {
            let due = Duration::from_secs_f64(number as f64 / self.per_second);
            thread::sleep(due.saturating_sub(self.started_at.elapsed()));
        }
    }
}

/// A producer for one topic.
pub(crate) struct Producer {
    client: ThreadedProducer<Deliveries>,
    topic: String,
}

impl Producer {
    pub(crate) fn connect(target: &Target) -> anyhow::Result<Self> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &target.brokers)
            .set("client.id", "load")
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .set("compression.type", "lz4")
            // Like Java's producers, so that all messages of an order are in one partition, whoever sends them.
            .set("partitioner", "murmur2_random");
        for setting in target
            .kafka_config
            .split(',')
            .filter(|text| !text.is_empty())
        {
            let (name, value) = setting.split_once('=').with_context(|| {
                format!("KAFKA_CONFIG: `{setting}` does not have the form key=value")
            })?;
            config.set(name.trim(), value.trim());
        }
        let client = config.create_with_context(Deliveries::default());
        Ok(Self {
            client: client.context("cannot create a Kafka producer")?,
            topic: target.topic.clone(),
        })
    }

    /// Queues a message. If the queue is full, it waits until there is room.
    pub(crate) fn send(&self, message: &Message) -> anyhow::Result<()> {
        let mut record = BaseRecord::to(&self.topic)
            .key(&message.key)
            .payload(&message.payload);
        if let Some(traceparent) = &message.traceparent {
            record = record.headers(OwnedHeaders::new().insert(Header {
                key: "traceparent",
                value: Some(traceparent),
            }));
        }
        loop {
            match self.client.send(record) {
                Ok(()) => return Ok(()),
                // Another thread empties the queue.
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), rejected)) => {
                    record = rejected;
                    thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(error).context("cannot send a message"),
            }
        }
    }

    /// Waits until all messages are delivered.
    ///
    /// # Errors
    /// Fails if one of them is not delivered.
    pub(crate) fn finish(&self) -> anyhow::Result<()> {
        self.client
            .flush(FLUSH_TIMEOUT)
            .context("some messages were not delivered in time")?;
        let deliveries = self.client.context();
        let failed = deliveries.failed.load(Ordering::Relaxed);
        if failed > 0 {
            let delivered = deliveries.delivered.load(Ordering::Relaxed);
            bail!("{failed} messages were not delivered, {delivered} were delivered");
        }
        Ok(())
    }
}
