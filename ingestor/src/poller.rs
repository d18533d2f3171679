//! The poll thread: owns the consumer and the state of every assigned partition.
//!
//! It takes what the group decides, has partitions claimed, turns records into batches and hands them to the writers.
//! It never waits for the database: a member that does not poll is evicted.

mod memory;
mod partition;
mod reading;
mod start;
mod trouble;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rdkafka::Offset;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Message};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::batch::{self, Reading};
use crate::config::BatchSettings;
use crate::consumer::{GroupConsumer, RebalanceEvent, partition_list};
use crate::current::Current;
use crate::dead_letters::DeadLetter;
use crate::failpoints::{self, Phase};
use crate::metrics::Metrics;
use crate::status::Status;
use crate::writer::{Report, Task};
use memory::{MemoryBudget, Pressure};
use partition::{Partition, State};

/// Writer threads, each with a connection. While some wait for their COMMIT to reach the disk, one after another because
/// of the lock that a notifying COMMIT takes, the others keep PostgreSQL busy.
const WRITERS: usize = 4;

/// Most time in one poll while nothing is under way, and while a writer may answer.
const IDLE_POLL: Duration = Duration::from_millis(50);
const BUSY_POLL: Duration = Duration::from_millis(2);
/// Records between two looks at everything else.
const RECORDS_PER_TURN: usize = 64;
/// How often Kafka's committed offsets, a mirror for lag tools, are brought up to date.
const MIRROR_INTERVAL: Duration = Duration::from_secs(5);
/// A stopped partition's row is looked at again so often: an operator who has decided waits for it.
const STOPPED_RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// A partition that was lost is claimed again after a while: if somebody else owns it, the group tells us meanwhile.
const LOST_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The poll thread's state.
pub struct Poller {
    consumer: GroupConsumer,
    topic: String,
    batch: BatchSettings,
    partitions: BTreeMap<i32, Partition>,
    current: Arc<Current>,
    budget: MemoryBudget,
    writers: Vec<Sender<Task>>,
    writer_threads: Vec<std::thread::JoinHandle<()>>,
    reports_rx: Receiver<Report>,
    suspicions_rx: Receiver<Reading>,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    last_mirror_at: Instant,
    last_trouble_report: Option<Instant>,
}

impl Poller {
    /// Works until shutdown, then finishes what is under way and leaves the group.
    ///
    /// # Errors
    /// Fails where only a restart helps: the client cannot go on, or a writer has died.
    pub fn run(mut self) -> anyhow::Result<()> {
        while !self.shutdown.is_cancelled() {
            self.take_turn()?;
        }
        self.finish()
    }

    fn take_turn(&mut self) -> anyhow::Result<()> {
        self.follow_group()?;
        while let Ok(report) = self.reports_rx.try_recv() {
            self.follow_writer(report)?;
        }
        while let Ok(reading) = self.suspicions_rx.try_recv() {
            if self.current.is(reading) {
                self.stop_reading(reading, "suspected", Duration::ZERO)?;
            }
        }
        self.claim_due();
        self.pass_ends()?;
        self.hand_over_due()?;
        self.mirror_offsets();
        match self.budget.pressure() {
            Pressure::None => self.set_paused(false)?,
            Pressure::Wait => return self.wait_for_writers(),
            Pressure::Pause => self.set_paused(true)?,
        }
        let mut timeout = self.poll_timeout();
        let most_bytes = self.budget.used_bytes() + self.budget.batch_bytes();
        for _ in 0..RECORDS_PER_TURN {
            // Sixty-four large records would go far beyond the budget.
            if self.budget.used_bytes() >= most_bytes {
                break;
            }
            let Some(event) = self.consumer.poll(timeout) else {
                break;
            };
            timeout = Duration::ZERO;
            match event {
                Ok(message) => Self::take(&mut self.partitions, &mut self.budget, &message),
                Err(KafkaError::PartitionEOF(number)) => {
                    if let Some(partition) = self.partitions.get_mut(&number) {
                        partition.at_end = true;
                    }
                }
                Err(error) => self.trouble(&error)?,
            }
        }
        Ok(())
    }

    fn poll_timeout(&self) -> Duration {
        let busy = self
            .partitions
            .values()
            .any(|partition| partition.is_busy());
        let age_left = self
            .partitions
            .values()
            .filter_map(|partition| partition.age_left(self.batch.max_age))
            .min();
        let longest = if busy { BUSY_POLL } else { IDLE_POLL };
        age_left.map_or(longest, |left| up_to_next_ms(left).min(longest))
    }

    /// Takes over what the rebalance callbacks left.
    fn follow_group(&mut self) -> anyhow::Result<()> {
        for event in self.consumer.context().take_rebalance_events() {
            match event {
                RebalanceEvent::Assigned(numbers) => {
                    info!(kafka.partitions = ?numbers, "assigned");
                    for number in numbers {
                        self.partitions.insert(number, Partition::new());
                        self.begin_claim(number);
                    }
                }
                RebalanceEvent::Revoked(numbers) => {
                    info!(kafka.partitions = ?numbers, "revoked");
                    for number in numbers {
                        self.release(number);
                    }
                }
                RebalanceEvent::Failed(reason) => {
                    bail!("Kafka's client could not follow the group: {reason}")
                }
            }
        }
        let assigned = i64::try_from(self.partitions.len()).unwrap_or(i64::MAX);
        self.metrics.assigned_partitions.set(assigned);
        self.metrics.paused_partitions.set(self.not_running());
        Ok(())
    }

    fn not_running(&self) -> i64 {
        let not_running = self
            .partitions
            .values()
            .filter(|partition| !matches!(partition.state, State::Running(_)));
        i64::try_from(not_running.count()).unwrap_or(i64::MAX)
    }

    fn release(&mut self, number: i32) {
        self.current.end(number);
        self.send(number, Task::Release { partition: number });
        if let Some(mut partition) = self.partitions.remove(&number) {
            self.budget.free(partition.drop_batch());
        }
        self.status.forget(number);
    }

    /// Begins a new reading: what was read before is dropped, the partition stays paused until it is claimed.
    fn begin_claim(&mut self, number: i32) {
        let reading = self.current.begin(number);
        if let Some(partition) = self.partitions.get_mut(&number) {
            self.budget.free(partition.drop_batch());
            partition.state = State::Claiming;
            // One that is stopped stays so, for operators, until its claim has succeeded.
            if partition.stopped.is_none() {
                self.status.set_state(number, "claiming");
            }
            self.send(number, Task::Claim(reading));
        }
    }

    fn claim_due(&mut self) {
        let due: Vec<i32> = (self.partitions.iter())
            .filter(|(_, partition)| matches!(partition.state, State::Waiting { until } if until <= Instant::now()))
            .map(|(number, _)| *number)
            .collect();
        for number in due {
            self.begin_claim(number);
        }
    }

    fn follow_writer(&mut self, report: Report) -> anyhow::Result<()> {
        match report {
            Report::Claimed {
                reading,
                next_offset,
            } if self.current.is(reading) => self.start_reading(reading, next_offset)?,
            Report::Stored {
                reading,
                next_offset,
                at,
                size_bytes,
            } => {
                self.budget.free(size_bytes);
                if let Some(partition) = self.partition_of(reading) {
                    partition.stored(next_offset, at);
                }
            }
            Report::Dropped { size_bytes } => self.budget.free(size_bytes),
            Report::Lost { reading } if self.current.is(reading) => {
                self.stop_reading(reading, "lost", LOST_RETRY_INTERVAL)?
            }
            Report::Stopped { reading, reason } if self.current.is(reading) => {
                self.stop_reading(reading, &reason, STOPPED_RETRY_INTERVAL)?;
                let number = reading.partition;
                let partition = self.partitions.get_mut(&number);
                let before =
                    partition.and_then(|partition| partition.stopped.replace(reason.clone()));
                if before.as_ref() != Some(&reason) {
                    error!(
                        kafka.partition = number,
                        "the partition is not read: {reason}"
                    );
                }
            }
            // Of a reading that does not count any more.
            Report::Claimed { .. } | Report::Lost { .. } | Report::Stopped { .. } => {}
        }
        Ok(())
    }

    fn partition_of(&mut self, reading: Reading) -> Option<&mut Partition> {
        if self.current.is(reading) {
            self.partitions.get_mut(&reading.partition)
        } else {
            None
        }
    }

    /// Puts a record into its partition's batch.
    fn take(
        partitions: &mut BTreeMap<i32, Partition>,
        budget: &mut MemoryBudget,
        message: &BorrowedMessage<'_>,
    ) {
        let Some(partition) = partitions.get_mut(&message.partition()) else {
            return;
        };
        partition.at_end = false;
        let Some(open) = partition.batch_mut() else {
            return;
        };
        if !open.is_new(message.offset()) {
            return;
        }
        let size_before = open.size_bytes;
        match batch::decode(message.payload()) {
            Ok(order) => open.push_order(order, message.detach()),
            Err(refusal) => open.push_dead_letter(DeadLetter::new(message, refusal)),
        }
        budget.take(open.size_bytes - size_before);
    }

    /// At the end of a partition its offset moves past transaction markers, so that lag at rest is 0.
    ///
    /// Only where the partition rests there. A position is asked of another thread of the client, and in a stream of single
    /// messages every one is the end for a moment: this thread waited a thousand times a second.
    fn pass_ends(&mut self) -> KafkaResult<()> {
        if !self.partitions.values().any(Partition::rests_at_end) {
            return Ok(());
        }
        let positions = self.consumer.position()?;
        for (number, partition) in &mut self.partitions {
            if !partition.rests_at_end() {
                continue;
            }
            partition.at_end = false;
            let position = positions
                .find_partition(&self.topic, *number)
                .map(|element| element.offset());
            if let (Some(Offset::Offset(position)), Some(open)) = (position, partition.batch_mut())
            {
                open.reach(position);
            }
        }
        Ok(())
    }

    /// Hands over every batch that is full, or old while its writer has nothing of the partition.
    fn hand_over_due(&mut self) -> anyhow::Result<()> {
        let batch_bytes = self.budget.batch_bytes();
        for (number, partition) in &mut self.partitions {
            if let Some(batch) = partition.take_due(self.batch, batch_bytes) {
                failpoints::reached(Phase::Steady);
                let writer = &self.writers[writer_of(*number)];
                writer
                    .send(Task::Store(batch))
                    .ok()
                    .context("a writer has died")?;
            }
        }
        Ok(())
    }

    fn send(&self, number: i32, task: Task) {
        // A writer that has died is noticed where batches are handed over.
        self.writers[writer_of(number)].send(task).ok();
    }

    fn wait_for_writers(&mut self) -> anyhow::Result<()> {
        match self.reports_rx.recv_timeout(IDLE_POLL) {
            Ok(report) => self.follow_writer(report),
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => bail!("the writers have died"),
        }
    }

    /// Tells Kafka what is stored, for lag tools; nobody reads it back.
    fn mirror_offsets(&mut self) {
        if self.last_mirror_at.elapsed() < MIRROR_INTERVAL {
            return;
        }
        self.last_mirror_at = Instant::now();
        self.commit_mirror(CommitMode::Async);
    }

    fn commit_mirror(&mut self, mode: CommitMode) {
        let stored: Vec<(i32, Offset)> = (self.partitions.iter_mut())
            .filter_map(|(number, partition)| {
                Some((*number, Offset::Offset(partition.take_unmirrored()?)))
            })
            .collect();
        if stored.is_empty() {
            return;
        }
        let committed =
            partition_list(&self.topic, stored).and_then(|list| self.consumer.commit(&list, mode));
        if let Err(error) = committed {
            debug!("Kafka did not take the mirror of the offsets: {error}");
        }
    }

    /// Hands over what is read, waits for the writers, leaves the group. The caller bounds the time.
    fn finish(mut self) -> anyhow::Result<()> {
        for (number, partition) in &mut self.partitions {
            if let Some(batch) = partition.take_any() {
                // A writer that has died stores nothing, and the batch is read again.
                self.writers[writer_of(*number)]
                    .send(Task::Store(batch))
                    .ok();
            }
        }
        failpoints::reached(Phase::Drain);
        self.current.stop();
        self.writers.clear();
        for thread in self.writer_threads.drain(..) {
            if thread.join().is_err() {
                bail!("a writer has panicked");
            }
        }
        while let Ok(report) = self.reports_rx.try_recv() {
            if let Report::Stored {
                reading,
                next_offset,
                at,
                ..
            } = report
                && let Some(partition) = self.partition_of(reading)
            {
                partition.stored(next_offset, at);
            }
        }
        self.commit_mirror(CommitMode::Sync);
        Ok(())
    }
}

/// The client counts in whole milliseconds: rounded down, the last one would be spent polling in a tight loop.
fn up_to_next_ms(time: Duration) -> Duration {
    let ms = time.as_micros().div_ceil(1_000);
    Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX))
}

/// Partitions are pinned to writers, so that their batches stay in order.
fn writer_of(partition: i32) -> usize {
    usize::try_from(partition).unwrap_or_default() % WRITERS
}
