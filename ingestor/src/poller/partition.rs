//! What the poll thread has of an assigned partition: the batch that is being filled, and how quickly batches are stored.

use std::time::{Duration, Instant};

use crate::batch::Batch;
use crate::config::BatchSettings;
use crate::record::{Offset, Reading};

/// An assigned partition. Its state is on the board.
#[derive(Debug)]
pub(super) struct AssignedPartition {
    /// The batch that is being filled while the partition is read.
    pub(super) batch: Option<Batch>,
    /// The number of batches that the writer has.
    handed_over: usize,
    /// When the last of them was handed over.
    handed_over_at: Instant,
    /// How long the writer took for the last batch that it stored.
    last_took: Option<Duration>,
    /// Whether the end was reached and nothing has been read since.
    pub(super) is_at_end: bool,
    /// The next offset that the database holds; none until the partition is claimed.
    pub(super) stored_offset: Option<Offset>,
    /// Since when the first of the records that are there has been waited for.
    awaited_since: Option<Instant>,
}

impl AssignedPartition {
    pub(super) fn new() -> Self {
        Self {
            batch: None,
            handed_over: 0,
            handed_over_at: Instant::now(),
            last_took: None,
            is_at_end: false,
            stored_offset: None,
            awaited_since: None,
        }
    }

    /// Reads from an offset that was claimed.
    pub(super) fn start(&mut self, reading: Reading, next_offset: Offset, has_records: bool) {
        self.batch = Some(Batch::open(reading, next_offset));
        self.handed_over = 0;
        self.is_at_end = false;
        self.stored_offset = Some(next_offset);
        self.awaited_since = has_records.then(Instant::now);
    }

    /// Notes that the client has told something of the partition: a record, or that its end is reached.
    pub(super) fn heard(&mut self, is_at_end: bool) {
        self.is_at_end = is_at_end;
        self.awaited_since = None;
    }

    /// Returns whether the partition is read and the client has told nothing of it for so long, though it has records.
    pub(super) fn is_silent_for(&self, time: Duration) -> bool {
        let since = self.awaited_since.filter(|_| self.batch.is_some());
        since.is_some_and(|since| since.elapsed() >= time)
    }

    /// Begins to wait for the first record anew, after a time in which none could come.
    pub(super) fn wait_anew(&mut self) {
        self.awaited_since = self.awaited_since.map(|_| Instant::now());
    }

    /// Returns whether the partition is read, and no first record is waited for.
    pub(super) fn is_heard(&self) -> bool {
        self.batch.is_some() && self.awaited_since.is_none()
    }

    /// Returns whether the writer has a batch.
    pub(super) fn has_handed_over(&self) -> bool {
        self.handed_over > 0
    }

    /// Returns whether everything up to the partition's end is stored.
    pub(super) fn rests_at_end(&self) -> bool {
        let has_nothing = self.batch.as_ref().is_some_and(Batch::is_empty) && self.handed_over == 0;
        self.is_at_end && has_nothing
    }

    /// Returns the time until the batch is old; `None` if it is empty or the writer has another one.
    ///
    /// A batch is old as soon as it has waited for as long as the last one took to be stored. So a quick database gets
    /// small batches at once, and a busy one gets fewer and fuller ones. One partition keeps neither busy for more than half
    /// of the time.
    pub(super) fn age_left(&self, max_age: Duration) -> Option<Duration> {
        let batch = self.batch.as_ref().filter(|batch| !batch.is_empty())?;
        let age = self.last_took.map_or(max_age, |took| took.min(max_age));
        (self.handed_over == 0).then(|| age.saturating_sub(batch.opened_at().elapsed()))
    }

    /// Takes the batch if it is full, or if it is old while the writer has no batch of this partition. Under load batches
    /// therefore grow until they are full.
    pub(super) fn take_due(&mut self, settings: BatchSettings, max_bytes: usize) -> Option<Batch> {
        let is_old = self
            .age_left(settings.max_age)
            .is_some_and(|left| left.is_zero());
        let batch = self.batch.as_ref()?;
        let is_full = batch.records() >= settings.max_records || batch.size_bytes >= max_bytes;
        if is_old || is_full {
            self.take_any()
        } else {
            None
        }
    }

    /// Takes the batch if it is not empty. The next batch begins where it ends.
    pub(super) fn take_any(&mut self) -> Option<Batch> {
        let batch = self.batch.as_mut().filter(|batch| !batch.is_empty())?;
        self.handed_over += 1;
        self.handed_over_at = Instant::now();
        let next = Batch::open(batch.reading, batch.new_next_offset);
        Some(std::mem::replace(batch, next))
    }

    /// Drops what was read and not handed over. Returns the memory that is free again.
    pub(super) fn drop_batch(&mut self) -> usize {
        self.batch.take().map_or(0, |batch| batch.size_bytes)
    }

    /// Notes that the writer has stored a batch.
    pub(super) fn stored(&mut self, next_offset: Offset, at: Instant) {
        self.handed_over = self.handed_over.saturating_sub(1);
        self.last_took = Some(at.saturating_duration_since(self.handed_over_at));
        self.stored_offset = Some(next_offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Partition;

    const MAX_AGE: Duration = Duration::from_secs(60);
    const READING: Reading = Reading {
        partition: Partition(0),
        generation: 1,
    };

    fn partition_with_a_record() -> AssignedPartition {
        let mut partition = AssignedPartition::new();
        partition.start(READING, Offset(0), true);
        partition.batch.as_mut().unwrap().reach(Offset(1));
        partition
    }

    #[test]
    fn a_batch_waits_as_long_as_the_last_one_took_but_at_most_its_age() {
        let mut partition = partition_with_a_record();
        let left = |partition: &AssignedPartition| partition.age_left(MAX_AGE).unwrap();
        assert!(left(&partition) > MAX_AGE / 2);
        partition.last_took = Some(MAX_AGE * 2);
        assert!((MAX_AGE / 2..=MAX_AGE).contains(&left(&partition)));
        partition.last_took = Some(MAX_AGE / 2);
        assert!((MAX_AGE / 4..=MAX_AGE / 2).contains(&left(&partition)));
        partition.last_took = Some(Duration::ZERO);
        assert_eq!(left(&partition), Duration::ZERO);
    }

    #[test]
    fn a_partition_is_silent_until_something_is_heard_of_it() {
        let mut partition = partition_with_a_record();
        assert!(!partition.is_silent_for(MAX_AGE));
        assert!(partition.is_silent_for(Duration::ZERO) && !partition.is_heard());
        partition.awaited_since = partition.awaited_since.map(|since| since - MAX_AGE);
        assert!(partition.is_silent_for(MAX_AGE));
        partition.wait_anew();
        assert!(!partition.is_silent_for(MAX_AGE));
        partition.heard(true);
        assert!(!partition.is_silent_for(Duration::ZERO) && partition.is_heard());
        partition.wait_anew();
        assert!(partition.is_heard());
        partition.start(READING, Offset(0), false);
        assert!(
            !partition.is_silent_for(Duration::ZERO),
            "it has no records"
        );
        partition.start(READING, Offset(0), true);
        partition.drop_batch();
        assert!(!partition.is_silent_for(Duration::ZERO), "it is not read");
    }

    #[test]
    fn a_batch_does_not_get_old_while_its_writer_is_busy() {
        let mut partition = partition_with_a_record();
        assert!(partition.take_any().is_some());
        partition.batch.as_mut().unwrap().reach(Offset(2));
        assert_eq!(partition.age_left(Duration::ZERO), None);
        let at = partition.handed_over_at + MAX_AGE / 2;
        partition.stored(Offset(1), at);
        assert_eq!(partition.last_took, Some(MAX_AGE / 2));
        partition.last_took = Some(Duration::ZERO);
        assert_eq!(partition.age_left(Duration::ZERO), Some(Duration::ZERO));
    }
}
