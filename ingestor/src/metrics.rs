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
use shared::server::ConnectionMetrics;
use shared::traces::metrics::TraceMetrics;
use strum::{IntoStaticStr, VariantArray};

use crate::batch::Batch;
use crate::dead_letters::stored::LetterState;
use crate::record::{Partition, Reason};

macro_rules! metrics {
    ($($visibility:vis $name:ident: $type:ty = $metric:expr, $help:literal;)*) => {
        /// Every metric. The counters of records move when the records' transaction has committed.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            lag_shown: Mutex<Vec<PartitionLabels>>,
            /// The connections of the operators' port.
            pub connections: ConnectionMetrics,
            /// The spans of traces.
            pub traces: TraceMetrics,
            $(#[doc = $help] $visibility $name: $type,)*
        }

        impl Metrics {
            fn registered() -> Self {
                let mut registry = Registry::with_prefix("orders_ingestor");
                $(
                    let $name: $type = $metric;
                    registry.register(stringify!($name), $help, $name.clone());
                )*
                let connections = ConnectionMetrics::register(&mut registry, "ops");
                let traces = TraceMetrics::register(&mut registry);
                Self { registry, lag_shown: Mutex::default(), connections, traces, $($name,)* }
            }
        }
    };
}

metrics! {
    records: Counter = Counter::default(), "Records read and settled";
    orders_stored: Counter = Counter::default(), "Orders inserted or replaced";
    superseded: Counter = Counter::default(), "Valid messages replaced by a later one of their batch";
    removed: Counter = Counter::default(), "Valid messages of orders that were deleted or erased after they were produced";
    dead_letters: Family<ReasonLabels, Counter> = Family::default(), "Messages refused for ever";
    pub dead_letters_relayed: Counter = Counter::default(), "Dead letters published to the DLQ topic";
    pub dead_letters_relay_refused: Counter = Counter::default(), "Dead letters that the DLQ topic has refused for ever";
    pub dead_letters_relay_stuck: Gauge = Gauge::default(), "1 while dead letters cannot be published to the DLQ topic";
    pub dead_letters_retention_failures: Counter = Counter::default(),
        "Failed attempts to remove the bytes of old dead letters";
    dead_letters_expired: Family<StateLabels, Counter> = Family::default(),
        "Dead letters whose bytes were removed because of their age, by their state";
    batch_records: Histogram = Histogram::new(exponential_buckets(1.0, 4.0, 8)), "Records of a batch";
    pub commit_seconds: Histogram = Histogram::new(exponential_buckets(0.001, 2.0, 14)),
        "Duration of a batch's transaction, including the COMMIT";
    retries: Family<RetryLabels, Counter> = Family::default(), "Failed attempts that are repeated";
    lag_records: Family<PartitionLabels, Gauge> = Family::default(), "Records not stored yet";
    unstable_records: Family<PartitionLabels, Gauge> = Family::default(),
        "Records not stored yet that cannot be read before an open transaction ends";
    lag_seconds: Family<PartitionLabels, Fraction> = Family::default(),
        "Longest time that the oldest record not stored yet may have waited";
    pub lag_probe_failures: Counter = Counter::default(), "Times that the brokers did not tell the end of a partition's log";
    pub client_renewals: Counter = Counter::default(),
        "Times that the group was joined again with a new client, because the former one got no records";
    pub offset_incidents: Counter = Counter::default(), "Partitions stopped until an operator decides";
    pub fences: Counter = Counter::default(),
        "Batches rejected because another process has claimed the partition, or its offset was changed";
    pub assigned_partitions: Gauge = Gauge::default(), "Partitions assigned by the group";
    pub paused_partitions: Gauge = Gauge::default(), "Assigned partitions that are not read now";
    pub stopped_partitions: Gauge = Gauge::default(), "Assigned partitions that are not read before an operator has decided";
    pub notify_queue_usage_ratio: Fraction = Fraction::default(), "How full PostgreSQL's queue of notifications is";
}

type Fraction = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RetryLabels {
    class: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabels {
    state: String,
}

/// Why something is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
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
        let mut metrics = Self::registered();
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        metrics.registry.register("build", "The program", version);
        for reason in Reason::VARIANTS.iter().map(<&str>::from) {
            drop(metrics.dead_letters.get_or_create(&ReasonLabels { reason }));
        }
        for state in LetterState::VARIANTS.iter().map(<&str>::from) {
            let state = state.to_owned();
            drop(
                metrics
                    .dead_letters_expired
                    .get_or_create(&StateLabels { state }),
            );
        }
        for class in RetryClass::VARIANTS.iter().map(<&str>::from) {
            drop(metrics.retries.get_or_create(&RetryLabels { class }));
        }
        metrics
    }

    /// Counts a committed batch, which wrote `stored` orders.
    pub fn batch_stored(&self, batch: &Batch, stored: usize, held_back: usize) {
        self.records.inc_by(batch.records() as u64);
        self.orders_stored.inc_by(stored as u64);
        let superseded = batch.orders.len() - stored - held_back;
        self.superseded.inc_by(superseded as u64);
        self.removed.inc_by(batch.left_out as u64);
        if batch.records() > 0 {
            self.batch_records.observe(batch.records() as f64);
        }
        for letter in &batch.dead_letters {
            self.count_letters(letter.refusal.reason, 1);
        }
        self.count_letters(Reason::HeldBack, held_back as u64);
    }

    fn count_letters(&self, reason: Reason, count: u64) {
        let reason = <&str>::from(reason);
        let counter = self.dead_letters.get_or_create(&ReasonLabels { reason });
        counter.inc_by(count);
    }

    /// Counts a dead letter whose bytes were removed because of its age.
    pub fn letter_expired(&self, state: &str) {
        let state = state.to_owned();
        self.dead_letters_expired
            .get_or_create(&StateLabels { state })
            .inc();
    }

    /// Counts a failed attempt.
    pub fn retried(&self, class: RetryClass) {
        let class = <&str>::from(class);
        self.retries.get_or_create(&RetryLabels { class }).inc();
    }

    /// Shows the lag of a partition: the records that are not stored yet, those of them behind an open transaction, and how
    /// long the oldest record may have waited.
    pub fn lag_measured(
        &self,
        labels: &PartitionLabels,
        records: i64,
        unstable_records: i64,
        seconds: f64,
    ) {
        self.lag_records.get_or_create(labels).set(records);
        self.unstable_records
            .get_or_create(labels)
            .set(unstable_records);
        self.lag_seconds.get_or_create(labels).set(seconds);
    }

    /// Removes the lag of all partitions except these.
    pub fn forget_lag_except(&self, topic: &str, partitions: &[Partition]) {
        let labels = |partition: &Partition| PartitionLabels::new(topic, *partition);
        let kept: Vec<PartitionLabels> = partitions.iter().map(labels).collect();
        let mut shown = self.lag_shown.lock();
        for labels in shown.iter().filter(|labels| !kept.contains(labels)) {
            self.lag_records.remove(labels);
            self.unstable_records.remove(labels);
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
        metrics.lag_measured(&labels, 7, 3, 1.5);
        let text = metrics.render().unwrap();
        for line in [
            "orders_ingestor_records_total 0",
            "orders_ingestor_retries_total{class=\"query\"} 1",
            "orders_ingestor_retries_total{class=\"lost_connection\"} 0",
            "orders_ingestor_dead_letters_expired_total{state=\"new\"} 0",
            "orders_ingestor_removed_total 0",
            "orders_ingestor_dead_letters_total{reason=\"refused_by_database\"} 0",
            concat!(
                "orders_ingestor_build_info{version=\"",
                env!("CARGO_PKG_VERSION"),
                "\"} 1"
            ),
            "orders_ingestor_lag_records{topic=\"orders\",partition=\"2\"} 7",
            "orders_ingestor_unstable_records{topic=\"orders\",partition=\"2\"} 3",
            "orders_ingestor_lag_seconds{topic=\"orders\",partition=\"2\"} 1.5",
            "orders_ingestor_fences_total 0",
            "orders_ingestor_paused_partitions 0",
            "orders_ingestor_stopped_partitions 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        metrics.forget_lag_except("orders", &[Partition(2)]);
        metrics.forget_lag_except("orders", &[]);
        assert!(!metrics.render().unwrap().contains("partition=\"2\""));
    }
}
