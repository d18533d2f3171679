//! Asks the brokers about the topic, apart from the group: which partitions, which offsets, which record.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use rdkafka::Offset;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::metadata::Metadata;

use super::{apply_overrides, partition_list, setting_refused};
use crate::batch::Position;
use crate::config::KafkaSettings;

/// Most time for an answer of the brokers to a question about a partition.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the brokers about the topic, from any thread.
pub struct Probe {
    consumer: BaseConsumer,
    /// Reads single records; one question at a time.
    reader: Mutex<BaseConsumer>,
    topic: String,
}

/// The offsets that a partition holds: `low..high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// Offset of the first record that is still there.
    pub low: i64,
    /// Offset that the next record will get.
    pub high: i64,
}

impl Probe {
    /// Makes the clients; nothing is connected yet.
    ///
    /// # Errors
    /// Fails with one line where librdkafka refuses a setting.
    pub fn new(settings: &KafkaSettings) -> anyhow::Result<Self> {
        let consumer = probe_config(settings)
            .create()
            .map_err(|error| setting_refused(&error))?;
        let reader = reader_config(settings)
            .create()
            .map_err(|error| setting_refused(&error))?;
        Ok(Self {
            consumer,
            reader: Mutex::new(reader),
            topic: settings.topic.clone(),
        })
    }

    /// The offsets that a partition holds now.
    ///
    /// # Errors
    /// Fails where no broker answers in time.
    pub fn watermarks(&self, partition: i32) -> KafkaResult<Watermarks> {
        let (low, high) = self
            .consumer
            .fetch_watermarks(&self.topic, partition, BROKER_TIMEOUT)?;
        Ok(Watermarks { low, high })
    }

    /// The partitions of the topic.
    ///
    /// # Errors
    /// Fails where no broker answers in time, or the topic is not there.
    pub fn partitions(&self) -> anyhow::Result<Vec<i32>> {
        let metadata: Metadata = self
            .consumer
            .fetch_metadata(Some(&self.topic), BROKER_TIMEOUT)
            .context("no broker told the partitions")?;
        let topic = metadata
            .topics()
            .first()
            .context("the brokers do not know the topic")?;
        if let Some(error) = topic.error() {
            anyhow::bail!("topic {}: {}", self.topic, RDKafkaErrorCode::from(error));
        }
        Ok(topic
            .partitions()
            .iter()
            .map(rdkafka::metadata::MetadataPartition::id)
            .collect())
    }

    /// The first record at an offset or behind it, as a consumer of committed records sees it; `None` where there is
    /// none up to the end of the partition, or where the partition does not reach from or to that offset.
    ///
    /// # Errors
    /// Fails where no broker answers in time.
    pub fn first_record_from(&self, partition: i32, offset: i64) -> KafkaResult<Option<Position>> {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let assignment = partition_list(&self.topic, [(partition, Offset::Offset(offset))])?;
        reader.assign(&assignment)?;
        let answer = self.poll_record(&reader, partition, offset);
        // Whatever came: nothing more is fetched.
        reader.unassign().and(answer)
    }

    fn poll_record(
        &self,
        reader: &BaseConsumer,
        partition: i32,
        offset: i64,
    ) -> KafkaResult<Option<Position>> {
        let deadline = Instant::now() + BROKER_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::OperationTimedOut,
                ));
            }
            match reader.poll(left) {
                Some(Ok(message))
                    if message.partition() == partition && message.offset() >= offset =>
                {
                    return Ok(Some(Position {
                        offset: message.offset(),
                        timestamp_ms: message.timestamp().to_millis(),
                    }));
                }
                Some(
                    Err(KafkaError::PartitionEOF(_))
                    | Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset)),
                ) => return Ok(None),
                // The client goes on by itself after trouble with a broker.
                Some(_) | None => {}
            }
        }
    }
}

/// A consumer without a group can ask for watermarks only.
fn probe_config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &settings.brokers)
        .set("client.id", crate::APPLICATION_NAME)
        .set("log_level", "0");
    apply_overrides(&mut config, settings);
    config
}

/// librdkafka lets nobody read without the name of a group. This client only assigns: it never joins the group and
/// commits nothing. It fetches little, so that it costs no memory.
fn reader_config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = probe_config(settings);
    config
        .set("group.id", &settings.group_id)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("check.crcs", "true")
        .set("fetch.message.max.bytes", "65536")
        .set("queued.max.messages.kbytes", "1024")
        .set("queued.min.messages", "1")
        // The queue is full with one record: the default would have the next question wait for a second.
        .set("fetch.queue.backoff.ms", "1")
        .set("fetch.wait.max.ms", "100")
        // Right after a topic was made anew the client's knowledge is old: the default waits half a second.
        .set("fetch.error.backoff.ms", "100");
    config
}
