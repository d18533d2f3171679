//! Writer threads. Each has its own connection, and the partitions that are pinned to it.
//!
//! A writer stores one batch after another, each in one transaction (`transaction`). It retries for ever while the
//! database is away or sick. It gives a batch up only if its partition is not ours any more or the process stops.
//!
//! One partition's trouble is its own. What fails goes back into the writer's queue with a time before which it is not tried
//! again (`queue`), and nothing waits within an attempt: neither for the lock of a partition's row nor for the brokers.

pub mod attempt;
mod claiming;
mod isolation;
mod job;
mod queue;
mod removed;
mod retrying;
mod storing;
mod trace;
mod transaction;
mod trouble;

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use shared::backoff::Backoff;
use shared::config::DatabaseSettings;
use shared::throttle::Throttle;
use shared::traces::Traces;

pub use isolation::is_refusal;
use job::{Answer, ClaimJob, Job, StoreJob};
use queue::{Queue, Queued};
use trace::BatchTrace;
pub use transaction::{Replay, Replayed, Stored, store_replayed};
pub use trouble::Trouble;

use crate::batch::Batch;
use crate::board::Board;
use crate::database::Connection;
use crate::kafka::Probe;
use crate::metrics::Metrics;
use crate::offsets::Claim;
use crate::record::{Consumer, Offset, Partition, Reading};

/// The number of writers. While some wait for their COMMIT to reach the disk, one after another because of the lock that a
/// notifying COMMIT takes, the others keep PostgreSQL busy.
pub(crate) const WRITERS: usize = 4;

/// A task that the poll thread gives to a writer.
#[derive(Debug)]
pub enum Task {
    /// Claim the partition and report where to continue.
    Claim(Reading),
    /// Store the batch.
    Store(Batch),
    /// What the writer has of the partition does not count any more.
    Forget(Partition),
}

impl Task {
    fn partition(&self) -> Partition {
        match self {
            Self::Claim(reading) => reading.partition,
            Self::Store(batch) => batch.reading.partition,
            Self::Forget(partition) => *partition,
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
/// A batch takes milliseconds, so a statement that takes a minute hangs. Every row is found by a key, but in a database
/// without statistics the planner may still choose to read the whole table for every batch.
pub const SESSION: &str = "SET statement_timeout = '60s'; SET enable_seqscan = off";

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
    /// Begins spans, if there are traces.
    pub traces: Option<Traces>,
}

/// The writer threads, from the poll thread's side. Partitions are pinned to writers, so that their batches stay in order.
pub struct Writers {
    messages_txs: Vec<Sender<Message>>,
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
            messages_txs: Vec::new(),
            threads: Vec::new(),
        };
        for number in 0..WRITERS {
            let (messages_tx, messages_rx) = mpsc::channel();
            let writer = Writer {
                number,
                connection: Connection::new(context.database.clone(), SESSION),
                context: context.clone(),
                reports_tx: reports_tx.clone(),
                messages_tx: messages_tx.clone(),
                queue: Queue::default(),
                is_finishing: false,
                not_before: None,
                backoff: Backoff::for_database(),
                reports: Throttle::for_reports(),
            };
            let thread = std::thread::Builder::new().name(format!("writer-{number}"));
            let thread = thread
                .spawn(move || writer.run(&messages_rx))
                .context("cannot start a writer")?;
            writers.threads.push(thread);
            writers.messages_txs.push(messages_tx);
        }
        Ok((writers, reports_rx))
    }

    /// Gives a task to the writer of its partition.
    ///
    /// # Errors
    /// Returns an error if the writer has died.
    pub fn send(&self, task: Task) -> anyhow::Result<()> {
        self.messages_txs[writer_of(task.partition())]
            .send(Message::Task(task))
            .ok()
            .context("a writer has died")
    }

    /// Waits until the writers have done all their tasks. The board says that the process stops, so they wait for nothing.
    ///
    /// # Errors
    /// Returns an error if a writer has panicked.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        self.tell_to_finish();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                bail!("a writer has panicked");
            }
        }
        Ok(())
    }

    fn tell_to_finish(&mut self) {
        for messages_tx in self.messages_txs.drain(..) {
            // One that has died has nothing to do.
            messages_tx.send(Message::Finish).ok();
        }
    }
}

impl Drop for Writers {
    /// Ends the threads, even after an error of the poll thread.
    fn drop(&mut self) {
        self.tell_to_finish();
    }
}

fn writer_of(partition: Partition) -> usize {
    usize::try_from(partition.0).unwrap_or_default() % WRITERS
}

/// What a writer receives.
enum Message {
    Task(Task),
    /// The brokers have answered the question of a claim.
    Answer(Reading, Result<Answer, Trouble>),
    /// Nothing more will come: end when everything is done.
    Finish,
}

/// A writer.
struct Writer {
    number: usize,
    context: WriterContext,
    connection: Connection,
    reports_tx: Sender<Report>,
    /// The writer's own address, for the threads that ask the brokers.
    messages_tx: Sender<Message>,
    queue: Queue,
    is_finishing: bool,
    /// Nothing is tried before this, because the database is away.
    not_before: Option<Instant>,
    /// The waits while the database is away.
    backoff: Backoff,
    /// Reports that the database is away. It has reported since the last success if that is so now.
    reports: Throttle,
}

impl Writer {
    /// Works until everything is done that came before [`Message::Finish`].
    fn run(mut self, messages_rx: &Receiver<Message>) {
        loop {
            self.receive(messages_rx);
            if self.is_finishing && self.queue.is_empty() {
                return;
            }
            if self.not_before.is_none_or(|time| time <= Instant::now())
                && let Some(queued) = self.queue.take_due()
            {
                self.attempt(queued);
            }
            self.begin_rereads();
        }
    }

    fn is_ours(&self) -> impl Fn(Partition) -> bool + use<> {
        let number = self.number;
        move |partition| writer_of(partition) == number
    }

    fn report(&self, report: Report) {
        // The poll thread is gone only when the process ends, and then nobody needs the report.
        self.reports_tx.send(report).ok();
    }

    /// Receives everything that has come, and waits for something if nothing is due.
    fn receive(&mut self, messages_rx: &Receiver<Message>) {
        if self.is_finishing {
            self.remove_what_is_not_waited_for();
        }
        // While the database is away, nothing is tried before a common time.
        let due_at =
            (self.queue.next_due_at()).map(|at| self.not_before.map_or(at, |time| at.max(time)));
        let longest = due_at.map_or(IDLE_REREAD_INTERVAL, |at| {
            let left = at.saturating_duration_since(Instant::now());
            left.min(IDLE_REREAD_INTERVAL)
        });
        let mut message = match messages_rx.recv_timeout(longest) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Message::Finish),
        };
        while let Some(received) = message {
            self.take(received);
            message = messages_rx.try_recv().ok();
        }
        if self.is_finishing {
            self.remove_what_is_not_waited_for();
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Task(Task::Claim(reading)) => {
                self.remove_stale();
                self.queue.push(Job::Claim(ClaimJob::new(reading)));
            }
            Message::Task(Task::Store(batch)) => {
                let WriterContext {
                    traces, consumer, ..
                } = &self.context;
                let traces = traces.as_ref();
                let trace = traces.and_then(|traces| BatchTrace::begin(traces, consumer, &batch));
                self.queue.push(Job::Store(StoreJob::new(batch, trace)));
            }
            Message::Task(Task::Forget(_)) => {
                self.remove_stale();
                if self.queue.is_empty() && !self.context.board.has_claims(self.is_ours()) {
                    // It has nothing to try any more.
                    self.context.board.set_database_ok(self.number, true);
                }
            }
            Message::Answer(reading, answer) => {
                if let Some(claim) = self.queue.answered(reading) {
                    claim.answer = Some(answer);
                }
            }
            Message::Finish => self.is_finishing = true,
        }
    }

    /// Removes the jobs of readings that do not count any more.
    fn remove_stale(&mut self) {
        let board = &self.context.board;
        let removed = self
            .queue
            .remove_unless(|queued| board.is_current(queued.job.reading()));
        self.drop_batches(removed);
    }

    /// While the process stops, only batches are stored, and nothing in trouble is waited for: it is read again later.
    fn remove_what_is_not_waited_for(&mut self) {
        let is_hopeless = self.reports.has_reported();
        let mut removed = (self.queue)
            .remove_unless(|queued| matches!(queued.job, Job::Store(_)) && !is_hopeless);
        removed.extend(self.queue.remove_failed());
        self.drop_batches(removed);
    }

    fn drop_batches(&self, jobs: Vec<Job>) {
        for job in jobs {
            if let Job::Store(job) = job {
                if let Some(trace) = &job.trace {
                    trace.dropped("the batch is not stored by this process");
                }
                self.report(Report::Dropped(job.batch.size_bytes));
            }
        }
    }

    /// Tries once to do a job.
    fn attempt(&mut self, mut queued: Queued) {
        let hold = &mut queued.hold;
        let due = match &mut queued.job {
            Job::Claim(job) => self.claim(job, hold),
            Job::Store(job) => self.store(job, hold),
            Job::Reread(reading) => self.reread(*reading, hold),
        };
        if let Some(due) = due {
            self.queue.put_back(queued, due);
        }
    }

    /// Has the rows of idle partitions read again.
    fn begin_rereads(&mut self) {
        if self.is_finishing {
            return;
        }
        let is_ours = self.is_ours();
        let idle = |partition| is_ours(partition) && !self.queue.has_jobs_of(partition);
        for (reading, _) in (self.context.board).unconfirmed_claims(IDLE_REREAD_INTERVAL, idle) {
            self.queue.push(Job::Reread(reading));
        }
    }
}
