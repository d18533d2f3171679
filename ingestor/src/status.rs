//! What the daemon knows of itself, for `/readyz`, `/health` and `watch`.

mod lag;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::Utc;
use serde_json::{Value, json};

use crate::batch::{Position, Reading};
use crate::offsets::{Claim, Witness};
use lag::LagClock;

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
    /// The schema was found up to date.
    database_seen: bool,
    /// Writers whose last try failed: while one of them waits, another one may have nothing to do.
    troubled_writers: BTreeSet<usize>,
    partitions: BTreeMap<i32, PartitionStatus>,
    /// Kept while a partition is not assigned, too: what was read stays read.
    witnesses: BTreeMap<i32, Witness>,
}

impl Inner {
    fn is_database_ok(&self) -> bool {
        self.database_seen && self.troubled_writers.is_empty()
    }
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
    lag: LagClock,
}

/// How far a partition is stored, as the database says.
#[derive(Clone, Copy, Debug)]
pub struct StoredPosition {
    /// Offset of the next record to store.
    pub next_offset: i64,
    /// Time of the last record stored, in milliseconds since 1970; none where none was stored.
    pub last_timestamp_ms: Option<i64>,
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
            database_seen: false,
            troubled_writers: BTreeSet::new(),
            partitions: BTreeMap::new(),
            witnesses: BTreeMap::new(),
        };
        Self {
            inner: Mutex::new(inner),
        }
    }

    /// The database answered for the first time.
    pub fn set_database_seen(&self) {
        self.lock().database_seen = true;
    }

    /// A writer got through to the database, or did not.
    pub fn set_database_ok(&self, writer: usize, ok: bool) {
        let mut inner = self.lock();
        if ok {
            inner.troubled_writers.remove(&writer);
        } else {
            inner.troubled_writers.insert(writer);
        }
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
        status.lag.set_last_timestamp(
            last_record.and_then(|record| record.timestamp_ms),
            Utc::now().timestamp_millis(),
        );
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

    /// The partitions that are assigned.
    pub fn assigned_partitions(&self) -> Vec<i32> {
        self.lock().partitions.keys().copied().collect()
    }

    /// Records that wait in a partition, and how many seconds the oldest of them has waited at most; nothing where it
    /// was never known how far the partition is. `end_offset` is none while the brokers do not tell.
    pub fn lag(&self, partition: i32, end_offset: Option<i64>, now_ms: i64) -> Option<(i64, f64)> {
        let mut inner = self.lock();
        let status = inner.partitions.get_mut(&partition)?;
        status.lag.measure(status.next_offset?, end_offset, now_ms)
    }

    /// Adds what the writers have not told: of a running partition the time of the last record, until one is stored; of
    /// any other the position, which has no writer and may be moved by an operator.
    pub fn fill_in_position(&self, partition: i32, stored: StoredPosition, now_ms: i64) {
        let mut inner = self.lock();
        if let Some(status) = inner.partitions.get_mut(&partition) {
            if status.state != RUNNING {
                status.next_offset = Some(stored.next_offset);
            }
            status
                .lag
                .set_last_timestamp_if_unknown(stored.last_timestamp_ms, now_ms);
        }
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
        let health = match (inner.phase, inner.is_database_ok(), all_running) {
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
            "database": {"ok": inner.is_database_ok()},
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
        status.set_database_seen();
        status.set_running();
        status.set_state(0, "running");
        assert_eq!(status.health().0, Health::Ok);
        status.set_state(1, "offset out of range");
        assert_eq!(status.health().0, Health::Degraded);
        status.forget(1);
        status.set_database_ok(0, false);
        status.set_database_ok(1, true);
        assert_eq!(
            status.health().0,
            Health::Down,
            "writer 0 is still in trouble"
        );
        status.set_database_ok(0, true);
        assert_eq!(status.health().0, Health::Ok);
        status.set_stopping();
        assert_eq!(status.health().0, Health::Down);
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
        assert!(status.assigned_partitions().is_empty());
        status.set_state(0, "halted");
        status.fill_in_position(0, stored(2), 9_000);
        assert_eq!(position(), Some(2));
        status.set_position(0, 7, None);
        status.set_state(0, RUNNING);
        status.fill_in_position(0, stored(2), 9_000);
        assert_eq!(position(), Some(7), "a writer knows better");
    }
}
