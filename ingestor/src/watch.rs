//! Looks at the running partitions from outside, on a thread of its own: the brokers' answers may take seconds.
//!
//! It keeps the lag metrics, and it looks whether the topic is still the one that was read: a topic deleted and made
//! anew is otherwise read on in its middle, once it is long enough. It decides nothing: whatever it suspects has the
//! partition claimed anew, and the claim decides.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use anyhow::Context;
use chrono::Utc;
use rdkafka::error::KafkaResult;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::batch::Reading;
use crate::consumer::Probe;
use crate::metrics::{Metrics, PartitionLabels};
use crate::offsets::Witness;
use crate::status::{RunningPartition, Status};

/// How often the brokers are asked how far behind we are.
const LAG_INTERVAL: Duration = Duration::from_secs(5);
/// How often a record that was read is looked up again.
const RECORD_INTERVAL: Duration = Duration::from_secs(30);
/// Between two looks at whether the process stops.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What the watching thread needs.
pub struct Watch {
    /// Which partitions run, and how far they are.
    pub status: Arc<Status>,
    /// Asks the brokers.
    pub probe: Arc<Probe>,
    /// Gets the lag.
    pub metrics: Arc<Metrics>,
    /// The topic's name.
    pub topic: String,
    /// Readings that should be claimed anew.
    pub suspicions_tx: Sender<Reading>,
}

impl Watch {
    /// Starts the thread; it ends on `shutdown`.
    ///
    /// # Errors
    /// Fails where the thread cannot be started.
    pub fn start(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let thread = std::thread::Builder::new().name("watch".to_owned());
        thread
            .spawn(move || self.run(&shutdown))
            .map(drop)
            .context("cannot start the thread that watches the topic")
    }

    fn run(&self, shutdown: &CancellationToken) {
        let mut since_lag = LAG_INTERVAL;
        let mut since_records = Duration::ZERO;
        while !shutdown.is_cancelled() {
            if since_lag >= LAG_INTERVAL {
                self.measure_lag();
                since_lag = Duration::ZERO;
            }
            if since_records >= RECORD_INTERVAL {
                self.look_at_records();
                since_records = Duration::ZERO;
            }
            std::thread::sleep(STOP_POLL_INTERVAL);
            since_lag += STOP_POLL_INTERVAL;
            since_records += STOP_POLL_INTERVAL;
        }
    }

    fn measure_lag(&self) {
        let partitions = self.status.assigned_partitions();
        self.metrics
            .forget_lag_except(&self.topic, partitions.iter().copied());
        for partition in partitions {
            let end_offset = match self.probe.watermarks(partition) {
                Ok(watermarks) => Some(watermarks.high),
                Err(error) => {
                    debug!(
                        kafka.partition = partition,
                        "the brokers did not tell the watermarks: {error}"
                    );
                    None
                }
            };
            let now_ms = Utc::now().timestamp_millis();
            if let Some((records, seconds)) = self.status.lag(partition, end_offset, now_ms) {
                let labels = PartitionLabels {
                    topic: self.topic.clone(),
                    partition,
                };
                let metrics = &self.metrics;
                metrics.lag_records.get_or_create(&labels).set(records);
                metrics.lag_seconds.get_or_create(&labels).set(seconds);
            }
        }
    }

    /// Looks once at every running partition: are its offset and a record that was read still there?
    pub fn look_at_records(&self) {
        // The position is taken before the brokers are asked: if the earlier record is still there, what was read
        // before the question is of the same topic, and is what to look for the next time.
        for running in self.status.running_partitions() {
            let partition = running.reading.partition;
            match self.suspects(&running) {
                Ok(true) => {
                    warn!(
                        kafka.partition = partition,
                        "the topic does not look like the one that was read; the partition is claimed anew"
                    );
                    // The poll thread is gone only when the process ends.
                    self.suspicions_tx.send(running.reading).ok();
                }
                Ok(false) => {
                    let witness = (running.last_record)
                        .and_then(|record| Witness::new(running.incarnation, record));
                    if let Some(witness) = witness {
                        self.status.set_witness(running.reading, witness);
                    }
                }
                Err(error) => debug!(
                    kafka.partition = partition,
                    "the brokers did not tell what they hold: {error}"
                ),
            }
        }
    }

    fn suspects(&self, running: &RunningPartition) -> KafkaResult<bool> {
        let partition = running.reading.partition;
        let watermarks = self.probe.watermarks(partition)?;
        if !(watermarks.low..=watermarks.high).contains(&running.next_offset) {
            return Ok(true);
        }
        let Some(witness) = self.status.witness(partition) else {
            return Ok(false);
        };
        let replaced = witness.replaced_by(&self.probe, partition, watermarks)?;
        Ok(replaced.is_some())
    }
}
