//! What a writer has to do, by partition. No I/O.
//!
//! The jobs of a partition are done in order. While the first one waits, the others of its partition wait behind it, and those
//! of other partitions go on. Of the jobs that are due, the one that came first is done first.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::job::{ClaimJob, Due, Hold, Job};
use crate::record::{Partition, Reading};

/// A job in its place.
#[derive(Debug)]
pub(super) struct Queued {
    number: u64,
    due: Due,
    pub(super) job: Job,
    pub(super) hold: Hold,
}

impl Queued {
    fn is_due(&self, now: Instant) -> bool {
        self.due.time().is_some_and(|time| time <= now)
    }
}

/// The jobs of one writer.
#[derive(Debug, Default)]
pub(super) struct Queue {
    lanes: BTreeMap<Partition, VecDeque<Queued>>,
    last_number: u64,
}

impl Queue {
    /// Adds a job behind all others of its partition.
    pub(super) fn push(&mut self, job: Job) {
        self.last_number += 1;
        let partition = job.reading().partition;
        self.lanes.entry(partition).or_default().push_back(Queued {
            number: self.last_number,
            due: Due::now(),
            job,
            hold: Hold::new(),
        });
    }

    /// Takes the job that is due and came first.
    pub(super) fn take_due(&mut self) -> Option<Queued> {
        let now = Instant::now();
        let heads = self.lanes.values().filter_map(|lane| lane.front());
        let first = heads
            .filter(|queued| queued.is_due(now))
            .min_by_key(|queued| queued.number)?;
        let partition = first.job.reading().partition;
        let lane = self.lanes.get_mut(&partition)?;
        let taken = lane.pop_front();
        self.remove_empty_lanes();
        taken
    }

    /// Puts a job back to its place: before all others of its partition.
    pub(super) fn put_back(&mut self, mut queued: Queued, due: Due) {
        queued.due = due;
        let partition = queued.job.reading().partition;
        self.lanes.entry(partition).or_default().push_front(queued);
    }

    /// When the next job is due; `None` if nothing is due by itself.
    pub(super) fn next_due_at(&self) -> Option<Instant> {
        (self.lanes.values())
            .filter_map(|lane| lane.front()?.due.time())
            .min()
    }

    /// Returns whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Returns whether there is something to do for a partition.
    pub(super) fn has_jobs_of(&self, partition: Partition) -> bool {
        self.lanes.contains_key(&partition)
    }

    /// Returns the claim that waits for the brokers' answer about this reading, and makes it due.
    pub(super) fn answered(&mut self, reading: Reading) -> Option<&mut ClaimJob> {
        let head = self.lanes.get_mut(&reading.partition)?.front_mut()?;
        match &mut head.job {
            Job::Claim(job) if job.reading == reading && head.due == Due::WithAnswer => {
                head.due = Due::now();
                Some(job)
            }
            _ => None,
        }
    }

    /// Removes the jobs that are not wanted any more, and returns them. Behind a removed job nothing of its partition is kept
    /// unless it is wanted, too.
    pub(super) fn remove_unless(&mut self, is_wanted: impl Fn(&Queued) -> bool) -> Vec<Job> {
        let mut removed = Vec::new();
        for lane in self.lanes.values_mut() {
            let (kept, dropped): (VecDeque<Queued>, VecDeque<Queued>) =
                std::mem::take(lane).into_iter().partition(&is_wanted);
            *lane = kept;
            removed.extend(dropped.into_iter().map(|queued| queued.job));
        }
        self.remove_empty_lanes();
        removed
    }

    /// Removes everything of the partitions whose first job has failed before, and returns it.
    pub(super) fn remove_failed(&mut self) -> Vec<Job> {
        let mut removed = Vec::new();
        self.lanes.retain(|_, lane| {
            let has_failed = lane.front().is_some_and(|queued| queued.hold.has_failed);
            if has_failed {
                removed.extend(lane.drain(..).map(|queued| queued.job));
            }
            !has_failed
        });
        removed
    }

    fn remove_empty_lanes(&mut self) {
        self.lanes.retain(|_, lane| !lane.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_secs(3600);

    fn reading(partition: i32, generation: u64) -> Reading {
        Reading {
            partition: Partition(partition),
            generation,
        }
    }

    fn queue(readings: &[Reading]) -> Queue {
        let mut queue = Queue::default();
        readings
            .iter()
            .for_each(|reading| queue.push(Job::Reread(*reading)));
        queue
    }

    fn next(queue: &mut Queue) -> Option<Reading> {
        queue.take_due().map(|queued| queued.job.reading())
    }

    #[test]
    fn a_job_that_waits_holds_up_its_own_partition_and_no_other() {
        let (first, second, other) = (reading(0, 1), reading(0, 2), reading(4, 3));
        let mut queue = queue(&[first, second, other]);
        let waiting = queue.take_due().unwrap();
        assert_eq!(waiting.job.reading(), first);
        queue.put_back(waiting, Due::after(SOON));
        assert_eq!((next(&mut queue), next(&mut queue)), (Some(other), None));
        assert!(queue.next_due_at().is_some_and(|at| at > Instant::now()));
        assert!(queue.has_jobs_of(Partition(0)) && !queue.has_jobs_of(Partition(4)));

        queue.lanes.get_mut(&Partition(0)).unwrap()[0].due = Due::now();
        assert_eq!(
            (next(&mut queue), next(&mut queue)),
            (Some(first), Some(second))
        );
        assert!(queue.is_empty());
    }

    #[test]
    fn a_job_that_is_due_again_does_not_keep_the_others_from_their_turn() {
        let (troubled, other) = (reading(0, 1), reading(4, 2));
        let mut queue = queue(&[troubled, other]);
        let waiting = queue.take_due().unwrap();
        queue.put_back(waiting, Due::after(Duration::from_millis(1)));
        assert_eq!(next(&mut queue), Some(other));
    }

    #[test]
    fn only_the_answer_about_its_own_reading_wakes_a_claim() {
        let mut queue = Queue::default();
        queue.push(Job::Claim(ClaimJob::new(reading(0, 2))));
        let claim = queue.take_due().unwrap();
        queue.put_back(claim, Due::WithAnswer);
        assert_eq!((next(&mut queue), queue.next_due_at()), (None, None));
        assert!(queue.answered(reading(0, 1)).is_none());
        assert!(queue.answered(reading(4, 2)).is_none());
        assert!(queue.answered(reading(0, 2)).is_some());
        assert!(queue.answered(reading(0, 2)).is_none());
        assert_eq!(next(&mut queue), Some(reading(0, 2)));
    }

    #[test]
    fn what_does_not_count_any_more_or_has_failed_can_be_removed() {
        let mut queue = queue(&[reading(0, 1), reading(0, 2), reading(4, 1), reading(8, 3)]);
        let removed = queue.remove_unless(|queued| queued.job.reading().generation > 1);
        assert_eq!(removed.len(), 2);
        assert!(!queue.has_jobs_of(Partition(4)));
        let mut failed = queue.take_due().unwrap();
        failed.hold.has_failed = true;
        queue.put_back(failed, Due::after(SOON));
        queue.push(Job::Reread(reading(0, 3)));
        assert_eq!(queue.remove_failed().len(), 2);
        assert_eq!(next(&mut queue), Some(reading(8, 3)));
        assert!(queue.is_empty());
    }
}
