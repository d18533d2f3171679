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
    last_timestamp_ms: Option<i64>,
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
                .or(status.last_timestamp_ms);
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
        let partitions = self.lock().partitions.clone();
        metrics.forget_lag_except(topic, partitions.keys().copied());
        for (partition, status) in partitions {
            let Some(next_offset) = status.next_offset else {
                continue;
            };
            match probe.watermarks(partition) {
                Ok(watermarks) => {
                    let records = (watermarks.high - next_offset).max(0);
                    let labels = PartitionLabels {
                        topic: topic.to_owned(),
                        partition,
                    };
                    metrics.lag_records.get_or_create(&labels).set(records);
                    metrics
                        .lag_seconds
                        .get_or_create(&labels)
                        .set(lag_seconds(records, status.last_timestamp_ms));
                }
                Err(error) => debug!(
                    kafka.partition = partition,
                    "the brokers did not tell the watermarks: {error}"
                ),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Age of the last record stored, while there are later ones.
fn lag_seconds(lag_records: i64, last_timestamp_ms: Option<i64>) -> f64 {
    match last_timestamp_ms {
        Some(last) if lag_records > 0 => {
            (Utc::now().timestamp_millis() - last).max(0) as f64 / 1000.0
        }
        _ => 0.0,
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
        assert!(lag_seconds(0, Some(0)).abs() < f64::EPSILON);
        assert!(lag_seconds(1, Some(0)) > 1e9);
    }
}
