//! Writer threads: each with its own connection, each with the partitions that are pinned to it.
//!
//! A writer stores one batch after another, every one in one transaction (`transaction`). A database that is away or
//! sick is waited for, for ever; a batch is given up only when its partition is not ours any more or the process stops.

mod claiming;
mod isolation;
mod transaction;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use shared::backoff::Backoff;
use shared::config::DatabaseSettings;
use shared::db;
use tracing::{error, info, warn};

pub use isolation::is_refusal;
use transaction::Origin;
pub use transaction::store_replayed;

use crate::APPLICATION_NAME;
use crate::batch::{Batch, Reading, Refusal};
use crate::consumer::Probe;
use crate::current::Current;
use crate::failpoints::{self, Phase, Plant};
use crate::metrics::{Metrics, RetryClass};
use crate::offsets::{self, Claim, Consumer};
use crate::status::Status;

/// What the poll thread asks of a writer.
#[derive(Debug)]
pub enum Task {
    /// Claim the partition and say where to read on.
    Claim(Reading),
    /// Store the batch.
    Store(Batch),
    /// The partition was taken from us.
    Release {
        /// Which.
        partition: i32,
    },
}

/// What a writer answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The partition is ours.
    Claimed {
        /// Which reading.
        reading: Reading,
        /// Where to read on.
        next_offset: i64,
    },
    /// The partition must not be read.
    Stopped {
        /// Which reading.
        reading: Reading,
        /// Why, for people.
        reason: String,
    },
    /// A batch is stored.
    Stored {
        /// Which reading.
        reading: Reading,
        /// What the database now says.
        next_offset: i64,
        /// When the database had it: the poll thread may hear of it later.
        at: Instant,
        /// Memory that came free.
        size_bytes: usize,
    },
    /// A batch was dropped, to be read again; its memory came free.
    Dropped {
        /// Memory that came free.
        size_bytes: usize,
    },
    /// The partition is somebody else's, or not where we believed: claim it again if it is still assigned.
    Lost {
        /// Which reading.
        reading: Reading,
    },
}

/// An idle owner looks at its rows so often, so that a rewind or a failover reaches it.
const IDLE_REREAD_INTERVAL: Duration = Duration::from_secs(5);
/// How often a batch is tried again at once after another writer was quicker with one of its new orders; more is trouble.
const MAX_COLLISIONS: u32 = 5;
/// How often trouble with the database is reported while it lasts.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// Most time for a statement; a batch takes milliseconds. Everything is found by a key: without statistics, in a database that
/// nobody has analysed yet, the planner may still choose to read the whole table for every batch.
const SESSION: &str = "SET statement_timeout = '60s'; SET enable_seqscan = off";

/// What a writer needs.
pub(crate) struct Writer {
    /// Which of them it is.
    pub(crate) number: usize,
    pub(crate) consumer: Consumer,
    pub(crate) database: DatabaseSettings,
    /// Bad messages in a row beyond which a partition halts.
    pub(crate) max_consecutive_bad: i64,
    pub(crate) probe: Arc<Probe>,
    pub(crate) current: Arc<Current>,
    pub(crate) status: Arc<Status>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) reports_tx: Sender<Report>,
    pub(crate) session: Session,
}

/// A writer's state: its connection and its claims.
#[derive(Default)]
pub(crate) struct Session {
    connection: Option<PgConnection>,
    claims: HashMap<i32, Owned>,
    last_trouble_report: Option<Instant>,
}

struct Owned {
    reading: Reading,
    claim: Claim,
    last_confirmed_at: Instant,
}

/// Why something was given up.
enum GivenUp {
    /// The partition is not ours any more, or the process stops.
    NotCurrent,
}

impl Writer {
    /// Works until the poll thread drops its end.
    pub(crate) fn run(mut self, tasks_rx: &Receiver<Task>) {
        loop {
            match tasks_rx.recv_timeout(IDLE_REREAD_INTERVAL) {
                Ok(Task::Claim(reading)) => self.claim(reading),
                Ok(Task::Store(batch)) => self.store(batch),
                Ok(Task::Release { partition }) => {
                    self.session.claims.remove(&partition);
                    if self.session.claims.is_empty() {
                        // It has nothing to try any more.
                        self.status.set_database_ok(self.number, true);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.reread_idle();
        }
    }

    fn report(&self, report: Report) {
        // The poll thread is gone only when the process ends, and then nobody needs the report.
        self.reports_tx.send(report).ok();
    }

    fn store(&mut self, mut batch: Batch) {
        if let Err(GivenUp::NotCurrent) = self.store_until_settled(&mut batch) {
            self.report(Report::Dropped {
                size_bytes: batch.size_bytes,
            });
        }
    }

    /// Tries until the batch is stored or no longer ours to store.
    fn store_until_settled(&mut self, batch: &mut Batch) -> Result<(), GivenUp> {
        let mut backoff = Backoff::for_database();
        let mut outcome_unknown = false;
        let mut collisions = 0;
        loop {
            let owned = self
                .session
                .claims
                .get(&batch.reading.partition)
                .filter(|owned| owned.reading == batch.reading);
            let Some(claim) = owned.map(|owned| owned.claim.clone()) else {
                return Err(GivenUp::NotCurrent);
            };
            // While the process stops, a database in trouble is not waited for: the batch is read again.
            let hopeless = self.current.is_stopping() && self.session.last_trouble_report.is_some();
            if hopeless || !self.current.is(batch.reading) {
                return Err(GivenUp::NotCurrent);
            }
            let step = if outcome_unknown {
                self.settle(batch, &claim)
            } else {
                self.try_store(batch, &claim)
            };
            match step {
                Ok(Step::Stored { .. }) if failpoints::is_planted(Plant::ReapplyBatch) => {}
                Ok(Step::Stored { orders }) => {
                    self.stored(batch, orders);
                    return Ok(());
                }
                Ok(Step::NotStored) => outcome_unknown = false,
                Ok(Step::Refused(refused)) => {
                    warn!(
                        kafka.partition = batch.reading.partition,
                        kafka.offsets = ?refused.iter().map(|(offset, _)| offset).collect::<Vec<_>>(),
                        "a constraint of the database refuses orders: they become dead letters"
                    );
                    batch.refuse(refused);
                }
                Ok(Step::Lost) => {
                    self.lose(batch.reading);
                    return Err(GivenUp::NotCurrent);
                }
                // Somebody has inserted one of its orders since we looked: now it is there to be locked.
                Err(Trouble::Query(DieselError::DatabaseError(
                    DatabaseErrorKind::UniqueViolation,
                    _,
                ))) if collisions < MAX_COLLISIONS => collisions += 1,
                Err(trouble) => {
                    self.trouble(&trouble, "store a batch");
                    // The answer to a COMMIT may be what was lost.
                    outcome_unknown = true;
                    self.current.wait(backoff.next_delay());
                }
            }
        }
    }

    fn try_store(&mut self, batch: &Batch, claim: &Claim) -> Result<Step, Trouble> {
        let consumer = self.consumer.clone();
        let halts = batch.bad_run(claim.consecutive_bad).longest > self.max_consecutive_bad;
        let started_at = Instant::now();
        match transaction::store(self.connection()?, &consumer, claim, batch, halts) {
            Ok(orders) => {
                failpoints::reached(Phase::Committed);
                self.metrics
                    .commit_seconds
                    .observe(started_at.elapsed().as_secs_f64());
                Ok(Step::Stored { orders })
            }
            Err(error) if offsets::is_fence(&error) => Ok(Step::Lost),
            Err(error) if isolation::is_refusal(&error) => {
                let refused =
                    isolation::find_refused(self.connection()?, batch, Origin::of(claim, batch))?;
                if refused.is_empty() {
                    // Refused and then not: no order is to blame.
                    return Err(error.into());
                }
                Ok(Step::Refused(refused))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Asks the database what came of a transaction whose outcome is unknown.
    fn settle(&mut self, batch: &Batch, claim: &Claim) -> Result<Step, Trouble> {
        let consumer = self.consumer.clone();
        let next_offset = offsets::reread(
            self.connection()?,
            &consumer,
            batch.reading.partition,
            claim.epoch,
        )?;
        Ok(match next_offset {
            // How many of them a replay left out is not known any more.
            Some(offset) if offset == batch.new_next_offset => Step::Stored {
                orders: batch.folded().len(),
            },
            Some(offset) if offset == batch.old_next_offset => Step::NotStored,
            _ => Step::Lost,
        })
    }

    fn stored(&mut self, batch: &Batch, orders: usize) {
        self.healthy();
        let reading = batch.reading;
        let mut halts = false;
        if let Some(owned) = self.session.claims.get_mut(&reading.partition) {
            let bad_run = batch.bad_run(owned.claim.consecutive_bad);
            halts = bad_run.longest > self.max_consecutive_bad;
            owned.claim.consecutive_bad = bad_run.trailing;
            owned.claim.next_offset = batch.new_next_offset;
            owned.last_confirmed_at = Instant::now();
        }
        self.metrics.batch_stored(batch, orders);
        self.status
            .set_position(reading.partition, batch.new_next_offset, batch.last_record);
        self.report(Report::Stored {
            reading,
            next_offset: batch.new_next_offset,
            at: Instant::now(),
            size_bytes: batch.size_bytes,
        });
        if halts {
            self.session.claims.remove(&reading.partition);
            let reason = offsets::halted_reason(reading.partition);
            self.report(Report::Stopped { reading, reason });
        }
    }

    fn lose(&mut self, reading: Reading) {
        self.metrics.fences.inc();
        warn!(
            kafka.partition = reading.partition,
            "fenced: another process has claimed the partition, or its offset was changed; what was read is dropped"
        );
        self.session.claims.remove(&reading.partition);
        self.report(Report::Lost { reading });
    }

    fn reread_idle(&mut self) {
        let due: Vec<(Reading, Claim)> = (self.session.claims.values())
            .filter(|owned| owned.last_confirmed_at.elapsed() >= IDLE_REREAD_INTERVAL)
            .map(|owned| (owned.reading, owned.claim.clone()))
            .collect();
        for (reading, claim) in due {
            let consumer = self.consumer.clone();
            let reread = self.connection().and_then(|connection| {
                offsets::reread(connection, &consumer, reading.partition, claim.epoch)
                    .map_err(Trouble::from)
            });
            match reread {
                Ok(Some(next_offset)) if next_offset == claim.next_offset => {
                    self.healthy();
                    if let Some(owned) = self.session.claims.get_mut(&reading.partition) {
                        owned.last_confirmed_at = Instant::now();
                    }
                }
                Ok(_) => self.lose(reading),
                Err(trouble) => return self.trouble(&trouble, "look at the offsets"),
            }
        }
    }

    fn connection(&mut self) -> Result<&mut PgConnection, Trouble> {
        if self.session.connection.is_none() {
            let mut connection = db::connect_blocking(&self.database, APPLICATION_NAME)?;
            connection.batch_execute(SESSION)?;
            self.session.connection = Some(connection);
        }
        self.session
            .connection
            .as_mut()
            .ok_or_else(|| Trouble::Other(anyhow::anyhow!("no connection")))
    }

    fn healthy(&mut self) {
        self.status.set_database_ok(self.number, true);
        if self.session.last_trouble_report.take().is_some() {
            info!("the database is well again");
        }
    }

    /// Counts and reports once in a while; the next try gets a new connection.
    fn trouble(&mut self, trouble: &Trouble, doing: &str) {
        let class = trouble.class();
        self.metrics.retried(class);
        if matches!(trouble, Trouble::Connect(_) | Trouble::Query(_)) {
            self.status.set_database_ok(self.number, false);
        }
        self.session.connection = None;
        if self
            .session
            .last_trouble_report
            .is_none_or(|at| at.elapsed() >= REPORT_INTERVAL)
        {
            self.session.last_trouble_report = Some(Instant::now());
            error!("cannot {doing}, going on trying: {trouble}");
        }
    }
}

enum Step {
    Stored {
        /// Written, superseded messages not counted.
        orders: usize,
    },
    NotStored,
    /// A constraint refuses these messages, by rising offset.
    Refused(Vec<(i64, Refusal)>),
    Lost,
}

/// Everything that is waited for.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("cannot connect to the database: {0}")]
    Connect(#[from] diesel::ConnectionError),
    #[error("{0}")]
    Query(#[from] DieselError),
    #[error("Kafka: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl Trouble {
    fn class(&self) -> RetryClass {
        match self {
            Self::Connect(_) => RetryClass::Connect,
            Self::Query(DieselError::DatabaseError(
                DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand,
                _,
            )) => RetryClass::LostConnection,
            Self::Query(_) => RetryClass::Query,
            Self::Kafka(_) | Self::Other(_) => RetryClass::Kafka,
        }
    }
}
