//! Asks the brokers about the topic, outside the group: which partitions, offsets and records it holds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use parking_lot::Mutex;
use rdkafka::Offset as KafkaOffset;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::metadata::Metadata;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use tracing::debug;

use super::{apply_overrides, partition_list, setting_refused};
use crate::config::{APPLICATION_NAME, KafkaSettings};
use crate::record::{Offset, Partition};
use crate::witnesses::Witness;

/// The most time that the brokers have to answer a question about a partition.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

/// No record came in time.
const TIMED_OUT: KafkaError = KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut);

/// Long enough to take all reports of a client. A poll without any time takes only one.
const REPORTS_POLL: Duration = Duration::from_millis(10);

/// Asks the brokers about the topic, from any thread.
pub struct Probe {
    /// Sees what the group's consumer sees: the log up to the oldest open transaction.
    committed: Mutex<Arc<BaseConsumer<Quiet>>>,
    /// What `committed` is made of.
    committed_config: ClientConfig,
    /// Held while `committed` reads records, for one question at a time.
    reading: Mutex<()>,
    /// Sees the log to its end.
    uncommitted: BaseConsumer<Quiet>,
    topic: String,
}

/// Keeps what a client reports out of the log: the group's consumer reports the same trouble, and a question that is not
/// answered has an error of its own.
#[derive(Default)]
struct Quiet {
    last_trouble: Mutex<Option<String>>,
}

impl ClientContext for Quiet {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(target: "librdkafka", facility, "probe: {message}");
    }

    fn error(&self, _error: KafkaError, reason: &str) {
        *self.last_trouble.lock() = Some(reason.to_owned());
    }
}

impl ConsumerContext for Quiet {}

/// The offsets that a consumer of committed records can read: `low..high`.
///
/// The upper end is the last stable offset, not the high watermark of the broker. The record there belongs to an open
/// transaction, and no such consumer has read it or anything after it. Claims, incidents and the commands of operators compare
/// with this end:
/// - Our offset is above it only if the log was cut or recreated. Compared with the end of the log, a log that was cut, and that
///   has grown again by an open transaction, would look whole.
/// - Reading that starts or continues there skips no record that may still be committed.
///
/// Only the lag is measured to the end of the log: see [`Probe::log_range`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// Offset of the oldest record that still exists.
    pub low: Offset,
    /// The last stable offset: that of the first record whose transaction is open. If none is open, the offset that the next
    /// record will get.
    pub high: Offset,
}

/// A member of a consumer group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The name that it gave itself.
    pub client_id: String,
}

/// The offsets of a partition's log to its end: `low..high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRange {
    /// Offset of the oldest record that still exists.
    pub low: Offset,
    /// Offset of the first record whose transaction is open. If none is open, it equals `high`.
    pub last_stable: Offset,
    /// The high watermark: the offset that the next record will get.
    pub high: Offset,
}

impl LogRange {
    /// Returns how many records are not stored yet by a reader that continues at this offset.
    pub fn lag_records(&self, next_offset: Offset) -> i64 {
        (self.high.0 - next_offset.0).max(0)
    }

    /// Returns how many of them cannot be read before an open transaction ends.
    pub fn unstable_records(&self, next_offset: Offset) -> i64 {
        self.lag_records(self.last_stable.max(next_offset))
    }
}

impl Probe {
    /// Makes the clients. Nothing is connected yet.
    ///
    /// # Errors
    /// Returns one line that names the setting if librdkafka rejects it.
    pub fn new(settings: &KafkaSettings) -> anyhow::Result<Self> {
        let create = |config: &ClientConfig| {
            (config.create_with_context(Quiet::default())).map_err(setting_refused)
        };
        let committed_config = committed_config(settings);
        Ok(Self {
            committed: Mutex::new(Arc::new(create(&committed_config)?)),
            committed_config,
            reading: Mutex::default(),
            uncommitted: create(&uncommitted_config(settings))?,
            topic: settings.topic.clone(),
        })
    }

    fn committed(&self) -> Arc<BaseConsumer<Quiet>> {
        Arc::clone(&self.committed.lock())
    }

    /// The offsets that a consumer of committed records can read now.
    ///
    /// # Errors
    /// Returns an error if no broker answers in time.
    pub fn watermarks(&self, partition: Partition) -> KafkaResult<Watermarks> {
        let (low, high) =
            self.committed()
                .fetch_watermarks(&self.topic, partition.0, BROKER_TIMEOUT)?;
        Ok(Watermarks {
            low: Offset(low),
            high: Offset(high),
        })
    }

    /// The offsets of the log to its end, and where the oldest open transaction begins.
    ///
    /// # Errors
    /// Returns an error if no broker answers in time.
    pub fn log_range(&self, partition: Partition) -> KafkaResult<LogRange> {
        // The end is asked for first. In the other order, records that arrive between the two questions would look as if a
        // transaction held them.
        let (low, high) =
            self.uncommitted
                .fetch_watermarks(&self.topic, partition.0, BROKER_TIMEOUT)?;
        let readable = self.watermarks(partition)?;
        Ok(LogRange {
            low: Offset(low),
            last_stable: readable.high.min(Offset(high)),
            high: Offset(high),
        })
    }

    /// The offsets that the group has committed to Kafka, of those partitions of which it has committed one.
    ///
    /// # Errors
    /// Returns an error if no broker answers in time.
    pub fn committed_offsets(
        &self,
        partitions: &[Partition],
    ) -> KafkaResult<Vec<(Partition, Offset)>> {
        let asked = partition_list(&self.topic, partitions.iter().map(|number| (*number, None)))?;
        let answer = self.committed().committed_offsets(asked, BROKER_TIMEOUT)?;
        let offset_of = |element: &TopicPartitionListElem<'_>| match element.offset() {
            KafkaOffset::Offset(offset) => Some((Partition(element.partition()), Offset(offset))),
            _ => None,
        };
        Ok(answer.elements().iter().filter_map(offset_of).collect())
    }

    /// The partitions of the topic.
    ///
    /// # Errors
    /// Returns an error if no broker answers in time, or if the topic does not exist.
    pub fn partitions(&self) -> anyhow::Result<Vec<Partition>> {
        let metadata: Metadata = self
            .uncommitted
            .fetch_metadata(Some(&self.topic), BROKER_TIMEOUT)
            .map_err(|error| self.with_reason(error))
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

    /// The partitions of the topic that have no leader now.
    ///
    /// # Errors
    /// Returns an error if no broker answers in time.
    pub fn leaderless_partitions(&self) -> anyhow::Result<Vec<Partition>> {
        let metadata: Metadata = self
            .uncommitted
            .fetch_metadata(Some(&self.topic), BROKER_TIMEOUT)?;
        let topics = metadata.topics().iter();
        let partitions = topics.flat_map(|topic| topic.partitions());
        let leaderless = partitions.filter(|partition| partition.leader() < 0);
        Ok(leaderless
            .map(|partition| Partition(partition.id()))
            .collect())
    }

    /// Whether a topic exists.
    ///
    /// # Errors
    /// Returns an error if no broker answers in time.
    pub fn exists(&self, topic: &str) -> anyhow::Result<bool> {
        // The list of all topics: to ask for one may create it.
        let metadata: Metadata = self.uncommitted.fetch_metadata(None, BROKER_TIMEOUT)?;
        Ok(metadata.topics().iter().any(|known| known.name() == topic))
    }

    /// The members of a group.
    ///
    /// # Errors
    /// Returns an error if no broker answers in time.
    pub fn members(&self, group_id: &str) -> anyhow::Result<Vec<Member>> {
        let answer = self
            .uncommitted
            .fetch_group_list(Some(group_id), BROKER_TIMEOUT)?;
        let members = answer.groups().iter().flat_map(|group| group.members());
        Ok(members
            .map(|member| Member {
                client_id: member.client_id().to_owned(),
            })
            .collect())
    }

    /// Adds why no broker has answered, for example a refused password. The client tells that apart from the error.
    fn with_reason(&self, error: KafkaError) -> anyhow::Error {
        self.drop_reports();
        match self.uncommitted.context().last_trouble.lock().take() {
            Some(reason) => anyhow::anyhow!("{error}: {reason}"),
            None => error.into(),
        }
    }

    /// Drops what the clients have reported. They keep it until they are polled, so somebody must call this from time to time:
    /// while the brokers are away, the reports become more and more.
    pub fn drop_reports(&self) {
        while self.uncommitted.poll(REPORTS_POLL).is_some() {}
        // Whoever reads records polls that client.
        if let Some(_reading) = self.reading.try_lock() {
            let committed = self.committed();
            while committed.poll(REPORTS_POLL).is_some() {}
        }
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
        let _reading = self.reading.lock();
        let answer = read_record(&self.committed(), &self.topic, partition, offset);
        if answer != Err(TIMED_OUT) {
            return answer;
        }
        // The brokers may be slow. But it can also be this client that waits for ever, because the topic was recreated: see
        // `poller::renewal`.
        let renewed = Arc::new(
            self.committed_config
                .create_with_context(Quiet::default())?,
        );
        *self.committed.lock() = Arc::clone(&renewed);
        read_record(&renewed, &self.topic, partition, offset)
    }
}

fn read_record(
    client: &BaseConsumer<Quiet>,
    topic: &str,
    partition: Partition,
    offset: Offset,
) -> KafkaResult<Option<Witness>> {
    let assignment = partition_list(topic, [(partition, Some(offset))])?;
    client.assign(&assignment)?;
    let answer = poll_record(client, partition, offset);
    // Whatever the answer is, nothing more is fetched.
    client.unassign().and(answer)
}

fn poll_record(
    client: &BaseConsumer<Quiet>,
    partition: Partition,
    offset: Offset,
) -> KafkaResult<Option<Witness>> {
    let deadline = Instant::now() + BROKER_TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(TIMED_OUT);
        }
        match client.poll(left) {
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

/// What all clients that do not join the group have in common.
pub(crate) fn client_config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &settings.brokers)
        .set("client.id", APPLICATION_NAME);
    apply_overrides(&mut config, settings);
    config
}

/// A consumer without a group can only ask for metadata and watermarks.
fn uncommitted_config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = client_config(settings);
    config.set("isolation.level", "read_uncommitted");
    config
}

/// librdkafka requires a group's name for reading. This client only assigns partitions to itself: it never joins the
/// group and commits nothing. It fetches little, to save memory.
fn committed_config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = client_config(settings);
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
