//! The daemon's metrics, in the Prometheus text format; `docs/OPERATIONS.md` tells what to watch.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;

use crate::batch::Batch;

/// Everything that is counted. Counters of records move when their transaction has committed.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    records: Counter,
    orders_stored: Counter,
    superseded: Counter,
    dead_letters: Family<ReasonLabels, Counter>,
    /// Dead letters that the DLQ topic has.
    pub dead_letters_relayed: Counter,
    batch_records: Histogram,
    /// Time of a batch's transaction, COMMIT included.
    pub commit_seconds: Histogram,
    retries: Family<RetryLabels, Counter>,
    /// Records from the next to store to the partition's end.
    pub lag_records: Family<PartitionLabels, Gauge>,
    /// How long the oldest record that is not stored has waited, at most; 0 at the partition's end.
    pub lag_seconds: Family<PartitionLabels, Gauge<f64, AtomicU64>>,
    lag_shown: Mutex<Vec<PartitionLabels>>,
    /// Partitions stopped because the broker's offsets do not continue ours.
    pub offset_incidents: Counter,
    /// Batches that were refused because the partition was claimed by another process.
    pub fences: Counter,
    /// Partitions that the group has given us.
    pub assigned_partitions: Gauge,
    /// Those of them that are not read now.
    pub paused_partitions: Gauge,
    /// How full the server's queue of notifications is, 0..=1.
    pub notify_queue_usage_ratio: Gauge<f64, AtomicU64>,
}

/// Every code of `dead_letters.reason`: each is there from the start, because an alarm cannot see the step from no value
/// to the first one.
const DEAD_LETTER_REASONS: [&str; 5] = [
    "not_json",
    "invalid_order",
    "too_large",
    "tombstone",
    "refused_by_database",
];

/// Why a message was refused.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RetryLabels {
    class: &'static str,
}

/// What is being retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryClass {
    /// A connection to the database could not be made.
    Connect,
    /// A connection broke under a statement or a transaction, whose outcome is looked up where it may have been stored.
    LostConnection,
    /// The database refused a statement.
    Query,
    /// The brokers did not answer a question.
    Kafka,
}

impl RetryClass {
    const ALL: [Self; 4] = [
        Self::Connect,
        Self::LostConnection,
        Self::Query,
        Self::Kafka,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::LostConnection => "lost_connection",
            Self::Query => "query",
            Self::Kafka => "kafka",
        }
    }
}

/// Which partition.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PartitionLabels {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers everything at 0.
    pub fn new() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("orders_ingestor"),
            records: Counter::default(),
            orders_stored: Counter::default(),
            superseded: Counter::default(),
            dead_letters: Family::default(),
            dead_letters_relayed: Counter::default(),
            batch_records: Histogram::new(exponential_buckets(1.0, 4.0, 8)),
            commit_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            retries: Family::default(),
            lag_records: Family::default(),
            lag_seconds: Family::default(),
            lag_shown: Mutex::default(),
            offset_incidents: Counter::default(),
            fences: Counter::default(),
            assigned_partitions: Gauge::default(),
            paused_partitions: Gauge::default(),
            notify_queue_usage_ratio: Gauge::default(),
        };
        for reason in DEAD_LETTER_REASONS {
            drop(metrics.dead_letters.get_or_create(&ReasonLabels { reason }));
        }
        for class in RetryClass::ALL.map(RetryClass::as_str) {
            drop(metrics.retries.get_or_create(&RetryLabels { class }));
        }
        metrics.registered()
    }

    fn registered(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register("records", "Records read and settled", self.records.clone());
        registry.register(
            "orders_stored",
            "Orders inserted or replaced",
            self.orders_stored.clone(),
        );
        registry.register(
            "superseded",
            "Valid messages replaced by a later one of their batch",
            self.superseded.clone(),
        );
        registry.register(
            "dead_letters",
            "Messages refused for ever",
            self.dead_letters.clone(),
        );
        registry.register(
            "dead_letters_relayed",
            "Dead letters published to the DLQ topic",
            self.dead_letters_relayed.clone(),
        );
        registry.register(
            "batch_records",
            "Records of a batch",
            self.batch_records.clone(),
        );
        registry.register(
            "commit_seconds",
            "Time of a batch's transaction",
            self.commit_seconds.clone(),
        );
        registry.register(
            "retries",
            "Tries that failed and are repeated",
            self.retries.clone(),
        );
        registry.register(
            "lag_records",
            "Records from the next to store to the end",
            self.lag_records.clone(),
        );
        registry.register(
            "lag_seconds",
            "How long the oldest record not stored has waited, at most",
            self.lag_seconds.clone(),
        );
        registry.register(
            "offset_incidents",
            "Stops for an operator to decide",
            self.offset_incidents.clone(),
        );
        registry.register(
            "fences",
            "Batches refused, the partition being another's",
            self.fences.clone(),
        );
        registry.register(
            "assigned_partitions",
            "Partitions given by the group",
            self.assigned_partitions.clone(),
        );
        registry.register(
            "paused_partitions",
            "Assigned partitions not read now",
            self.paused_partitions.clone(),
        );
        registry.register(
            "notify_queue_usage_ratio",
            "How full PostgreSQL's queue of notifications is",
            self.notify_queue_usage_ratio.clone(),
        );
        registry.register(
            "build",
            "The program",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        self
    }

    /// Counts a batch that has committed, and the orders that it wrote.
    pub fn batch_stored(&self, batch: &Batch, stored: usize) {
        self.records.inc_by(batch.records() as u64);
        self.orders_stored.inc_by(stored as u64);
        self.superseded.inc_by((batch.orders.len() - stored) as u64);
        if batch.records() > 0 {
            self.batch_records.observe(batch.records() as f64);
        }
        for letter in &batch.dead_letters {
            self.dead_letters
                .get_or_create(&ReasonLabels {
                    reason: letter.refusal.reason,
                })
                .inc();
        }
    }

    /// Counts a try that failed.
    pub fn retried(&self, class: RetryClass) {
        let class = class.as_str();
        self.retries.get_or_create(&RetryLabels { class }).inc();
    }

    /// Ends the lag series of partitions that are not ours any more.
    pub fn forget_lag_except(&self, topic: &str, partitions: impl Iterator<Item = i32>) {
        let kept: Vec<PartitionLabels> = partitions
            .map(|partition| PartitionLabels {
                topic: topic.to_owned(),
                partition,
            })
            .collect();
        let mut shown = self
            .lag_shown
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for labels in shown.iter().filter(|labels| !kept.contains(labels)) {
            self.lag_records.remove(labels);
            self.lag_seconds.remove(labels);
        }
        *shown = kept;
    }

    /// All metrics as text.
    ///
    /// # Errors
    /// Fails where the encoder does.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_contract() {
        let metrics = Metrics::new();
        metrics.retried(RetryClass::Query);
        let labels = PartitionLabels {
            topic: "orders".to_owned(),
            partition: 2,
        };
        metrics.lag_records.get_or_create(&labels).set(7);
        let text = metrics.render().unwrap();
        for line in [
            "orders_ingestor_records_total 0",
            "orders_ingestor_retries_total{class=\"query\"} 1",
            "orders_ingestor_retries_total{class=\"lost_connection\"} 0",
            "orders_ingestor_dead_letters_total{reason=\"refused_by_database\"} 0",
            concat!(
                "orders_ingestor_build_info{version=\"",
                env!("CARGO_PKG_VERSION"),
                "\"} 1"
            ),
            "orders_ingestor_lag_records{topic=\"orders\",partition=\"2\"} 7",
            "orders_ingestor_fences_total 0",
            "orders_ingestor_paused_partitions 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        metrics.forget_lag_except("orders", [2].into_iter());
        metrics.forget_lag_except("orders", [].into_iter());
        assert!(!metrics.render().unwrap().contains("partition=\"2\""));
    }
}
