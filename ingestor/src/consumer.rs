//! The Kafka clients: settings, log forwarding, rebalance events; the client that asks about partitions is `probe`.
//!
//! The rebalance callback never touches the database: a member that owes the group its answer is evicted. It assigns
//! the partitions paused and leaves the rest to the poll thread.

mod probe;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use tracing::{debug, error, info, warn};

use crate::config::{KafkaSettings, MemorySettings};
use crate::failpoints::{self, Phase};
pub use probe::{Probe, Watermarks};

/// The consumer of the group.
pub type GroupConsumer = BaseConsumer<GroupContext>;

/// Settings on which exactly-once storage depends, and those that variables of our own set.
pub const PROTECTED_SETTINGS: &[&str] = &[
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.partition.eof",
    "group.id",
    "group.protocol",
    "isolation.level",
    "metadata.broker.list",
    "partition.assignment.strategy",
];

/// How often trouble with the brokers is reported while it lasts.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Both Kafka clients of the process.
pub struct Clients {
    /// Member of the group; polled by the poll thread alone.
    pub group: GroupConsumer,
    /// Asks about partitions, from any thread.
    pub probe: Arc<Probe>,
}

impl Clients {
    /// Makes the clients; nothing is connected or joined yet.
    ///
    /// # Errors
    /// Fails with one line where librdkafka refuses a setting.
    pub fn new(settings: &KafkaSettings, memory: MemorySettings) -> anyhow::Result<Self> {
        let group = group_config(settings, memory)
            .create_with_context(GroupContext::default())
            .map_err(|error| setting_refused(&error))?;
        let probe = Arc::new(Probe::new(settings)?);
        Ok(Self { group, probe })
    }
}

fn setting_refused(error: &KafkaError) -> anyhow::Error {
    match error {
        KafkaError::ClientConfig(_, description, key, _) => {
            anyhow::anyhow!("KAFKA_CONFIG: {key}: {description}")
        }
        other => anyhow::anyhow!("KAFKA_CONFIG: {other}"),
    }
}

/// Every setting that carries a promise is set, also where librdkafka's default is the same today.
fn group_config(settings: &KafkaSettings, memory: MemorySettings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &settings.brokers)
        .set("group.id", &settings.group_id)
        .set("client.id", crate::APPLICATION_NAME)
        // Offsets are kept in PostgreSQL; Kafka's are a mirror that we write ourselves.
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // Never jump in silence: an offset that is gone is an incident.
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("partition.assignment.strategy", "cooperative-sticky")
        // At a partition's end the offset moves past transaction markers.
        .set("enable.partition.eof", "true")
        .set("check.crcs", "true")
        .set("session.timeout.ms", "45000")
        .set("heartbeat.interval.ms", "3000")
        .set("max.poll.interval.ms", "300000")
        // The queue of fetched messages; its buffers come on top, hence small fetches.
        .set(
            "queued.max.messages.kbytes",
            memory.kafka_queue_kbytes().to_string(),
        )
        .set("queued.min.messages", "20000")
        // Bytes of compressed batches, which are unpacked whole: 4 MiB of orders that are much alike became 120. A
        // partition gets a part of a fetch only, else it leaves the others, and their writers, with nothing.
        .set("fetch.message.max.bytes", "524288")
        .set("fetch.max.bytes", "2097152")
        // A partition whose queue was full is asked again soon, because the queue holds a tenth of a second's work; the
        // default is a second.
        .set("fetch.queue.backoff.ms", "2")
        .set("fetch.wait.max.ms", "100")
        // Partitions that were added are found within half a minute.
        .set("topic.metadata.refresh.interval.ms", "30000")
        .set("socket.keepalive.enable", "true")
        // The log's filter decides; librdkafka says more only where KAFKA_CONFIG has `debug=...`.
        .set_log_level(RDKafkaLogLevel::Debug);
    apply_overrides(&mut config, settings);
    config
}

pub(crate) fn apply_overrides(config: &mut ClientConfig, settings: &KafkaSettings) {
    for (key, value) in &settings.overrides {
        config.set(key, value.expose());
    }
}

/// Makes a list of partitions at one offset each.
pub fn partition_list(
    topic: &str,
    partitions: impl IntoIterator<Item = (i32, Offset)>,
) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in partitions {
        list.add_partition_offset(topic, partition, offset)?;
    }
    Ok(list)
}

/// Fails on the first partition that an operation refused.
///
/// # Errors
/// The operation's error of that partition.
pub fn check_each(list: &TopicPartitionList) -> KafkaResult<()> {
    list.elements()
        .iter()
        .try_for_each(|element| element.error())
}

/// What the group told this member, for the poll thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RebalanceEvent {
    /// These partitions are now ours; they are paused.
    Assigned(Vec<i32>),
    /// These partitions are no longer ours.
    Revoked(Vec<i32>),
    /// The client could not take over what the group decided; only a restart helps.
    Failed(String),
}

/// Callbacks of the group's consumer; they run inside `poll`, on the poll thread.
#[derive(Default)]
pub struct GroupContext {
    rebalance_events: Mutex<Vec<RebalanceEvent>>,
    last_trouble_report: Mutex<Option<Instant>>,
}

impl GroupContext {
    /// Takes what has happened since the last call.
    pub fn take_rebalance_events(&self) -> Vec<RebalanceEvent> {
        std::mem::take(
            &mut *self
                .rebalance_events
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    fn push(&self, event: RebalanceEvent) {
        self.rebalance_events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(event);
    }
}

impl ClientContext for GroupContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                error!(target: "librdkafka", facility, "{message}");
            }
            // Trouble with a broker is an error to librdkafka, but it heals by itself.
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
                warn!(target: "librdkafka", facility, "{message}")
            }
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                info!(target: "librdkafka", facility, "{message}")
            }
            RDKafkaLogLevel::Debug => debug!(target: "librdkafka", facility, "{message}"),
        }
    }

    /// Reports trouble with the brokers once in a while. The end of a partition is none, though it comes here too.
    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        let mut last_report = self
            .last_trouble_report
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if last_report.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL) {
            *last_report = Some(Instant::now());
            warn!("trouble with Kafka, going on trying: {error}: {reason}");
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
        let numbers: Vec<i32> = partitions
            .elements()
            .iter()
            .map(|element| element.partition())
            .collect();
        let outcome = if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            // The claim tells the true offset. Until then any number does, but none that must be looked up, such as the
            // end: the client went on with that look-up after the seek and jumped there, over thousands of records.
            partitions
                .set_all_offsets(Offset::Offset(0))
                .and_then(|()| consumer.incremental_assign(partitions))
                .and_then(|()| consumer.pause(partitions))
                .map(|()| RebalanceEvent::Assigned(numbers))
        } else {
            failpoints::reached(Phase::Rebalance);
            consumer
                .incremental_unassign(partitions)
                .map(|()| RebalanceEvent::Revoked(numbers))
        };
        self.push(outcome.unwrap_or_else(|error| RebalanceEvent::Failed(error.to_string())));
    }
}

#[cfg(test)]
mod tests {
    use shared::config::Secret;

    use super::*;

    fn clients(overrides: &[(&str, &str)]) -> anyhow::Result<Clients> {
        let overrides = overrides
            .iter()
            .map(|(key, value)| ((*key).to_owned(), Secret::new(*value)))
            .collect();
        let settings = KafkaSettings {
            brokers: "localhost:1".to_owned(),
            topic: "orders".to_owned(),
            group_id: "group".to_owned(),
            dlq_topic: None,
            overrides,
        };
        Clients::new(
            &settings,
            MemorySettings {
                total_bytes: 96 << 20,
            },
        )
    }

    #[test]
    fn every_codec_and_sasl_mechanism_and_tls_are_compiled_in() {
        clients(&[
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", "u"),
            ("sasl.password", "p"),
        ])
        .unwrap();
        let (_, version) = rdkafka::util::get_rdkafka_version();
        assert!(!version.is_empty());
        for codec in ["gzip", "snappy", "lz4", "zstd"] {
            let producer: KafkaResult<rdkafka::producer::BaseProducer> =
                ClientConfig::new().set("compression.type", codec).create();
            assert!(producer.is_ok(), "{codec}");
        }
    }

    #[test]
    fn an_unknown_setting_is_named() {
        let message = clients(&[("no.such.setting", "1")])
            .err()
            .unwrap()
            .to_string();
        assert!(
            message.starts_with("KAFKA_CONFIG: no.such.setting"),
            "{message}"
        );
        let message = clients(&[("session.timeout.ms", "soon")])
            .err()
            .unwrap()
            .to_string();
        assert!(
            message.starts_with("KAFKA_CONFIG: session.timeout.ms"),
            "{message}"
        );
    }
}
