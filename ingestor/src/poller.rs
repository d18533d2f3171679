//! The poll thread: owns the consumer, and fills the batches of every assigned partition.
//!
//! It follows the group's decisions, has partitions claimed, turns records into batches and gives them to the writers. It
//! never waits for the database, because the group evicts a member that does not poll.

mod memory;
mod partition;
mod reading;
mod renewal;
mod trouble;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use rdkafka::Offset as KafkaOffset;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Message};
use shared::order::Decoder;
use shared::throttle::Throttle;
use shared::traces::{TRACEPARENT, TRACESTATE, Traces};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::batch::{Batch, TracedMessage};
use crate::board::{Board, Cause};
use crate::config::{BatchSettings, KafkaSettings, MemorySettings, Settings};
use crate::dead_letters::DeadLetter;
use crate::failpoints::{self, Phase};
use crate::kafka::{GroupConsumer, RebalanceEvent, partition_list};
use crate::metrics::Metrics;
use crate::record::{self, Offset, Partition, Reading, headers};
use crate::writer::{Report, Task, WriterContext, Writers};
use memory::{MemoryBudget, Pressure};
use partition::AssignedPartition;
use renewal::Patience;

/// The most time of one poll while nothing is under way, and while a writer may answer.
const IDLE_POLL: Duration = Duration::from_millis(50);
const BUSY_POLL: Duration = Duration::from_millis(2);
/// The number of records after which the poll thread looks at everything else.
const RECORDS_PER_TURN: usize = 64;
/// How often Kafka's committed offsets, a mirror for lag tools, are updated.
const MIRROR_INTERVAL: Duration = Duration::from_secs(5);
/// How often the row of a stopped partition is looked at again. An operator who has decided waits for it.
const STOPPED_RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// When a lost partition is claimed again. If another process owns it, the group tells us meanwhile.
const LOST_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The poll thread.
pub struct Poller {
    consumer: GroupConsumer,
    decoder: Decoder,
    settings: BatchSettings,
    kafka: KafkaSettings,
    memory: MemorySettings,
    partitions: BTreeMap<Partition, AssignedPartition>,
    patience: Patience,
    board: Arc<Board>,
    budget: MemoryBudget,
    writers: Writers,
    reports_rx: Receiver<Report>,
    suspicions_rx: Receiver<Reading>,
    metrics: Arc<Metrics>,
    traces: Option<Traces>,
    shutdown: CancellationToken,
    last_mirror_at: Instant,
    trouble_reports: Throttle,
}

impl Poller {
    /// Starts the writers and subscribes. The poller claims every reading again that it receives from `suspicions_rx`.
    ///
    /// # Errors
    /// Returns an error if a thread cannot be started, or if the client rejects the topic's name.
    pub fn start(
        settings: &Settings,
        consumer: GroupConsumer,
        context: &WriterContext,
        suspicions_rx: Receiver<Reading>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        let (writers, reports_rx) = Writers::start(context)?;
        let kafka = settings.kafka.clone();
        consumer
            .subscribe(&[&kafka.topic])
            .context("cannot subscribe")?;
        context.board.set_running();
        info!(kafka.topic = kafka.topic, kafka.group = kafka.group_id, owner = %context.consumer.owner, "subscribed");
        Ok(Self {
            consumer,
            decoder: settings.decoder,
            settings: settings.batch,
            kafka,
            memory: settings.memory,
            partitions: BTreeMap::new(),
            patience: Patience::default(),
            board: Arc::clone(&context.board),
            budget: MemoryBudget::new(settings.memory),
            writers,
            reports_rx,
            suspicions_rx,
            metrics: Arc::clone(&context.metrics),
            traces: context.traces.clone(),
            shutdown,
            last_mirror_at: Instant::now(),
            trouble_reports: Throttle::for_reports(),
        })
    }

    /// Works until shutdown, and then finishes what is under way. The caller limits the time for that.
    ///
    /// # Errors
    /// Returns an error if only a restart helps: the client cannot continue, or a writer has died.
    pub fn run(mut self) -> anyhow::Result<Farewell> {
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
            if self.board.is_current(reading) {
                self.stop_reading(reading, Cause::Suspected, Duration::ZERO)?;
            }
        }
        for partition in self.board.due_claims() {
            self.begin_claim(partition);
        }
        let counts = self.board.counts();
        let gauge = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.assigned_partitions.set(gauge(counts.assigned));
        let not_running = counts.assigned - counts.running;
        self.metrics.paused_partitions.set(gauge(not_running));
        self.metrics.stopped_partitions.set(gauge(counts.stopped));
        self.pass_ends()?;
        self.hand_over_due()?;
        self.mirror_offsets();
        match self.budget.pressure() {
            Pressure::None => self.set_paused(false)?,
            Pressure::Wait | Pressure::Pause if self.give_up_held_up()? => {}
            Pressure::Wait => return self.wait_for_writers(),
            Pressure::Pause => self.set_paused(true)?,
        }
        self.poll_records(self.poll_timeout(counts.claiming > 0))
    }

    fn poll_records(&mut self, mut timeout: Duration) -> anyhow::Result<()> {
        let most_bytes = self.budget.used_bytes() + self.budget.batch_bytes();
        for _ in 0..RECORDS_PER_TURN {
            // Sixty-four large records would exceed the budget by far.
            if self.budget.used_bytes() >= most_bytes {
                break;
            }
            let Some(event) = self.consumer.poll(timeout) else {
                self.renew_if_silent()?;
                break;
            };
            timeout = Duration::ZERO;
            match event {
                Ok(message) => Self::take(
                    self.decoder,
                    self.traces.as_ref(),
                    &mut self.partitions,
                    &mut self.budget,
                    &message,
                ),
                Err(KafkaError::PartitionEOF(number)) => {
                    if let Some(partition) = self.partitions.get_mut(&Partition(number)) {
                        partition.heard(true);
                    }
                }
                Err(error) => self.trouble(&error)?,
            }
        }
        Ok(())
    }

    fn poll_timeout(&self, is_claiming: bool) -> Duration {
        let mut partitions = self.partitions.values();
        let is_busy = is_claiming || partitions.any(AssignedPartition::has_handed_over);
        let age_left = (self.partitions.values())
            .filter_map(|partition| partition.age_left(self.settings.max_age))
            .min();
        let longest = if is_busy { BUSY_POLL } else { IDLE_POLL };
        age_left.map_or(longest, |left| up_to_next_ms(left).min(longest))
    }

    /// Handles what the rebalance callbacks left.
    fn follow_group(&mut self) -> anyhow::Result<()> {
        for event in self.consumer.context().take_rebalance_events() {
            match event {
                RebalanceEvent::Assigned(partitions) => {
                    info!(kafka.partitions = ?numbers(&partitions), "assigned");
                    for partition in partitions {
                        self.partitions.insert(partition, AssignedPartition::new());
                        self.begin_claim(partition);
                    }
                }
                RebalanceEvent::Revoked(partitions) => {
                    info!(kafka.partitions = ?numbers(&partitions), "revoked");
                    for partition in partitions {
                        self.release(partition);
                    }
                }
                RebalanceEvent::Failed(reason) => {
                    bail!("Kafka's client could not follow the group: {reason}")
                }
            }
        }
        Ok(())
    }

    fn release(&mut self, partition: Partition) {
        self.board.release(partition);
        // A writer that has died is noticed when a batch is handed over.
        self.writers.send(Task::Forget(partition)).ok();
        if let Some(mut assigned) = self.partitions.remove(&partition) {
            self.budget.free(assigned.drop_batch());
        }
    }

    /// Begins a new reading: what was read before is dropped, and the partition stays paused until it is claimed.
    fn begin_claim(&mut self, partition: Partition) {
        let reading = self.board.begin_claim(partition);
        if let Some(assigned) = self.partitions.get_mut(&partition) {
            self.budget.free(assigned.drop_batch());
        }
        self.writers.send(Task::Claim(reading)).ok();
    }

    fn follow_writer(&mut self, report: Report) -> anyhow::Result<()> {
        match report {
            Report::Claimed(reading, claim) if self.board.is_current(reading) => {
                self.start_reading(reading, &claim)?;
            }
            Report::Stored {
                reading,
                next_offset,
                at,
                size_bytes,
            } => {
                self.budget.free(size_bytes);
                self.note_stored(reading, next_offset, at);
            }
            Report::Dropped(size_bytes) => self.budget.free(size_bytes),
            Report::Lost(reading) if self.board.is_current(reading) => {
                self.stop_reading(reading, Cause::Lost, LOST_RETRY_INTERVAL)?;
            }
            Report::Stopped(reading, reason) if self.board.is_current(reading) => {
                let cause = Cause::Stopped(reason.clone());
                let before = self.stop_reading(reading, cause, STOPPED_RETRY_INTERVAL)?;
                if before.as_ref() != Some(&reason) {
                    error!(
                        kafka.partition = reading.partition.0,
                        "the partition is not read: {reason}"
                    );
                }
            }
            // The reading does not count any more.
            Report::Claimed(..) | Report::Lost(_) | Report::Stopped(..) => {}
        }
        Ok(())
    }

    fn note_stored(&mut self, reading: Reading, next_offset: Offset, at: Instant) {
        if self.board.is_current(reading)
            && let Some(partition) = self.partitions.get_mut(&reading.partition)
        {
            partition.stored(next_offset, at);
        }
    }

    /// Puts a record into its partition's batch.
    fn take(
        decoder: Decoder,
        traces: Option<&Traces>,
        partitions: &mut BTreeMap<Partition, AssignedPartition>,
        budget: &mut MemoryBudget,
        message: &BorrowedMessage<'_>,
    ) {
        let Some(partition) = partitions.get_mut(&Partition(message.partition())) else {
            return;
        };
        partition.heard(false);
        let Some(open) = &mut partition.batch else {
            return;
        };
        if !open.is_new(Offset(message.offset())) {
            return;
        }
        let size_before = open.size_bytes;
        if let Some(traces) = traces {
            note_sender(traces, open, message);
        }
        match record::decode(decoder, message.payload()) {
            Ok(order) => open.push_order(order, message.detach()),
            Err(refusal) => open.push_dead_letter(DeadLetter::new(message, refusal)),
        }
        budget.take(open.size_bytes - size_before);
    }

    /// At the end of a partition, moves its offset past transaction markers, so that the lag at rest is 0.
    ///
    /// This is done only if the partition rests there. Another thread of the client answers the question for the position,
    /// and in a stream of single messages every message is the end for a moment: this thread would wait a thousand times a
    /// second.
    fn pass_ends(&mut self) -> KafkaResult<()> {
        let mut partitions = self.partitions.values();
        if !partitions.any(AssignedPartition::rests_at_end) {
            return Ok(());
        }
        let positions = self.consumer.position()?;
        for (partition, assigned) in &mut self.partitions {
            if !assigned.rests_at_end() {
                continue;
            }
            assigned.is_at_end = false;
            let position = positions
                .find_partition(&self.kafka.topic, partition.0)
                .map(|element| element.offset());
            if let (Some(KafkaOffset::Offset(position)), Some(open)) =
                (position, &mut assigned.batch)
            {
                open.reach(Offset(position));
            }
        }
        Ok(())
    }

    /// Hands over every batch that is full, or that is old while its writer has no other batch of the partition.
    fn hand_over_due(&mut self) -> anyhow::Result<()> {
        let batch_bytes = self.budget.batch_bytes();
        for partition in self.partitions.values_mut() {
            if let Some(batch) = partition.take_due(self.settings, batch_bytes) {
                failpoints::reached(Phase::Steady);
                self.writers.send(Task::Store(batch))?;
            }
        }
        Ok(())
    }

    fn wait_for_writers(&mut self) -> anyhow::Result<()> {
        match self.reports_rx.recv_timeout(IDLE_POLL) {
            Ok(report) => self.follow_writer(report),
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => bail!("the writers have died"),
        }
    }

    /// Tells Kafka what is stored, for lag tools.
    fn mirror_offsets(&mut self) {
        if self.last_mirror_at.elapsed() < MIRROR_INTERVAL {
            return;
        }
        self.last_mirror_at = Instant::now();
        self.commit_mirror(CommitMode::Async);
    }

    /// Commits every stored offset that was not yet seen to be committed. So an offset that Kafka does not take, as during a
    /// rebalance, is sent again in the next round, and one that the previous owner could not commit is sent as well.
    fn commit_mirror(&mut self, mode: CommitMode) {
        let unmirrored: Vec<(Partition, Option<Offset>)> = (self.partitions.iter())
            .map(|(partition, assigned)| (*partition, assigned.stored_offset))
            .filter(|(partition, stored)| {
                stored.is_some() && *stored != self.board.mirrored(*partition)
            })
            .collect();
        if unmirrored.is_empty() {
            return;
        }
        let committed = partition_list(&self.kafka.topic, unmirrored)
            .and_then(|list| self.consumer.commit(&list, mode));
        if let Err(error) = committed {
            debug!("Kafka did not accept the mirror of the offsets: {error}");
        }
    }

    /// Hands over what was read, and waits for the writers.
    fn finish(mut self) -> anyhow::Result<Farewell> {
        for partition in self.partitions.values_mut() {
            if let Some(batch) = partition.take_any() {
                // A writer that has died stores nothing, and the batch is read again later.
                self.writers.send(Task::Store(batch)).ok();
            }
        }
        failpoints::reached(Phase::Drain);
        self.board.set_stopping();
        self.writers.finish()?;
        while let Ok(report) = self.reports_rx.try_recv() {
            if let Report::Stored {
                reading,
                next_offset,
                at,
                ..
            } = report
            {
                self.note_stored(reading, next_offset, at);
            }
        }
        Ok(Farewell(self))
    }
}

/// Notes in a batch that the sender of a message is traced, if it is.
fn note_sender(traces: &Traces, batch: &mut Batch, message: &BorrowedMessage<'_>) {
    let traceparent = headers::find(message, TRACEPARENT);
    if let Some(sender) = traces.sender(traceparent, || headers::find(message, TRACESTATE)) {
        batch.push_traced(TracedMessage {
            offset: Offset(message.offset()),
            sender,
            read_at: SystemTime::now(),
        });
    }
}

/// What is left to do when the work for the database is done.
pub struct Farewell(Poller);

impl Farewell {
    /// Tells Kafka what is stored, and leaves the group. If Kafka does not answer, this takes minutes, and nothing is lost by
    /// not waiting for it.
    pub fn say(mut self) {
        self.0.commit_mirror(CommitMode::Sync);
        // Dropping the consumer leaves the group.
    }
}

/// The partitions as the log shows them.
fn numbers(partitions: &[Partition]) -> Vec<i32> {
    partitions.iter().map(|partition| partition.0).collect()
}

/// The client counts in whole milliseconds. If the time were rounded down, the last one would be spent in a busy loop.
fn up_to_next_ms(time: Duration) -> Duration {
    let ms = time.as_micros().div_ceil(1_000);
    Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX))
}
