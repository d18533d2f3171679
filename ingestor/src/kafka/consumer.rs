//! The consumer of the group: its settings, the forwarding of its log, and rebalances.
//!
//! The rebalance callback never touches the database, because the group evicts a member that does not answer in time. It
//! assigns the partitions paused and leaves the rest to the poll thread.

use parking_lot::Mutex;
use rdkafka::Offset as KafkaOffset;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use shared::throttle::Throttle;
use tracing::{debug, error, info, warn};

use super::{apply_overrides, setting_refused};
use crate::config::{APPLICATION_NAME, KafkaSettings, MemorySettings};
use crate::failpoints::{self, Phase};
use crate::record::Partition;

/// The consumer of the group.
pub type GroupConsumer = BaseConsumer<GroupContext>;

/// Makes the consumer. Nothing is connected or joined yet.
///
/// # Errors
/// Returns one line that names the setting if librdkafka rejects it.
pub fn group_consumer(
    settings: &KafkaSettings,
    memory: MemorySettings,
) -> anyhow::Result<GroupConsumer> {
    group_config(settings, memory)
        .create_with_context(GroupContext::default())
        .map_err(setting_refused)
}

/// Every setting on which a promise depends is set explicitly, even if librdkafka's default is the same today.
fn group_config(settings: &KafkaSettings, memory: MemorySettings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &settings.brokers)
        .set("group.id", &settings.group_id)
        .set("client.id", APPLICATION_NAME)
        // Offsets are stored in PostgreSQL. Kafka's are a mirror that we write ourselves.
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // Never jump silently: an offset that no longer exists is an incident.
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("partition.assignment.strategy", "cooperative-sticky")
        // At a partition's end the offset moves past transaction markers.
        .set("enable.partition.eof", "true")
        .set("check.crcs", "true")
        .set("session.timeout.ms", "45000")
        .set("heartbeat.interval.ms", "3000")
        .set("max.poll.interval.ms", "300000")
        // The queue of fetched messages. Its buffers take memory in addition, so fetches are small.
        .set(
            "queued.max.messages.kbytes",
            memory.kafka_queue_kbytes().to_string(),
        )
        .set("queued.min.messages", "20000")
        // These are bytes of compressed batches, which are unpacked whole: 4 MiB of similar orders became 120 MiB. A
        // partition gets only a part of a fetch. Otherwise it would leave nothing for the others and their writers.
        .set("fetch.message.max.bytes", "524288")
        .set("fetch.max.bytes", "2097152")
        // A partition whose queue was full is fetched again soon, because the queue holds a tenth of a second's work.
        // The default is a second.
        .set("fetch.queue.backoff.ms", "2")
        .set("fetch.wait.max.ms", "100")
        // Partitions that are added to the topic are found within half a minute.
        .set("topic.metadata.refresh.interval.ms", "30000")
        .set("socket.keepalive.enable", "true")
        // The log's filter decides what is shown. librdkafka logs more only if KAFKA_CONFIG has `debug=...`.
        .set_log_level(RDKafkaLogLevel::Debug);
    apply_overrides(&mut config, settings);
    config
}

/// A decision of the group, for the poll thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RebalanceEvent {
    /// These partitions are now ours; they are paused.
    Assigned(Vec<Partition>),
    /// These partitions are no longer ours.
    Revoked(Vec<Partition>),
    /// The client could not follow the group's decision; only a restart helps.
    Failed(String),
}

/// Callbacks of the group's consumer. They run inside `poll`, on the poll thread.
pub struct GroupContext {
    rebalance_events: Mutex<Vec<RebalanceEvent>>,
    reports: Mutex<Throttle>,
}

impl Default for GroupContext {
    fn default() -> Self {
        Self {
            rebalance_events: Mutex::default(),
            reports: Mutex::new(Throttle::for_reports()),
        }
    }
}

impl GroupContext {
    /// Takes the events since the last call.
    pub fn take_rebalance_events(&self) -> Vec<RebalanceEvent> {
        std::mem::take(&mut *self.rebalance_events.lock())
    }
}

impl ClientContext for GroupContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                error!(target: "librdkafka", facility, "{message}");
            }
            // librdkafka calls trouble with a broker an error, but it recovers by itself.
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
                warn!(target: "librdkafka", facility, "{message}")
            }
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                info!(target: "librdkafka", facility, "{message}")
            }
            RDKafkaLogLevel::Debug => debug!(target: "librdkafka", facility, "{message}"),
        }
    }

    /// Reports trouble with the brokers from time to time. The end of a partition also comes here, but is no trouble.
    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        if self.reports.lock().is_due() {
            warn!("trouble with Kafka, retrying: {error}: {reason}");
        }
    }
}

impl ConsumerContext for GroupContext {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        code: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let numbers = (partitions.elements().iter())
            .map(|element| Partition(element.partition()))
            .collect();
        let outcome = if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            // The claim provides the true offset. Until then any number will do, but none that must be looked up, such
            // as the end: the client continued that look-up after the seek and jumped there, over thousands of records.
            partitions
                .set_all_offsets(KafkaOffset::Offset(0))
                .and_then(|()| consumer.incremental_assign(partitions))
                .and_then(|()| consumer.pause(partitions))
                .map(|()| RebalanceEvent::Assigned(numbers))
        } else {
            failpoints::reached(Phase::Rebalance);
            consumer
                .incremental_unassign(partitions)
                .map(|()| RebalanceEvent::Revoked(numbers))
        };
        let event = outcome.unwrap_or_else(|error| RebalanceEvent::Failed(error.to_string()));
        self.rebalance_events.lock().push(event);
    }
}
