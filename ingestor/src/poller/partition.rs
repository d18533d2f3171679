//! One assigned partition, as the poll thread sees it.

use std::time::{Duration, Instant};

use crate::batch::{Batch, Reading};
use crate::config::BatchSettings;

/// What may be done with a partition.
#[derive(Debug)]
pub(super) enum State {
    /// A writer claims it; paused.
    Claiming,
    /// It is read.
    Running(Batch),
    /// Not ours or not readable now; paused, claimed again later.
    Waiting {
        /// When.
        until: Instant,
    },
}

/// An assigned partition.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) state: State,
    /// Why an operator has to decide; none once it was claimed.
    pub(super) stopped: Option<String>,
    /// Batches with the writer.
    handed_over: usize,
    /// When it was given the last one.
    handed_over_at: Instant,
    /// How long it took for the last one that it has stored.
    last_took: Option<Duration>,
    /// The end was reached, and nothing has been read since.
    pub(super) at_end: bool,
    /// Stored, and not yet told to Kafka.
    unmirrored: Option<i64>,
}

impl Partition {
    pub(super) fn new() -> Self {
        Self {
            state: State::Waiting {
                until: Instant::now(),
            },
            stopped: None,
            handed_over: 0,
            handed_over_at: Instant::now(),
            last_took: None,
            at_end: false,
            unmirrored: None,
        }
    }

    /// Reads on from an offset that was claimed.
    pub(super) fn start(&mut self, reading: Reading, next_offset: i64) {
        self.state = State::Running(Batch::open(reading, next_offset));
        self.stopped = None;
        self.handed_over = 0;
        self.at_end = false;
    }

    /// The batch being filled, while the partition is read.
    pub(super) fn batch_mut(&mut self) -> Option<&mut Batch> {
        match &mut self.state {
            State::Running(batch) => Some(batch),
            _ => None,
        }
    }

    pub(super) fn running(&self) -> Option<Reading> {
        match &self.state {
            State::Running(batch) => Some(batch.reading),
            _ => None,
        }
    }

    /// Whether a writer's answer is awaited.
    pub(super) fn is_busy(&self) -> bool {
        self.handed_over > 0 || matches!(self.state, State::Claiming)
    }

    /// Whether all that was read is stored, up to the end.
    pub(super) fn rests_at_end(&self) -> bool {
        let has_nothing = matches!(&self.state, State::Running(batch) if batch.is_empty())
            && self.handed_over == 0;
        self.at_end && has_nothing
    }

    /// Time until the batch is old, where it has anything and its writer is free.
    ///
    /// It gets old as soon as it has waited for as long as the last one took to be stored: a quick database is given small
    /// batches at once, a busy one fewer and fuller ones, and neither is kept busy by one partition for more than half of
    /// the time.
    pub(super) fn age_left(&self, max_age: Duration) -> Option<Duration> {
        match &self.state {
            State::Running(batch) if !batch.is_empty() && self.handed_over == 0 => {
                let age = self.last_took.map_or(max_age, |took| took.min(max_age));
                Some(age.saturating_sub(batch.opened_at().elapsed()))
            }
            _ => None,
        }
    }

    /// The batch, if it is full, or old while the writer has nothing of this partition: under load batches so grow
    /// until they are full.
    pub(super) fn take_due(&mut self, settings: BatchSettings, max_bytes: usize) -> Option<Batch> {
        let old = self
            .age_left(settings.max_age)
            .is_some_and(|left| left.is_zero());
        let batch = self.batch_mut()?;
        let full = batch.records() >= settings.max_records || batch.size_bytes >= max_bytes;
        if old || full { self.take_any() } else { None }
    }

    /// The batch, if there is anything in it; the next one goes on behind it.
    pub(super) fn take_any(&mut self) -> Option<Batch> {
        let batch = self.batch_mut().filter(|batch| !batch.is_empty())?;
        let next = Batch::open(batch.reading, batch.new_next_offset);
        self.handed_over += 1;
        self.handed_over_at = Instant::now();
        Some(std::mem::replace(self.batch_mut()?, next))
    }

    /// Forgets what was read; answers the memory that came free.
    pub(super) fn drop_batch(&mut self) -> usize {
        let freed = self.batch_mut().map_or(0, |batch| batch.size_bytes);
        self.state = State::Waiting {
            until: Instant::now(),
        };
        freed
    }

    pub(super) fn stored(&mut self, next_offset: i64, at: Instant) {
        self.handed_over = self.handed_over.saturating_sub(1);
        self.last_took = Some(at.saturating_duration_since(self.handed_over_at));
        self.unmirrored = Some(next_offset);
    }

    pub(super) fn take_unmirrored(&mut self) -> Option<i64> {
        self.unmirrored.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_AGE: Duration = Duration::from_secs(60);
    const READING: Reading = Reading {
        partition: 0,
        generation: 1,
    };

    fn partition_with_a_record() -> Partition {
        let mut partition = Partition::new();
        partition.start(READING, 0);
        partition.batch_mut().unwrap().reach(1);
        partition
    }

    #[test]
    fn a_batch_waits_as_long_as_the_last_one_took_and_its_age_at_most() {
        let mut partition = partition_with_a_record();
        let left = |partition: &Partition| partition.age_left(MAX_AGE).unwrap();
        assert!(left(&partition) > MAX_AGE / 2);
        partition.last_took = Some(MAX_AGE * 2);
        assert!((MAX_AGE / 2..=MAX_AGE).contains(&left(&partition)));
        partition.last_took = Some(MAX_AGE / 2);
        assert!((MAX_AGE / 4..=MAX_AGE / 2).contains(&left(&partition)));
        partition.last_took = Some(Duration::ZERO);
        assert_eq!(left(&partition), Duration::ZERO);
    }

    #[test]
    fn a_batch_does_not_get_old_while_its_writer_is_busy() {
        let mut partition = partition_with_a_record();
        assert!(partition.take_any().is_some());
        partition.batch_mut().unwrap().reach(2);
        assert_eq!(partition.age_left(Duration::ZERO), None);
        let at = partition.handed_over_at + MAX_AGE / 2;
        partition.stored(1, at);
        assert_eq!(partition.last_took, Some(MAX_AGE / 2));
        partition.last_took = Some(Duration::ZERO);
        assert_eq!(partition.age_left(Duration::ZERO), Some(Duration::ZERO));
    }
}
