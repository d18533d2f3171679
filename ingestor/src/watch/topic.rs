//! Measures the lag, looks which offsets Kafka holds for the group, and checks whether the log is still the one that was
//! read.
//!
//! A topic that was deleted and recreated is otherwise read from its middle as soon as it is long enough. This thread
//! decides nothing: a suspicion only triggers a new claim, which decides.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use chrono::Utc;
use rdkafka::error::KafkaResult;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::board::{Board, RunningPartition};
use crate::kafka::Probe;
use crate::metrics::{Metrics, PartitionLabels};
use crate::offsets::{Glimpse, Sighting};
use crate::periodic;
use crate::record::Reading;
use crate::witnesses::Witness;

/// How often the brokers are asked for the lag and for the group's offsets.
const LAG_INTERVAL: Duration = Duration::from_secs(5);
/// How often a record that was read is looked up again.
const RECORD_INTERVAL: Duration = Duration::from_secs(30);

/// What the watching thread needs.
pub struct TopicWatch {
    /// Which partitions are read, and how far they are.
    pub board: Arc<Board>,
    /// Asks the brokers.
    pub probe: Arc<Probe>,
    /// Receives the lag.
    pub metrics: Arc<Metrics>,
    /// The topic's name.
    pub topic: String,
    /// Receives readings whose partitions should be claimed again.
    pub suspicions_tx: Sender<Reading>,
}

impl TopicWatch {
    /// Watches from now on until shutdown.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub fn start(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut last_look_at = Instant::now();
        let mut looks = 0;
        periodic::start("topic-watch", shutdown, move || {
            self.measure_lag();
            self.look_at_mirror();
            self.probe.drop_reports();
            if last_look_at.elapsed() >= RECORD_INTERVAL {
                self.look_at_records(looks);
                looks += 1;
                last_look_at = Instant::now();
            }
            LAG_INTERVAL
        })
    }

    fn measure_lag(&self) {
        let partitions = self.board.assigned_partitions();
        self.metrics.forget_lag_except(&self.topic, &partitions);
        for partition in partitions {
            let log = match self.probe.log_range(partition) {
                Ok(log) => Some(log),
                Err(error) => {
                    self.metrics.lag_probe_failures.inc();
                    debug!(
                        kafka.partition = partition.0,
                        "the brokers did not tell the end of the log: {error}"
                    );
                    None
                }
            };
            let now_ms = Utc::now().timestamp_millis();
            if let Some(lag) = self.board.measure_lag(partition, log, now_ms) {
                let labels = PartitionLabels::new(&self.topic, partition);
                self.metrics
                    .lag_measured(&labels, lag.records, lag.unstable_records, lag.seconds);
            }
        }
    }

    /// Looks which offsets Kafka holds for the group, so that the poll thread commits only what is missing there.
    ///
    /// The client does not tell the outcome of an asynchronous commit
    /// (<https://github.com/fede1024/rust-rdkafka/issues/856>), and the poll thread cannot wait for a synchronous one.
    fn look_at_mirror(&self) {
        let partitions = self.board.assigned_partitions();
        if partitions.is_empty() {
            return;
        }
        match self.probe.committed_offsets(&partitions) {
            Ok(committed) => self.board.set_mirrored(&committed),
            Err(error) => debug!("the brokers did not tell the group's offsets: {error}"),
        }
    }

    /// Checks for every running partition whether its offset and records that were read still exist. `earlier_looks` is the
    /// number of such checks before.
    pub fn look_at_records(&self, earlier_looks: usize) {
        // The snapshot is taken before the brokers are asked. If what it names still exists, everything that was read before the
        // question belongs to the same log, and its newest record is the one to look up next time.
        for running in self.board.running_partitions() {
            let RunningPartition { reading, glimpse } = running;
            match self.suspects(reading, &glimpse, earlier_looks) {
                Ok(true) => {
                    warn!(
                        kafka.partition = reading.partition.0,
                        "the log does not look like the one that was read; claiming the partition again"
                    );
                    // The poll thread is gone only when the process ends.
                    self.suspicions_tx.send(reading).ok();
                }
                Ok(false) => {
                    if let Some(newest) = glimpse.witnesses.newest() {
                        self.board
                            .hold_witness(reading, glimpse.incarnation, *newest);
                    }
                }
                Err(error) => debug!(
                    kafka.partition = reading.partition.0,
                    "the brokers did not tell what they hold: {error}"
                ),
            }
        }
    }

    fn suspects(
        &self,
        reading: Reading,
        glimpse: &Glimpse,
        earlier_looks: usize,
    ) -> KafkaResult<bool> {
        let held = (self.board).held_witness(reading.partition, glimpse.incarnation);
        // One of the others in turn: a log that was cut and has grown again matches at both ends.
        let in_turn = glimpse.witnesses.in_turn(earlier_looks).copied();
        let more: Vec<Witness> = held.into_iter().chain(in_turn).collect();
        let sighting = Sighting::take(&self.probe, reading.partition, glimpse, &more)?;
        Ok(sighting.change.is_some() || glimpse.next_offset < sighting.watermarks.low)
    }
}
