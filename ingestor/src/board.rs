//! The life of every assigned partition, in one place, and what the process knows about its own health.
//!
//! ```text
//!  begin_claim            claimed, start
//!  -----------> Claiming ----------------> Running
//!                   ^                         |
//!                   |      begin_claim        | pause, suspend
//!                   '-------- Paused <--------'
//! ```
//! - The poll thread changes the states.
//! - A partition's writer keeps the partition's claim here, and asks before every attempt whether it still counts. So it
//!   notices that its partition was taken away or that the process stops. It also notes here what holds the partition up.
//! - Everybody else reads snapshots.

mod health;
mod lag;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use chrono::Utc;
use parking_lot::Mutex;

use crate::kafka::LogRange;
use crate::offsets::{Claim, Glimpse};
use crate::record::{Incarnation, Offset, Partition, Reading};
use crate::witnesses::Witness;
pub use health::Health;
pub use lag::Lag;
use lag::LagClock;

/// What is done with an assigned partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Its writer claims it. If an operator had to decide before, `stopped` keeps the reason until the claim succeeds.
    Claiming {
        /// Why it was not read.
        stopped: Option<String>,
    },
    /// It is read.
    Running,
    /// It is not read, and will be claimed again.
    Paused {
        /// Why.
        cause: Cause,
        /// When it will be claimed again.
        until: Instant,
    },
}

/// Why a partition is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Fenced: another process has claimed it, or its offset was changed.
    Lost,
    /// The topic does not look like the one that was read.
    Suspected,
    /// The broker does not hold the offset.
    OffsetOutOfRange,
    /// The client cannot read a batch of the topic.
    Unreadable,
    /// It was in trouble and held memory that the others needed.
    HeldUp,
    /// An operator has to decide. The text says what and how.
    Stopped(String),
}

impl State {
    /// The state for people and for `/health`.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Claiming { stopped: None } => "claiming",
            Self::Running => "running",
            Self::Claiming {
                stopped: Some(reason),
            } => reason,
            Self::Paused { cause, .. } => match cause {
                Cause::Lost => "lost",
                Cause::Suspected => "suspected",
                Cause::OffsetOutOfRange => "offset out of range",
                Cause::Unreadable => "a batch cannot be read",
                Cause::HeldUp => "held up",
                Cause::Stopped(reason) => reason,
            },
        }
    }

    /// Returns whether nothing is wrong with the partition.
    fn is_well(&self) -> bool {
        matches!(self, Self::Running | Self::Claiming { stopped: None })
    }

    /// Why an operator has to decide, if so.
    fn stopped(&self) -> Option<&String> {
        match self {
            Self::Claiming {
                stopped: Some(reason),
            }
            | Self::Paused {
                cause: Cause::Stopped(reason),
                ..
            } => Some(reason),
            _ => None,
        }
    }
}

/// What holds up a partition while its writer tries again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What is wrong and what to do, for people.
    pub reason: String,
    /// Whether the database refused something. If it does so for every partition, the database itself is in trouble.
    pub is_refused_by_database: bool,
}

/// An assigned partition.
#[derive(Debug)]
struct Entry {
    state: State,
    /// The reading that counts; none while the partition is paused.
    reading: Option<Reading>,
    /// Set by the writer once it has claimed the partition, until the reading ends or the claim is lost.
    claim: Option<Claim>,
    /// Set by the writer, until it succeeds or the reading ends.
    trouble: Option<Trouble>,
    /// When the trouble began.
    troubled_at: Instant,
    /// When the database last confirmed the claim.
    confirmed_at: Instant,
    next_offset: Option<Offset>,
    /// The offset that Kafka was last seen to hold for the group.
    mirrored: Option<Offset>,
    lag_clock: LagClock,
    /// The lag when it was last measured.
    lag: Option<Lag>,
}

impl Entry {
    fn new() -> Self {
        Self {
            state: State::Claiming { stopped: None },
            reading: None,
            claim: None,
            trouble: None,
            troubled_at: Instant::now(),
            confirmed_at: Instant::now(),
            next_offset: None,
            mirrored: None,
            lag_clock: LagClock::default(),
            lag: None,
        }
    }

    fn end_reading(&mut self) {
        self.reading = None;
        self.claim = None;
        self.trouble = None;
    }

    /// The database has confirmed the claim.
    fn confirm(&mut self) {
        self.confirmed_at = Instant::now();
        self.trouble = None;
    }
}

/// How far a partition is stored, according to the database.
#[derive(Clone, Copy, Debug)]
pub struct StoredPosition {
    /// Offset of the next record to store.
    pub next_offset: Offset,
    /// Time of the last stored record, in milliseconds since 1970; none if there is none.
    pub last_timestamp_ms: Option<i64>,
}

/// A snapshot of a partition that is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningPartition {
    /// Its reading.
    pub reading: Reading,
    /// What is compared with the brokers' log.
    pub glimpse: Glimpse,
}

/// Numbers of assigned partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them.
    pub assigned: usize,
    /// Those that a writer claims.
    pub claiming: usize,
    /// Those that are read.
    pub running: usize,
    /// Those for which an operator has to decide.
    pub stopped: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
enum Phase {
    #[default]
    Starting,
    Running,
    Stopping,
}

/// The state of the process and of its partitions. It begins with a process that starts.
#[derive(Debug, Default)]
pub struct Board {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    phase: Phase,
    /// Whether the schema was found up to date.
    is_database_seen: bool,
    /// Writers whose last attempt failed. While one of them waits, another one may have nothing to do.
    troubled_writers: BTreeSet<usize>,
    /// Why dead letters cannot be published, if so.
    relay_trouble: Option<String>,
    last_generation: u64,
    partitions: BTreeMap<Partition, Entry>,
    /// Records by which a changed log is recognised, with their incarnations. They are kept while a partition is not assigned.
    held: BTreeMap<Partition, (Incarnation, Witness)>,
}

impl Inner {
    /// The partition's entry, if this reading of it counts.
    fn current(&mut self, reading: Reading) -> Option<&mut Entry> {
        self.partitions
            .get_mut(&reading.partition)
            .filter(|entry| entry.reading == Some(reading))
    }
}

impl Board {
    /// Begins a new reading of a partition, which its writer must claim. All earlier readings cease to count.
    pub fn begin_claim(&self, partition: Partition) -> Reading {
        let mut inner = self.inner.lock();
        inner.last_generation += 1;
        let reading = Reading {
            partition,
            generation: inner.last_generation,
        };
        let entry = inner.partitions.entry(partition).or_insert_with(Entry::new);
        entry.end_reading();
        entry.reading = Some(reading);
        let stopped = entry.state.stopped().cloned();
        entry.state = State::Claiming { stopped };
        reading
    }

    /// A writer has claimed a partition.
    pub fn claimed(&self, reading: Reading, claim: &Claim) {
        let mut inner = self.inner.lock();
        // A claim that was under way while its partition was taken away brings nothing back.
        if let Some(entry) = inner.current(reading) {
            entry.claim = Some(claim.clone());
            entry.confirm();
            entry.next_offset = Some(claim.next_offset);
        }
        // The claim has checked both: the row's newest witness and the one that was held.
        let incarnation = claim.guard.incarnation;
        if let Some(newest) = claim.witnesses.newest() {
            inner.held.insert(reading.partition, (incarnation, *newest));
        }
    }

    /// A claimed partition is read from now on.
    pub fn start(&self, reading: Reading) {
        if let Some(entry) = self.inner.lock().current(reading) {
            entry.state = State::Running;
        }
    }

    /// Ends a reading: what was read and is not stored yet is dropped. The partition is claimed again after a while.
    ///
    /// Returns why an operator had to decide before, if so.
    pub fn pause(&self, reading: Reading, cause: Cause, retry_after: Duration) -> Option<String> {
        let mut inner = self.inner.lock();
        let entry = inner.current(reading)?;
        entry.end_reading();
        let until = Instant::now() + retry_after;
        let before = std::mem::replace(&mut entry.state, State::Paused { cause, until });
        before.stopped().cloned()
    }

    /// Stops reading, but lets the writer store what was read. The partition is claimed again after a while.
    pub fn suspend(&self, reading: Reading, cause: Cause, retry_after: Duration) {
        if let Some(entry) = self.inner.lock().current(reading) {
            let until = Instant::now() + retry_after;
            entry.state = State::Paused { cause, until };
        }
    }

    /// The partition is no longer assigned.
    pub fn release(&self, partition: Partition) {
        self.inner.lock().partitions.remove(&partition);
    }

    /// Returns whether this reading counts.
    pub fn is_current(&self, reading: Reading) -> bool {
        self.inner.lock().current(reading).is_some()
    }

    /// Returns the paused partitions that must be claimed again now.
    pub fn due_claims(&self) -> Vec<Partition> {
        let now = Instant::now();
        (self.inner.lock().partitions.iter())
            .filter(|(_, entry)| matches!(entry.state, State::Paused { until, .. } if until <= now))
            .map(|(partition, _)| *partition)
            .collect()
    }

    /// Counts the assigned partitions by their states.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for entry in self.inner.lock().partitions.values() {
            counts.assigned += 1;
            match entry.state {
                State::Claiming { .. } => counts.claiming += 1,
                State::Running => counts.running += 1,
                State::Paused { .. } => {}
            }
            counts.stopped += usize::from(entry.state.stopped().is_some());
        }
        counts
    }

    /// Returns the claim of a reading that counts.
    pub fn claim_of(&self, reading: Reading) -> Option<Claim> {
        self.inner.lock().current(reading)?.claim.clone()
    }

    /// The database does not confirm the claim any more, or the partition has halted: nothing more is stored under it.
    pub fn withdraw_claim(&self, reading: Reading) {
        if let Some(entry) = self.inner.lock().current(reading) {
            entry.claim = None;
        }
    }

    /// Returns the claims of some partitions that the database has not confirmed for this long.
    pub fn unconfirmed_claims(
        &self,
        age: Duration,
        is_wanted: impl Fn(Partition) -> bool,
    ) -> Vec<(Reading, Claim)> {
        (self.inner.lock().partitions.iter())
            .filter(|(partition, entry)| {
                is_wanted(**partition) && entry.confirmed_at.elapsed() >= age
            })
            .filter_map(|(_, entry)| Some((entry.reading?, entry.claim.clone()?)))
            .collect()
    }

    /// Returns whether there is a claim of one of these partitions.
    pub fn has_claims(&self, is_wanted: impl Fn(Partition) -> bool) -> bool {
        !self
            .unconfirmed_claims(Duration::ZERO, is_wanted)
            .is_empty()
    }

    /// The database has confirmed the claim.
    pub fn confirm(&self, reading: Reading) {
        if let Some(entry) = self.inner.lock().current(reading) {
            entry.confirm();
        }
    }

    /// The writer has failed at something that concerns only this partition, and tries again.
    pub fn set_trouble(&self, reading: Reading, trouble: Trouble) {
        if let Some(entry) = self.inner.lock().current(reading) {
            if entry.trouble.is_none() {
                entry.troubled_at = Instant::now();
            }
            entry.trouble = Some(trouble);
        }
    }

    /// Returns the readings that are in trouble while another partition goes on: the database has confirmed that one since.
    /// One that is only not in trouble yet may be in the same trouble soon.
    pub fn held_up(&self) -> Vec<Reading> {
        let inner = self.inner.lock();
        let well = (inner.partitions.values())
            .filter(|entry| entry.state == State::Running && entry.trouble.is_none());
        let Some(confirmed_at) = well.map(|entry| entry.confirmed_at).max() else {
            return Vec::new();
        };
        (inner.partitions.values())
            .filter(|entry| entry.trouble.is_some() && entry.troubled_at < confirmed_at)
            .filter_map(|entry| entry.reading)
            .collect()
    }

    /// A batch is stored.
    pub fn stored(
        &self,
        reading: Reading,
        next_offset: Offset,
        witness: Option<Witness>,
        consecutive_bad: i64,
    ) {
        let mut inner = self.inner.lock();
        // A batch that was under way while its partition was taken away brings nothing back.
        let Some(entry) = inner.current(reading) else {
            return;
        };
        entry.confirm();
        entry.next_offset = Some(next_offset);
        if let Some(witness) = witness {
            let now_ms = Utc::now().timestamp_millis();
            let timestamp_ms = witness.position.timestamp_ms;
            entry.lag_clock.set_last_timestamp(timestamp_ms, now_ms);
        }
        let Some(claim) = &mut entry.claim else {
            return;
        };
        claim.next_offset = next_offset;
        claim.consecutive_bad = consecutive_bad;
        let Some(witness) = witness else {
            return;
        };
        claim.witnesses.push(witness);
        // Only the first one: a later record may belong to a log that was changed meanwhile, see `watch::topic`.
        let first = (claim.guard.incarnation, witness);
        let held = inner.held.entry(reading.partition).or_insert(first);
        if held.0 != first.0 {
            *held = first;
        }
    }

    /// A record of this incarnation that was read before the last look at the brokers' log.
    pub fn held_witness(&self, partition: Partition, incarnation: Incarnation) -> Option<Witness> {
        let held = self.inner.lock().held.get(&partition).copied();
        held.filter(|held| held.0 == incarnation).map(|held| held.1)
    }

    /// Holds a later record instead if the reading still counts.
    pub fn hold_witness(&self, reading: Reading, incarnation: Incarnation, witness: Witness) {
        let mut inner = self.inner.lock();
        if inner.current(reading).is_some() {
            inner.held.insert(reading.partition, (incarnation, witness));
        }
    }

    /// Returns the partitions that are assigned.
    pub fn assigned_partitions(&self) -> Vec<Partition> {
        self.inner.lock().partitions.keys().copied().collect()
    }

    /// Returns the partitions that are read.
    pub fn running_partitions(&self) -> Vec<RunningPartition> {
        (self.inner.lock().partitions.values())
            .filter(|entry| entry.state == State::Running)
            .filter_map(|entry| {
                let claim = entry.claim.as_ref()?;
                Some(RunningPartition {
                    reading: entry.reading?,
                    glimpse: Glimpse {
                        incarnation: claim.guard.incarnation,
                        next_offset: claim.next_offset,
                        witnesses: claim.witnesses.clone(),
                    },
                })
            })
            .collect()
    }

    /// Measures the lag of a partition; `None` if its offset or the end of its log was never known. `log` is none while no
    /// broker tells the range.
    pub fn measure_lag(
        &self,
        partition: Partition,
        log: Option<LogRange>,
        now_ms: i64,
    ) -> Option<Lag> {
        let mut inner = self.inner.lock();
        let entry = inner.partitions.get_mut(&partition)?;
        entry.lag = entry.lag_clock.measure(entry.next_offset?, log, now_ms);
        entry.lag
    }

    /// Kafka was seen to hold these offsets for the group.
    pub fn set_mirrored(&self, committed: &[(Partition, Offset)]) {
        let mut inner = self.inner.lock();
        for (partition, offset) in committed {
            if let Some(entry) = inner.partitions.get_mut(partition) {
                entry.mirrored = Some(*offset);
            }
        }
    }

    /// Returns the offset that Kafka was last seen to hold for the group since the partition was assigned.
    pub fn mirrored(&self, partition: Partition) -> Option<Offset> {
        self.inner.lock().partitions.get(&partition)?.mirrored
    }

    /// Adds what the writers have not reported. For a running partition this is the time of the last record, until a
    /// record is stored. For any other it is the offset: the partition has no writer, and an operator may change the row.
    pub fn fill_in_position(&self, partition: Partition, stored: StoredPosition, now_ms: i64) {
        if let Some(entry) = self.inner.lock().partitions.get_mut(&partition) {
            if entry.state != State::Running {
                entry.next_offset = Some(stored.next_offset);
            }
            let timestamp_ms = stored.last_timestamp_ms;
            entry
                .lag_clock
                .set_last_timestamp_if_unknown(timestamp_ms, now_ms);
        }
    }

    /// The database has answered for the first time.
    pub fn set_database_seen(&self) {
        self.inner.lock().is_database_seen = true;
    }

    /// A writer has reached the database, or has not.
    pub fn set_database_ok(&self, writer: usize, is_ok: bool) {
        let mut inner = self.inner.lock();
        if is_ok {
            inner.troubled_writers.remove(&writer);
        } else {
            inner.troubled_writers.insert(writer);
        }
    }

    /// The relay could not publish dead letters, for this reason, or all is well with it again.
    pub fn set_relay_trouble(&self, trouble: Option<String>) {
        self.inner.lock().relay_trouble = trouble;
    }

    /// The consumer has subscribed.
    pub fn set_running(&self) {
        self.inner.lock().phase = Phase::Running;
    }

    /// The process stops: what is in trouble is not tried again.
    pub fn set_stopping(&self) {
        self.inner.lock().phase = Phase::Stopping;
    }

    /// Returns whether the process stops.
    pub fn is_stopping(&self) -> bool {
        self.inner.lock().phase == Phase::Stopping
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::Guard;
    use crate::record::Epoch;
    use crate::witnesses::Witnesses;

    const P1: Partition = Partition(1);
    const P2: Partition = Partition(2);

    const GUARD: Guard = Guard {
        partition: P1,
        incarnation: Incarnation(1),
        log_since: Incarnation(1),
        replay_until: None,
        doubt: None,
    };

    fn claim(next_offset: i64) -> Claim {
        Claim {
            epoch: Epoch(1),
            next_offset: Offset(next_offset),
            guard: GUARD,
            consecutive_bad: 0,
            witnesses: Witnesses::default(),
            end_offset: Offset(next_offset),
        }
    }

    fn running(board: &Board, partition: Partition) -> Reading {
        let reading = board.begin_claim(partition);
        board.claimed(reading, &claim(0));
        board.start(reading);
        reading
    }

    fn state(board: &Board, partition: Partition) -> String {
        board.inner.lock().partitions[&partition]
            .state
            .as_str()
            .to_owned()
    }

    #[test]
    fn only_the_newest_reading_of_a_partition_counts() {
        let board = Board::default();
        let first = board.begin_claim(P1);
        let other = board.begin_claim(P2);
        let second = board.begin_claim(P1);
        let is = |reading| board.is_current(reading);
        assert!(!is(first) && is(second) && is(other));
        board.release(P1);
        assert!(!is(second) && is(other));
        board.pause(other, Cause::Lost, Duration::ZERO);
        assert!(!is(other));
        assert_eq!(board.due_claims(), [P2]);
    }

    #[test]
    fn trouble_ends_with_a_success_or_with_its_reading() {
        let board = Board::default();
        let trouble = || Trouble {
            reason: "its row is locked".to_owned(),
            is_refused_by_database: false,
        };
        let old = board.begin_claim(P1);
        let reading = board.begin_claim(P1);
        board.set_trouble(old, trouble());
        let other = running(&board, P2);
        assert_eq!(board.held_up(), []);
        let heal: [&dyn Fn(); 3] = [
            &|| board.claimed(reading, &claim(0)),
            &|| board.stored(reading, Offset(1), None, 0),
            &|| board.confirm(reading),
        ];
        for heal in heal {
            board.set_trouble(reading, trouble());
            assert_eq!(board.held_up(), [], "the other may be in trouble soon");
            board.confirm(other);
            board.set_trouble(reading, trouble());
            assert_eq!(board.held_up(), [reading]);
            heal();
            assert_eq!(board.held_up(), []);
        }
        board.set_trouble(reading, trouble());
        board.release(P2);
        assert_eq!(board.held_up(), [], "nobody else needs anything");
        running(&board, P2);
        board.begin_claim(P1);
        assert_eq!(board.held_up(), []);
    }

    #[test]
    fn a_claim_counts_only_for_its_reading_and_until_it_is_withdrawn() {
        let board = Board::default();
        let old = board.begin_claim(P1);
        let reading = board.begin_claim(P1);
        board.claimed(old, &claim(3));
        assert_eq!((board.claim_of(old), board.claim_of(reading)), (None, None));
        board.claimed(reading, &claim(5));
        board.stored(reading, Offset(9), None, 2);
        let stored = board.claim_of(reading).unwrap();
        assert_eq!((stored.next_offset, stored.consecutive_bad), (Offset(9), 2));
        assert!(board.has_claims(|partition| partition == P1));
        board.withdraw_claim(reading);
        assert!(board.is_current(reading) && board.claim_of(reading).is_none());
        assert!(!board.has_claims(|_| true));
    }

    #[test]
    fn a_suspended_partition_may_store_what_was_read_and_a_paused_one_may_not() {
        let board = Board::default();
        let (suspended, paused) = (running(&board, P1), running(&board, P2));
        board.suspend(suspended, Cause::Unreadable, Duration::from_secs(3600));
        board.pause(paused, Cause::Suspected, Duration::from_secs(3600));
        assert!(board.claim_of(suspended).is_some() && board.claim_of(paused).is_none());
        assert_eq!(state(&board, P1), "a batch cannot be read");
        assert_eq!(board.due_claims(), []);
        let counts = Counts {
            assigned: 2,
            ..Counts::default()
        };
        assert_eq!(board.counts(), counts);
    }

    #[test]
    fn a_stopped_partition_keeps_its_reason_until_its_claim_succeeds() {
        let board = Board::default();
        let stop = |reason: &str| {
            let reading = board.begin_claim(P1);
            let cause = Cause::Stopped(reason.to_owned());
            board.pause(reading, cause, Duration::ZERO)
        };
        assert_eq!(stop("halted"), None);
        assert_eq!(stop("an incident"), Some("halted".to_owned()));
        assert_eq!(board.counts().stopped, 1);
        let reading = board.begin_claim(P1);
        assert_eq!(state(&board, P1), "an incident");
        assert_eq!(board.counts().stopped, 1, "nobody has decided yet");
        board.claimed(reading, &claim(0));
        board.start(reading);
        assert_eq!(state(&board, P1), "running");
        assert_eq!(board.counts().stopped, 0);
        board.pause(reading, Cause::Lost, Duration::ZERO);
        board.begin_claim(P1);
        assert_eq!(state(&board, P1), "claiming");
    }

    #[test]
    fn what_kafka_held_before_a_partition_was_assigned_is_not_known() {
        let board = Board::default();
        board.set_mirrored(&[(P1, Offset(5))]);
        assert_eq!(board.mirrored(P1), None);
        board.begin_claim(P1);
        assert_eq!(board.mirrored(P1), None);
        board.set_mirrored(&[(P1, Offset(5)), (P2, Offset(6))]);
        assert_eq!(
            (board.mirrored(P1), board.mirrored(P2)),
            (Some(Offset(5)), None)
        );
        board.release(P1);
        board.begin_claim(P1);
        assert_eq!(board.mirrored(P1), None);
    }

    #[test]
    fn the_database_tells_the_position_of_a_partition_that_is_not_read() {
        let board = Board::default();
        let stored = |next_offset| StoredPosition {
            next_offset: Offset(next_offset),
            last_timestamp_ms: Some(2_000),
        };
        let position = || board.inner.lock().partitions[&P1].next_offset;
        // Not assigned.
        board.fill_in_position(P1, stored(1), 9_000);
        assert!(board.assigned_partitions().is_empty());
        let reading = running(&board, P1);
        board.stored(reading, Offset(7), None, 0);
        board.fill_in_position(P1, stored(2), 9_000);
        assert_eq!(position(), Some(Offset(7)), "a writer knows better");
        board.pause(reading, Cause::Lost, Duration::ZERO);
        board.fill_in_position(P1, stored(2), 9_000);
        assert_eq!(position(), Some(Offset(2)));
    }
}
