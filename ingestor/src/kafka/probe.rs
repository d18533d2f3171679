//! Asks the brokers about the topic, outside the group: which partitions, offsets and records it holds.

use std::time::{Duration, Instant};

use anyhow::Context;
use parking_lot::Mutex;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::metadata::Metadata;

use super::{apply_overrides, partition_list, setting_refused};
use crate::config::{APPLICATION_NAME, KafkaSettings};
use crate::record::{Offset, Partition};
use crate::witnesses::Witness;

/// The most time that the brokers have to answer a question about a partition.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the brokers about the topic, from any thread.
pub struct Probe {
    consumer: BaseConsumer,
    /// Reads single records, for one question at a time.
    reader: Mutex<BaseConsumer>,
    topic: String,
}

/// The offsets that a partition holds: `low..high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// Offset of the oldest record that still exists.
    pub low: Offset,
    /// Offset that the next record will get.
    pub high: Offset,
}

impl Probe {
    /// Makes the clients. Nothing is connected yet.
    ///
    /// # Errors
    /// Returns one line that names the setting if librdkafka rejects it.
    pub fn new(settings: &KafkaSettings) -> anyhow::Result<Self> {
        let reader = reader_config(settings).create().map_err(setting_refused)?;
        Ok(Self {
            consumer: probe_config(settings).create().map_err(setting_refused)?,
            reader: Mutex::new(reader),
            topic: settings.topic.clone(),
        })
    }

    /// The offsets that a partition holds now.
    ///
    /// # Errors
    /// Returns an error if no broker answers in time.
    pub fn watermarks(&self, partition: Partition) -> KafkaResult<Watermarks> {
        let (low, high) =
            self.consumer
                .fetch_watermarks(&self.topic, partition.0, BROKER_TIMEOUT)?;
        Ok(Watermarks {
            low: Offset(low),
            high: Offset(high),
        })
    }

    /// The partitions of the topic.
    ///
    /// # Errors
    /// Returns an error if no broker answers in time, or if the topic does not exist.
    pub fn partitions(&self) -> anyhow::Result<Vec<Partition>> {
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
            .map(|partition| Partition(partition.id()))
            .collect())
    }

    /// Returns the record at an offset, as a consumer of committed records sees it; `None` if there is none.
    ///
    /// # Errors
    /// Returns an error if no broker answers in time.
    pub fn record_at(&self, partition: Partition, offset: Offset) -> KafkaResult<Option<Witness>> {
        let found = self.first_record_from(partition, offset)?;
        Ok(found.filter(|record| record.offset() == offset))
    }

    /// Returns the first record at an offset or after it, as a consumer of committed records sees it; `None` if there is
    /// none up to the end of the partition, or if the offset lies outside the partition's range.
    ///
    /// # Errors
    /// Returns an error if no broker answers in time.
    pub fn first_record_from(
        &self,
        partition: Partition,
        offset: Offset,
    ) -> KafkaResult<Option<Witness>> {
        let reader = self.reader.lock();
        let assignment = partition_list(&self.topic, [(partition, Some(offset))])?;
        reader.assign(&assignment)?;
        let answer = self.poll_record(&reader, partition, offset);
        // Whatever the answer is, nothing more is fetched.
        reader.unassign().and(answer)
    }

    fn poll_record(
        &self,
        reader: &BaseConsumer,
        partition: Partition,
        offset: Offset,
    ) -> KafkaResult<Option<Witness>> {
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
                    if message.partition() == partition.0 && message.offset() >= offset.0 =>
                {
                    return Ok(Some(Witness::of(&message)));
                }
                Some(
                    Err(KafkaError::PartitionEOF(_))
                    | Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset)),
                ) => return Ok(None),
                // After trouble with a broker the client continues by itself.
                Some(_) | None => {}
            }
        }
    }
}

/// A consumer without a group can only ask for watermarks.
fn probe_config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &settings.brokers)
        .set("client.id", APPLICATION_NAME)
        .set("log_level", "0");
    apply_overrides(&mut config, settings);
    config
}

/// librdkafka requires a group's name for reading. This client only assigns partitions to itself: it never joins the
/// group and commits nothing. It fetches little, to save memory.
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
        // One record fills the queue. With the default the next question would wait for a second.
        .set("fetch.queue.backoff.ms", "1")
        .set("fetch.wait.max.ms", "100")
        // Right after a topic was recreated the client's metadata is old. The default waits half a second.
        .set("fetch.error.backoff.ms", "100");
    config
}
