//! The daemon's metrics in the Prometheus text format. `docs/OPERATIONS.md` lists them.

use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::batch::Batch;
use crate::record::{Partition, Reason};

/// Every metric. The counters of records move when the records' transaction has committed.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    records: Counter,
    orders_stored: Counter,
    superseded: Counter,
    dead_letters: Family<ReasonLabels, Counter>,
    /// Dead letters published to the DLQ topic.
    pub dead_letters_relayed: Counter,
    batch_records: Histogram,
    /// Duration of a batch's transaction, including the COMMIT.
    pub commit_seconds: Histogram,
    retries: Family<RetryLabels, Counter>,
    /// Records of a partition that are not stored yet.
    pub lag_records: Family<PartitionLabels, Gauge>,
    /// The longest time that the oldest record not stored yet may have waited; 0 at the partition's end.
    pub lag_seconds: Family<PartitionLabels, Gauge<f64, AtomicU64>>,
    lag_shown: Mutex<Vec<PartitionLabels>>,
    /// Partitions stopped because the broker's offsets do not continue ours.
    pub offset_incidents: Counter,
    /// Batches rejected because another process has claimed the partition or its offset was changed.
    pub fences: Counter,
    /// Partitions that the group has assigned to this process.
    pub assigned_partitions: Gauge,
    /// Assigned partitions that are not read now.
    pub paused_partitions: Gauge,
    /// How full the database server's queue of notifications is, 0..=1.
    pub notify_queue_usage_ratio: Gauge<f64, AtomicU64>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RetryLabels {
    class: &'static str,
}

/// Why something is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryClass {
    /// The database could not be reached.
    Connect,
    /// A connection broke during a statement or a transaction. The outcome of a transaction is looked up.
    LostConnection,
    /// The database rejected a statement.
    Query,
    /// The brokers did not answer.
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

/// The labels of a partition's metrics.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PartitionLabels {
    topic: String,
    partition: i32,
}

impl PartitionLabels {
    /// The labels of a partition of this topic.
    pub fn new(topic: &str, partition: Partition) -> Self {
        Self {
            topic: topic.to_owned(),
            partition: partition.0,
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers every metric at 0. Every label that is known is there from the start: an alert cannot see the step from
    /// no value to the first one.
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
        for reason in Reason::ALL.map(Reason::as_str) {
            drop(metrics.dead_letters.get_or_create(&ReasonLabels { reason }));
        }
        for class in RetryClass::ALL.map(RetryClass::as_str) {
            drop(metrics.retries.get_or_create(&RetryLabels { class }));
        }
        metrics.registered()
    }

    fn registered(mut self) -> Self {
        macro_rules! register {
            ($($metric:ident: $help:literal,)*) => {
                $(self.registry.register(stringify!($metric), $help, self.$metric.clone());)*
            };
        }
        register! {
            records: "Records read and settled",
            orders_stored: "Orders inserted or replaced",
            superseded: "Valid messages replaced by a later one of their batch",
            dead_letters: "Messages refused for ever",
            dead_letters_relayed: "Dead letters published to the DLQ topic",
            batch_records: "Records of a batch",
            commit_seconds: "Duration of a batch's transaction",
            retries: "Failed attempts that are repeated",
            lag_records: "Records not stored yet",
            lag_seconds: "Longest time that the oldest record not stored yet may have waited",
            offset_incidents: "Partitions stopped until an operator decides",
            fences: "Batches rejected because the partition belongs to another process",
            assigned_partitions: "Partitions assigned by the group",
            paused_partitions: "Assigned partitions that are not read now",
            notify_queue_usage_ratio: "How full PostgreSQL's queue of notifications is",
        }
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        self.registry.register("build", "The program", version);
        self
    }

    /// Counts a committed batch, which wrote `stored` orders.
    pub fn batch_stored(&self, batch: &Batch, stored: usize) {
        self.records.inc_by(batch.records() as u64);
        self.orders_stored.inc_by(stored as u64);
        self.superseded.inc_by((batch.orders.len() - stored) as u64);
        if batch.records() > 0 {
            self.batch_records.observe(batch.records() as f64);
        }
        for letter in &batch.dead_letters {
            let reason = letter.refusal.reason.as_str();
            self.dead_letters
                .get_or_create(&ReasonLabels { reason })
                .inc();
        }
    }

    /// Counts a failed attempt.
    pub fn retried(&self, class: RetryClass) {
        let class = class.as_str();
        self.retries.get_or_create(&RetryLabels { class }).inc();
    }

    /// Removes the lag of all partitions except these.
    pub fn forget_lag_except(&self, topic: &str, partitions: &[Partition]) {
        let labels = |partition: &Partition| PartitionLabels::new(topic, *partition);
        let kept: Vec<PartitionLabels> = partitions.iter().map(labels).collect();
        let mut shown = self.lag_shown.lock();
        for labels in shown.iter().filter(|labels| !kept.contains(labels)) {
            self.lag_records.remove(labels);
            self.lag_seconds.remove(labels);
        }
        *shown = kept;
    }

    /// Returns all metrics as text.
    ///
    /// # Errors
    /// Returns the encoder's error.
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
        let labels = PartitionLabels::new("orders", Partition(2));
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
        metrics.forget_lag_except("orders", &[Partition(2)]);
        metrics.forget_lag_except("orders", &[]);
        assert!(!metrics.render().unwrap().contains("partition=\"2\""));
    }
}
