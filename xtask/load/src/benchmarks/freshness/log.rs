//! The messages of a topic, read without a consumer group: when the broker appended each, and when it arrived.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};

use crate::benchmarks::services::PATIENCE;
use crate::producer::Target;

/// How long one poll may wait.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);

/// A message.
pub(super) struct Appended {
    pub key: String,
    /// The broker's time of day, in whole milliseconds since 1970.
    pub appended_at_ms: i64,
    pub received_at: Instant,
}

/// Reads a topic from its beginning until `count` messages have arrived. Nothing is decoded or stored.
pub(super) fn read(
    target: &Target,
    partitions: i32,
    count: usize,
) -> anyhow::Result<Vec<Appended>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &target.brokers)
        .set("group.id", &target.topic)
        .set("enable.auto.commit", "false")
        .create()?;
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(&target.topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    let mut read = Vec::with_capacity(count);
    let started_at = Instant::now();
    while read.len() < count {
        ensure!(
            started_at.elapsed() < PATIENCE,
            "only {} of {count} messages arrived from Kafka",
            read.len()
        );
        let Some(message) = consumer.poll(POLL_TIMEOUT) else {
            continue;
        };
        let received_at = Instant::now();
        let message = message?;
        let key = message.key().context("a message has no key")?;
        let appended_at_ms = message.timestamp().to_millis();
        read.push(Appended {
            key: String::from_utf8(key.to_vec())?,
            appended_at_ms: appended_at_ms.context("a message has no timestamp")?,
            received_at,
        });
    }
    Ok(read)
}
