//! Writer threads. Each has its own connection, and the partitions that are pinned to it.
//!
//! A writer stores one batch after another, each in one transaction (`transaction`). It retries for ever while the
//! database is away or sick. It gives a batch up only if its partition is not ours any more or the process stops.

mod claiming;
mod isolation;
mod transaction;

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use shared::backoff::Backoff;
use shared::config::DatabaseSettings;
use shared::throttle::Throttle;
use tracing::{error, info, warn};

pub use isolation::is_refusal;
use transaction::Stored;
pub use transaction::{store_by_decision, store_replayed};

use crate::batch::Batch;
use crate::board::Board;
use crate::database::Connection;
use crate::failpoints::{self, Phase, Plant};
use crate::kafka::Probe;
use crate::metrics::{Metrics, RetryClass};
use crate::offsets::{self, Claim};
use crate::record::{Consumer, Offset, Partition, Reading, Refusal};

/// The number of writers. While some wait for their COMMIT to reach the disk, one after another because of the lock that a
/// notifying COMMIT takes, the others keep PostgreSQL busy.
const WRITERS: usize = 4;

/// A task that the poll thread gives to a writer.
#[derive(Debug)]
pub enum Task {
    /// Claim the partition and report where to continue.
    Claim(Reading),
    /// Store the batch.
    Store(Batch),
    /// The group has taken the partition away.
    Release(Partition),
}

impl Task {
    fn partition(&self) -> Partition {
        match self {
            Self::Claim(reading) => reading.partition,
            Self::Store(batch) => batch.reading.partition,
            Self::Release(partition) => *partition,
        }
    }
}

/// A writer's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The partition is ours.
    Claimed(Reading, Claim),
    /// The partition must not be read, for this reason.
    Stopped(Reading, String),
    /// A batch is stored.
    Stored {
        /// Its reading.
        reading: Reading,
        /// The partition's offset in the database.
        next_offset: Offset,
        /// When it was stored: the poll thread may read the report later.
        at: Instant,
        /// The memory that is free again.
        size_bytes: usize,
    },
    /// A batch was dropped and will be read again. So many bytes of memory are free again.
    Dropped(usize),
    /// The partition belongs to another process, or its offset was changed. It must be claimed again if it is still
    /// assigned.
    Lost(Reading),
}

/// How often an idle owner reads its rows again, so that a rewind or a failover reaches it.
const IDLE_REREAD_INTERVAL: Duration = Duration::from_secs(5);
/// How often a batch is tried again at once after another process has inserted one of its new orders. More is trouble.
const MAX_COLLISIONS: u32 = 5;
/// A batch takes milliseconds, so a statement that takes a minute hangs. Every row is found by a key, but in a database
/// without statistics the planner may still choose to read the whole table for every batch.
const SESSION: &str = "SET statement_timeout = '60s'; SET enable_seqscan = off";

/// What all writers need.
#[derive(Clone)]
pub struct WriterContext {
    /// This process as a reader of the topic.
    pub consumer: Consumer,
    /// How to reach PostgreSQL.
    pub database: DatabaseSettings,
    /// A partition halts after more bad messages in a row than this.
    pub max_consecutive_bad: i64,
    /// Asks the brokers about partitions.
    pub probe: Arc<Probe>,
    /// The state of the process and of its partitions.
    pub board: Arc<Board>,
    /// Counts what the writers do.
    pub metrics: Arc<Metrics>,
}

/// The writer threads, from the poll thread's side. Partitions are pinned to writers, so that their batches stay in order.
pub struct Writers {
    tasks_txs: Vec<Sender<Task>>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    /// Starts the threads, which report to the receiver.
    ///
    /// # Errors
    /// Returns an error if a thread cannot be started.
    pub fn start(context: &WriterContext) -> anyhow::Result<(Self, Receiver<Report>)> {
        let (reports_tx, reports_rx) = mpsc::channel();
        let mut writers = Self {
            tasks_txs: Vec::new(),
            threads: Vec::new(),
        };
        for number in 0..WRITERS {
            let writer = Writer {
                number,
                connection: Connection::new(context.database.clone(), SESSION),
                context: context.clone(),
                reports_tx: reports_tx.clone(),
                trouble: Throttle::for_reports(),
            };
            let (tasks_tx, tasks_rx) = mpsc::channel();
            let thread = std::thread::Builder::new().name(format!("writer-{number}"));
            let thread = thread
                .spawn(move || writer.run(&tasks_rx))
                .context("cannot start a writer")?;
            writers.threads.push(thread);
            writers.tasks_txs.push(tasks_tx);
        }
        Ok((writers, reports_rx))
    }

    /// Gives a task to the writer of its partition.
    ///
    /// # Errors
    /// Returns an error if the writer has died.
    pub fn send(&self, task: Task) -> anyhow::Result<()> {
        self.tasks_txs[writer_of(task.partition())]
            .send(task)
            .ok()
            .context("a writer has died")
    }

    /// Waits until the writers have done all their tasks.
    ///
    /// # Errors
    /// Returns an error if a writer has panicked.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        self.tasks_txs.clear();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                bail!("a writer has panicked");
            }
        }
        Ok(())
    }
}

fn writer_of(partition: Partition) -> usize {
    usize::try_from(partition.0).unwrap_or_default() % WRITERS
}

/// A writer.
struct Writer {
    number: usize,
    context: WriterContext,
    connection: Connection,
    reports_tx: Sender<Report>,
    /// Reports of trouble with the database. It has reported since the last success if there is trouble now.
    trouble: Throttle,
}

impl Writer {
    /// Works until the poll thread drops its end of the channel.
    fn run(mut self, tasks_rx: &Receiver<Task>) {
        let number = self.number;
        let is_ours = move |partition| writer_of(partition) == number;
        loop {
            match tasks_rx.recv_timeout(IDLE_REREAD_INTERVAL) {
                Ok(Task::Claim(reading)) => self.claim(reading),
                Ok(Task::Store(mut batch)) => {
                    if !self.store_until_settled(&mut batch) {
                        self.report(Report::Dropped(batch.size_bytes));
                    }
                }
                Ok(Task::Release(_)) => {
                    if !self.context.board.has_claims(is_ours) {
                        // It has nothing to try any more.
                        self.context.board.set_database_ok(self.number, true);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.reread_idle(is_ours);
        }
    }

    fn report(&self, report: Report) {
        // The poll thread is gone only when the process ends, and then nobody needs the report.
        self.reports_tx.send(report).ok();
    }

    /// Tries until the batch is stored, or not ours to store any more. Returns whether it is stored.
    fn store_until_settled(&mut self, batch: &mut Batch) -> bool {
        let mut backoff = Backoff::for_database();
        let mut is_outcome_unknown = false;
        let mut collisions = 0;
        loop {
            let board = &self.context.board;
            // While the process stops, a database in trouble is not waited for: the batch is read again later.
            let is_hopeless = board.is_stopping() && self.trouble.has_reported();
            let claim = board.claim_of(batch.reading).filter(|_| !is_hopeless);
            let Some(claim) = claim else {
                return false;
            };
            let step = if is_outcome_unknown {
                self.settle(batch, &claim)
            } else {
                self.try_store(batch, &claim)
            };
            match step {
                Ok(Step::Stored(_)) if failpoints::is_planted(Plant::ReapplyBatch) => {}
                Ok(Step::Stored(stored)) => {
                    self.stored(batch, &claim, &stored);
                    return true;
                }
                Ok(Step::NotStored) => is_outcome_unknown = false,
                Ok(Step::Refused(refused)) => {
                    warn!(
                        kafka.partition = batch.reading.partition.0,
                        kafka.offsets = ?refused.iter().map(|(offset, _)| offset.0).collect::<Vec<_>>(),
                        "a constraint of the database rejects orders: they become dead letters"
                    );
                    batch.refuse(refused);
                }
                Ok(Step::Lost) => {
                    self.lose(batch.reading);
                    return false;
                }
                // Another process has inserted one of its orders meanwhile: now the row exists and can be locked.
                Err(Trouble::Query(DieselError::DatabaseError(
                    DatabaseErrorKind::UniqueViolation,
                    _,
                ))) if collisions < MAX_COLLISIONS => collisions += 1,
                Err(trouble) => {
                    self.trouble(&trouble, "store a batch");
                    // The answer to a COMMIT may be what was lost.
                    is_outcome_unknown = true;
                    self.context.board.wait(backoff.next_delay());
                }
            }
        }
    }

    fn try_store(&mut self, batch: &Batch, claim: &Claim) -> Result<Step, Trouble> {
        let WriterContext {
            consumer,
            max_consecutive_bad,
            metrics,
            ..
        } = &self.context;
        let halts = batch.bad_run(claim.consecutive_bad).longest > *max_consecutive_bad;
        let started_at = Instant::now();
        let connection = self.connection.get()?;
        match transaction::store(connection, consumer, claim, batch, halts) {
            Ok(stored) => {
                failpoints::reached(Phase::Committed);
                metrics
                    .commit_seconds
                    .observe(started_at.elapsed().as_secs_f64());
                Ok(Step::Stored(stored))
            }
            Err(error) if offsets::is_fence(&error) => Ok(Step::Lost),
            Err(error) if is_refusal(&error) => {
                let refused = isolation::find_refused(connection, batch, &claim.guard)?;
                if refused.is_empty() {
                    // The orders were rejected and then were not: none of them is to blame.
                    return Err(error.into());
                }
                Ok(Step::Refused(refused))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Asks the database about a transaction whose outcome is unknown.
    fn settle(&mut self, batch: &Batch, claim: &Claim) -> Result<Step, Trouble> {
        Ok(match self.reread(batch.reading.partition, claim)? {
            // Nobody knows any more which orders the guard left out.
            Some(offset) if offset == batch.new_next_offset => Step::Stored(Stored {
                written: batch.folded(&claim.guard).len(),
                held_back: 0,
            }),
            Some(offset) if offset == batch.old_next_offset => Step::NotStored,
            _ => Step::Lost,
        })
    }

    fn reread(&mut self, partition: Partition, claim: &Claim) -> Result<Option<Offset>, Trouble> {
        let connection = self.connection.get()?;
        let consumer = &self.context.consumer;
        offsets::reread(connection, consumer, partition, claim.epoch)
            .map_err(|error| Trouble::with_row(partition, error))
    }

    fn stored(&mut self, batch: &Batch, claim: &Claim, stored: &Stored) {
        self.healthy();
        let reading = batch.reading;
        let bad_run = batch.bad_run(claim.consecutive_bad);
        let WriterContext { board, metrics, .. } = &self.context;
        metrics.batch_stored(batch, stored.written, stored.held_back);
        if stored.held_back > 0 {
            warn!(
                kafka.partition = reading.partition.0,
                held_back = stored.held_back,
                "messages that may have been read before were held back, because newer orders may be stored: see \
                 `ingestor dead-letters list --state superseded`"
            );
        }
        let next_offset = batch.new_next_offset;
        board.stored(reading, next_offset, batch.witness(), bad_run.trailing);
        self.report(Report::Stored {
            reading,
            next_offset,
            at: Instant::now(),
            size_bytes: batch.size_bytes,
        });
        if bad_run.longest > self.context.max_consecutive_bad {
            board.withdraw_claim(reading);
            let reason = offsets::halted_reason(reading.partition);
            self.report(Report::Stopped(reading, reason));
        }
    }

    fn lose(&mut self, reading: Reading) {
        self.context.metrics.fences.inc();
        warn!(
            kafka.partition = reading.partition.0,
            "fenced: another process has claimed the partition, or its offset was changed; what was read is dropped"
        );
        self.context.board.withdraw_claim(reading);
        self.report(Report::Lost(reading));
    }

    fn reread_idle(&mut self, is_ours: impl Fn(Partition) -> bool) {
        let board = Arc::clone(&self.context.board);
        for (reading, claim) in board.unconfirmed_claims(IDLE_REREAD_INTERVAL, is_ours) {
            match self.reread(reading.partition, &claim) {
                Ok(Some(next_offset)) if next_offset == claim.next_offset => {
                    self.healthy();
                    board.confirm(reading);
                }
                Ok(_) => self.lose(reading),
                // An operator may hold it. The next batch waits for it, too.
                Err(Trouble::RowLocked(_)) => {}
                Err(trouble) => return self.trouble(&trouble, "read the offsets again"),
            }
        }
    }

    fn healthy(&mut self) {
        self.context.board.set_database_ok(self.number, true);
        if self.trouble.has_reported() {
            self.trouble.reset();
            info!("the database works again");
        }
    }

    /// Counts the trouble and reports it from time to time. The next attempt gets a new connection.
    fn trouble(&mut self, trouble: &Trouble, doing: &str) {
        self.context.metrics.retried(trouble.class());
        if matches!(trouble, Trouble::Connect(_) | Trouble::Query(_)) {
            self.context.board.set_database_ok(self.number, false);
        }
        self.connection.close();
        if self.trouble.is_due() {
            error!("cannot {doing}, retrying: {trouble}");
        }
    }
}

/// The outcome of an attempt to store a batch.
enum Step {
    Stored(Stored),
    NotStored,
    /// A constraint rejects these messages. They are sorted by offset.
    Refused(Vec<(Offset, Refusal)>),
    Lost,
}

/// Everything after which the writer retries.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("cannot connect to the database: {0}")]
    Connect(#[from] diesel::ConnectionError),
    #[error("{0}")]
    Query(#[from] DieselError),
    #[error(
        "another session has locked the row of partition {0} in consumer_offsets, or the row is missing"
    )]
    RowLocked(Partition),
    #[error("Kafka: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl Trouble {
    /// What an error means that came with locking a partition's row.
    fn with_row(partition: Partition, error: DieselError) -> Self {
        match error {
            DieselError::NotFound => Self::RowLocked(partition),
            other => other.into(),
        }
    }

    fn class(&self) -> RetryClass {
        match self {
            Self::Connect(_) => RetryClass::Connect,
            Self::Query(DieselError::DatabaseError(
                DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand,
                _,
            )) => RetryClass::LostConnection,
            Self::Query(_) | Self::RowLocked(_) => RetryClass::Query,
            Self::Kafka(_) | Self::Other(_) => RetryClass::Kafka,
        }
    }
}
