//! What the daemon knows of itself, for `/readyz`, `/health` and `watch`.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::batch::{Position, Reading};
use crate::offsets::{Claim, Witness};

/// State of a partition that is read.
pub const RUNNING: &str = "running";

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
    /// Kept while a partition is not assigned, too: what was read stays read.
    witnesses: BTreeMap<i32, Witness>,
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
    reading: Option<Reading>,
    incarnation: i32,
    next_offset: Option<i64>,
    last_record: Option<Position>,
}

/// How far a partition is that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunningPartition {
    /// Which reading.
    pub reading: Reading,
    /// Which topic of that name.
    pub incarnation: i32,
    /// What comes next.
    pub next_offset: i64,
    /// The last record stored.
    pub last_record: Option<Position>,
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
            witnesses: BTreeMap::new(),
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

    /// A partition was claimed.
    pub fn set_claimed(&self, reading: Reading, claim: &Claim) {
        let mut inner = self.lock();
        // A claim that was under way while its partition was taken away brings nothing back.
        if let Some(status) = inner.partitions.get_mut(&reading.partition) {
            status.reading = Some(reading);
            status.incarnation = claim.incarnation;
            status.next_offset = Some(claim.next_offset);
            status.last_record = claim.last_record;
        }
        // The claim has looked that both are there.
        let of_row = claim
            .last_record
            .and_then(|record| Witness::new(claim.incarnation, record));
        let kept = inner.witnesses.remove(&reading.partition);
        let kept = kept.filter(|witness| witness.incarnation == claim.incarnation);
        if let Some(witness) = of_row.or(kept) {
            inner.witnesses.insert(reading.partition, witness);
        }
    }

    /// How far a partition is stored.
    pub fn set_position(&self, partition: i32, next_offset: i64, last_record: Option<Position>) {
        let mut inner = self.lock();
        // A batch that was under way while its partition was taken away brings nothing back.
        let Some(status) = inner.partitions.get_mut(&partition) else {
            return;
        };
        status.next_offset = Some(next_offset);
        status.last_record = last_record.or(status.last_record);
        let witness = last_record.and_then(|record| Witness::new(status.incarnation, record));
        // Only the first one: a later record may be of a topic made anew meanwhile, see `watch`.
        if let Some(witness) = witness {
            inner.witnesses.entry(partition).or_insert(witness);
        }
    }

    /// By which record a topic made anew is known.
    pub fn witness(&self, partition: i32) -> Option<Witness> {
        self.lock().witnesses.get(&partition).copied()
    }

    /// Goes on to a later record, if the partition is still in the same reading.
    pub fn set_witness(&self, reading: Reading, witness: Witness) {
        let mut inner = self.lock();
        let status = inner.partitions.get(&reading.partition);
        if status.is_some_and(|status| status.reading == Some(reading)) {
            inner.witnesses.insert(reading.partition, witness);
        }
    }

    /// Next offset and last timestamp of every assigned partition; `None` before it was claimed.
    pub fn positions(&self) -> BTreeMap<i32, Option<(i64, Option<i64>)>> {
        let inner = self.lock();
        let position = |status: &PartitionStatus| {
            let timestamp_ms = status.last_record.and_then(|record| record.timestamp_ms);
            status.next_offset.map(|offset| (offset, timestamp_ms))
        };
        (inner.partitions.iter())
            .map(|(partition, status)| (*partition, position(status)))
            .collect()
    }

    /// The partitions that are read.
    pub fn running_partitions(&self) -> Vec<RunningPartition> {
        let inner = self.lock();
        let running = inner
            .partitions
            .values()
            .filter(|status| status.state == RUNNING);
        running
            .filter_map(|status| {
                Some(RunningPartition {
                    reading: status.reading?,
                    incarnation: status.incarnation,
                    next_offset: status.next_offset?,
                    last_record: status.last_record,
                })
            })
            .collect()
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
            .all(|status| matches!(status.state.as_str(), RUNNING | "claiming"));
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

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
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
}
