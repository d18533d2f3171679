//! Sends messages, paced, and counts what became of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use shared::order::Order;
use shared::testing::model_json;

use crate::orders::{Kind, Message, Messages, Mix};

const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Where messages go.
#[derive(Debug)]
pub(crate) struct Target {
    pub brokers: String,
    pub topic: String,
    /// librdkafka's settings, `key=value`, comma-separated.
    pub settings: String,
}

/// Counts what the broker says of each message.
#[derive(Debug, Default)]
pub(crate) struct Deliveries {
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
                // The first one tells why; a dead broker fails them all.
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
        kind: Kind::New,
        key: order.order_uid.to_string(),
        payload,
    };
    let producer = connect(target)?;
    send(&producer, &target.topic, &message)?;
    finish(&producer)?;
    println!("sent order {} to topic {}", message.key, target.topic);
    Ok(())
}

/// Sends orders as they are, as fast as Kafka takes them.
pub(crate) fn send_orders(target: &Target, orders: &[Order]) -> anyhow::Result<()> {
    let producer = connect(target)?;
    for order in orders {
        let message = Message {
            kind: Kind::New,
            key: order.order_uid.to_string(),
            payload: serde_json::to_vec(order)?,
        };
        send(&producer, &target.topic, &message)?;
    }
    finish(&producer)
}

/// Sends a stream; `rate` 0 is unpaced, `count` 0 endless.
pub(crate) fn produce(target: &Target, mix: Mix, rate: u32, count: u64) -> anyhow::Result<()> {
    let producer = connect(target)?;
    let mut messages = Messages::new(mix);
    let start = Instant::now();
    let mut reported_at = start;
    let (mut sent, mut updates, mut invalid) = (0_u64, 0_u64, 0_u64);
    while count == 0 || sent < count {
        if rate > 0 {
            // From the start, not from the last one: a late message does not slow the stream down.
            let due = Duration::from_secs_f64(sent as f64 / f64::from(rate));
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
        let message = messages.next_message()?;
        send(&producer, &target.topic, &message)?;
        sent += 1;
        match message.kind {
            Kind::New => {}
            Kind::Update => updates += 1,
            Kind::Invalid => invalid += 1,
        }
        if reported_at.elapsed() >= REPORT_INTERVAL {
            reported_at = Instant::now();
            println!("sent {sent}: {updates} updates, {invalid} invalid");
        }
    }
    finish(&producer)?;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "sent {sent}: {updates} updates, {invalid} invalid; {seconds:.2} s, {:.0} a second",
        sent as f64 / seconds
    );
    Ok(())
}

pub(crate) fn connect(target: &Target) -> anyhow::Result<ThreadedProducer<Deliveries>> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &target.brokers)
        .set("client.id", "load")
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", "5")
        .set("compression.type", "lz4")
        // As Java's producers do it: an order's messages meet in one partition, whoever sends them.
        .set("partitioner", "murmur2_random");
    for setting in target.settings.split(',').filter(|text| !text.is_empty()) {
        let (name, value) = setting
            .split_once('=')
            .with_context(|| format!("KAFKA_CONFIG: {setting} is no key=value"))?;
        config.set(name.trim(), value.trim());
    }
    config
        .create_with_context(Deliveries::default())
        .context("cannot make a producer")
}

pub(crate) fn send(
    producer: &ThreadedProducer<Deliveries>,
    topic: &str,
    message: &Message,
) -> anyhow::Result<()> {
    let mut record = BaseRecord::to(topic)
        .key(&message.key)
        .payload(&message.payload);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            // The queue is bounded; its own thread empties it.
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), rejected)) => {
                record = rejected;
                thread::sleep(Duration::from_millis(1));
            }
            Err((error, _)) => return Err(error).context("cannot send"),
        }
    }
}

pub(crate) fn finish(producer: &ThreadedProducer<Deliveries>) -> anyhow::Result<()> {
    producer
        .flush(FLUSH_TIMEOUT)
        .context("not everything was delivered in time")?;
    let failed = producer.context().failed.load(Ordering::Relaxed);
    if failed > 0 {
        let delivered = producer.context().delivered.load(Ordering::Relaxed);
        bail!("{failed} messages were not delivered, {delivered} were");
    }
    Ok(())
}
