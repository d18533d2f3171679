//! What the daemon knows of itself, for `/readyz`, `/health` and the lag metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use chrono::Utc;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::batch::Position;
use crate::consumer::Probe;
use crate::metrics::{Metrics, PartitionLabels};

/// How often the brokers are asked how far behind we are.
const LAG_INTERVAL: Duration = Duration::from_secs(5);
/// Between two looks at whether the process stops.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// State of the process; written by the poll thread and the writers.
#[derive(Debug)]
pub struct Status {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    phase: Phase,
    database_ok: bool,
    partitions: BTreeMap<i32, PartitionStatus>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Running,
    Stopping,
}

#[derive(Clone, Debug, Default)]
struct PartitionStatus {
    state: String,
    next_offset: Option<i64>,
    /// Time of the last record stored; never in the future, where producers' clocks may be.
    last_timestamp_ms: Option<i64>,
    /// Where the partition ended when the brokers told last.
    end_offset: Option<i64>,
    /// When everything was last seen stored; else when the first record was seen waiting.
    caught_up_at_ms: Option<i64>,
}

/// How far a partition is stored, as the database says.
#[derive(Clone, Copy, Debug)]
pub struct StoredPosition {
    /// Offset of the next record to store.
    pub next_offset: i64,
    /// Time of the last record stored, in milliseconds since 1970; none where none was stored.
    pub last_timestamp_ms: Option<i64>,
}

/// How well the process is, in the words of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// All is well.
    Ok,
    /// It works, but a partition does not.
    Degraded,
    /// It does not work.
    Down,
}

impl Health {
    /// As it stands in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

impl Default for Status {
    fn default() -> Self {
        Self::new()
    }
}

impl Status {
    /// The process is starting.
    pub fn new() -> Self {
        let inner = Inner {
            phase: Phase::Starting,
            database_ok: false,
            partitions: BTreeMap::new(),
        };
        Self {
            inner: Mutex::new(inner),
        }
    }

    /// The database answered, or did not.
    pub fn set_database_ok(&self, ok: bool) {
        self.lock().database_ok = ok;
    }

    /// The consumer has subscribed.
    pub fn set_running(&self) {
        self.lock().phase = Phase::Running;
    }

    /// The process was told to stop.
    pub fn set_stopping(&self) {
        self.lock().phase = Phase::Stopping;
    }

    /// What is done with a partition: `claiming`, `running`, or why it is not read.
    pub fn set_state(&self, partition: i32, state: &str) {
        state.clone_into(&mut self.lock().partitions.entry(partition).or_default().state);
    }

    /// How far a partition is stored.
    pub fn set_position(&self, partition: i32, next_offset: i64, last_record: Option<Position>) {
        let mut inner = self.lock();
        // A batch that was under way while its partition was taken away brings nothing back.
        if let Some(status) = inner.partitions.get_mut(&partition) {
            status.next_offset = Some(next_offset);
            status.last_timestamp_ms = last_record
                .and_then(|record| record.timestamp_ms)
                .map(|timestamp_ms| timestamp_ms.min(Utc::now().timestamp_millis()))
                .or(status.last_timestamp_ms);
        }
    }

    /// Adds what the writers have not told: of a running partition the time of the last record, until one is stored; of
    /// any other the position, which has no writer and may be moved by an operator.
    pub fn fill_in_position(&self, partition: i32, stored: StoredPosition, now_ms: i64) {
        let mut inner = self.lock();
        if let Some(status) = inner.partitions.get_mut(&partition) {
            if status.state != "running" {
                status.next_offset = Some(stored.next_offset);
            }
            if status.last_timestamp_ms.is_none() {
                status.last_timestamp_ms = stored.last_timestamp_ms.map(|last| last.min(now_ms));
            }
        }
    }

    /// The partition is no longer assigned.
    pub fn forget(&self, partition: i32) {
        self.lock().partitions.remove(&partition);
    }

    /// How well the process is, and why.
    pub fn health(&self) -> (Health, Value) {
        let inner = self.lock();
        let all_running = inner
            .partitions
            .values()
            .all(|status| matches!(status.state.as_str(), "running" | "claiming"));
        let health = match (inner.phase, inner.database_ok, all_running) {
            (Phase::Running, true, true) => Health::Ok,
            (Phase::Running, true, false) => Health::Degraded,
            _ => Health::Down,
        };
        let phase = match inner.phase {
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Stopping => "stopping",
        };
        let partitions: Vec<Value> = (inner.partitions.iter())
            .map(|(number, status)| json!({"partition": number, "state": status.state, "next_offset": status.next_offset}))
            .collect();
        let checks = json!({
            "process": {"phase": phase},
            "database": {"ok": inner.database_ok},
            "partitions": partitions,
        });
        (health, checks)
    }

    /// Starts to keep the lag metrics, on a thread of its own: the brokers' answers may take seconds.
    ///
    /// # Errors
    /// Fails where the thread cannot be started.
    pub fn watch_lag(
        self: &Arc<Self>,
        probe: Arc<Probe>,
        metrics: Arc<Metrics>,
        topic: String,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let status = self.clone();
        let thread = std::thread::Builder::new().name("lag".to_owned());
        let watch = move || {
            let mut waited = LAG_INTERVAL;
            while !shutdown.is_cancelled() {
                if waited >= LAG_INTERVAL {
                    status.measure_lag(&probe, &metrics, &topic);
                    waited = Duration::ZERO;
                }
                std::thread::sleep(STOP_POLL_INTERVAL);
                waited += STOP_POLL_INTERVAL;
            }
        };
        thread
            .spawn(watch)
            .map(drop)
            .context("cannot start the thread that watches the lag")
    }

    fn measure_lag(&self, probe: &Probe, metrics: &Metrics, topic: &str) {
        let partitions: Vec<i32> = self.lock().partitions.keys().copied().collect();
        metrics.forget_lag_except(topic, partitions.iter().copied());
        for partition in partitions {
            let end_offset = match probe.watermarks(partition) {
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
            let lag = self
                .lock()
                .partitions
                .get_mut(&partition)
                .and_then(|status| status.lag(end_offset, now_ms));
            if let Some((records, seconds)) = lag {
                let labels = PartitionLabels {
                    topic: topic.to_owned(),
                    partition,
                };
                metrics.lag_records.get_or_create(&labels).set(records);
                metrics.lag_seconds.get_or_create(&labels).set(seconds);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartitionStatus {
    /// Records that wait, and how many seconds the oldest of them has waited at most. Nothing where the position or the
    /// end was never known.
    ///
    /// No record that waits is older than the last one stored, and none was there when everything was stored. While the
    /// brokers do not tell the end (`end_offset` is none) the last one counts, so that the time goes on.
    fn lag(&mut self, end_offset: Option<i64>, now_ms: i64) -> Option<(i64, f64)> {
        let next_offset = self.next_offset?;
        self.end_offset = end_offset.or(self.end_offset);
        let records = (self.end_offset? - next_offset).max(0);
        if records == 0 {
            if end_offset.is_some() {
                self.caught_up_at_ms = Some(now_ms);
            }
            return Some((0, 0.0));
        }
        let since_ms = match self.last_timestamp_ms.max(self.caught_up_at_ms) {
            Some(since_ms) => since_ms,
            // Nothing is known of records before: it counts from now on.
            None => *self.caught_up_at_ms.insert(now_ms),
        };
        Some((records, (now_ms - since_ms).max(0) as f64 / 1000.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_follows_phase_database_and_partitions() {
        let status = Status::new();
        assert_eq!(status.health().0, Health::Down);
        status.set_database_ok(true);
        status.set_running();
        status.set_state(0, "running");
        assert_eq!(status.health().0, Health::Ok);
        status.set_state(1, "offset out of range");
        assert_eq!(status.health().0, Health::Degraded);
        status.forget(1);
        status.set_database_ok(false);
        assert_eq!(status.health().0, Health::Down);
        status.set_database_ok(true);
        status.set_stopping();
        assert_eq!(status.health().0, Health::Down);
    }

    #[test]
    fn a_partition_at_its_end_has_no_lag_however_old_its_last_record() {
        let mut partition = at(5, Some(0));
        assert_eq!(partition.lag(Some(5), 9_000), Some((0, 0.0)));
    }

    #[test]
    fn lag_in_seconds_counts_from_the_last_record_stored_and_grows() {
        let mut partition = at(5, Some(1_000));
        assert_eq!(partition.lag(Some(7), 9_000), Some((2, 8.0)));
        assert_eq!(partition.lag(Some(7), 14_000), Some((2, 13.0)));
        // No broker answers.
        assert_eq!(partition.lag(None, 19_000), Some((2, 18.0)));
    }

    #[test]
    fn the_first_record_after_a_quiet_day_has_not_waited_a_day() {
        let mut partition = at(5, Some(0));
        assert_eq!(partition.lag(Some(5), 86_400_000), Some((0, 0.0)));
        assert_eq!(partition.lag(Some(6), 86_405_000), Some((1, 5.0)));
        // Nobody knows whether the partition was still empty while no broker answered.
        let mut partition = at(5, Some(0));
        assert_eq!(partition.lag(Some(5), 1_000), Some((0, 0.0)));
        assert_eq!(partition.lag(None, 6_000), Some((0, 0.0)));
        assert_eq!(partition.lag(Some(6), 11_000), Some((1, 10.0)));
    }

    #[test]
    fn lag_without_any_record_stored_counts_from_the_first_look() {
        let mut partition = at(0, None);
        assert_eq!(partition.lag(Some(3), 50_000), Some((3, 0.0)));
        assert_eq!(partition.lag(Some(3), 55_000), Some((3, 5.0)));
        assert_eq!(PartitionStatus::default().lag(Some(3), 0), None);
        assert_eq!(at(0, None).lag(None, 0), None);
    }

    #[test]
    fn the_database_tells_the_position_of_a_partition_that_is_not_read() {
        let status = Status::new();
        let stored = |next_offset| StoredPosition {
            next_offset,
            last_timestamp_ms: Some(2_000),
        };
        let position = || status.lock().partitions[&0].next_offset;
        // Not assigned.
        status.fill_in_position(0, stored(1), 9_000);
        assert!(status.lock().partitions.is_empty());
        status.set_state(0, "halted");
        status.fill_in_position(0, stored(2), 1_000);
        assert_eq!(position(), Some(2));
        // Not in the future, whatever the producer's clock said.
        assert_eq!(status.lock().partitions[&0].last_timestamp_ms, Some(1_000));
        status.set_position(0, 7, None);
        status.set_state(0, "running");
        status.fill_in_position(0, stored(2), 9_000);
        assert_eq!(position(), Some(7), "a writer knows better");
    }

    fn at(next_offset: i64, last_timestamp_ms: Option<i64>) -> PartitionStatus {
        PartitionStatus {
            next_offset: Some(next_offset),
            last_timestamp_ms,
            ..PartitionStatus::default()
        }
    }
}
