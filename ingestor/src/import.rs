//! Imports orders that do not come from Kafka, each exactly once.
//!
//! An import is read like a partition whose offsets are the indexes of its orders. It has a row in `consumer_offsets`, which
//! every batch advances in the transaction that stores its orders. So an import that was interrupted continues, and of two
//! imports of the same orders at once one is fenced.

use std::thread;

use anyhow::bail;
use diesel::PgConnection;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use rdkafka::Timestamp;
use rdkafka::message::OwnedMessage;
use shared::backoff::Backoff;
use shared::config::DatabaseSettings;
use shared::order::Order;
use shared::throttle::Throttle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::batch::Batch;
use crate::database::Connection;
use crate::offsets::{self, Claim, LOCK_POLL_INTERVAL};
use crate::record::{Consumer, Offset, Partition, Reading, Refusal};
use crate::writer::attempt::{self, Step};
use crate::writer::{SESSION, Trouble};

/// An import that keeps what exists, and one that replaces it, each have a row: the second one may follow the first.
const KEEPING: Partition = Partition(0);
const REPLACING: Partition = Partition(1);

/// What is imported, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Consumer group.
    pub group_id: String,
    /// SHA-256 of the orders, in hexadecimal. It names the import.
    pub hash: String,
    /// Whether orders that exist are replaced.
    pub replaces: bool,
    /// The most orders of a batch.
    pub max_orders: usize,
    /// The most memory of a batch, in bytes.
    pub max_bytes: usize,
}

/// How many orders were stored, and why others were not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Orders that were stored. If the answer to a COMMIT was lost, the kept ones of that batch count here, too.
    pub stored: usize,
    /// Orders that were not stored because they exist, or because the file has the same order twice.
    pub kept: usize,
    /// Orders that were left out because they, or their customers, were deleted or erased.
    pub left_out: usize,
}

/// An import that is under way.
pub struct Import {
    plan: Plan,
    consumer: Consumer,
    connection: Connection,
    shutdown: CancellationToken,
    backoff: Backoff,
    reports: Throttle,
    claim: Claim,
    batch: Batch,
    tally: Tally,
}

impl Import {
    /// Claims the import's row. What another process stores of the same import is rejected from then on.
    ///
    /// Retries while the database is away or sick.
    ///
    /// # Errors
    /// Returns an error if the process is to stop.
    pub fn start(
        plan: Plan,
        database: DatabaseSettings,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        let consumer = Consumer {
            group_id: plan.group_id.clone(),
            topic: format!("import:{}", plan.hash),
            owner: Uuid::new_v4(),
        };
        let partition = if plan.replaces { REPLACING } else { KEEPING };
        let mut connection = Connection::new(database, SESSION);
        let (mut backoff, mut reports) = (Backoff::for_database(), Throttle::for_reports());
        let claim = loop {
            let claimed = connection
                .get()
                .map_err(Trouble::from)
                .and_then(|open| claim(open, &consumer, partition));
            match claimed {
                Ok(claim) => break claim,
                Err(trouble) => {
                    connection.close();
                    if reports.is_due() {
                        warn!("cannot begin the import, retrying: {trouble}");
                    }
                    thread::sleep(backoff.next_delay());
                    check_not_stopped(&shutdown)?;
                }
            }
        };
        backoff.reset();
        reports.reset();
        let batch = open_batch(partition, plan.replaces, claim.next_offset);
        Ok(Self {
            plan,
            consumer,
            connection,
            shutdown,
            backoff,
            reports,
            claim,
            batch,
            tally: Tally::default(),
        })
    }

    /// The index of the first order that is not imported yet, at the start of this import.
    pub fn start_index(&self) -> Offset {
        self.claim.next_offset
    }

    /// What was done so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Adds the next order. `bytes` are those that it was read from. Stores a batch if enough is waiting, and returns the orders
    /// that the database rejects.
    ///
    /// # Errors
    /// Returns an error if the process is to stop, or if another import of the same orders has taken over.
    pub fn push(
        &mut self,
        index: Offset,
        order: Order,
        bytes: &[u8],
    ) -> anyhow::Result<Vec<(Offset, Refusal)>> {
        check_not_stopped(&self.shutdown)?;
        // Without a time no order is new for what was deleted or erased.
        let message = OwnedMessage::new(
            Some(bytes.to_vec()),
            None,
            String::new(),
            Timestamp::NotAvailable,
            self.batch.reading.partition.0,
            index.0,
            None,
        );
        self.batch.push_order(order, message);
        let Plan {
            max_orders,
            max_bytes,
            ..
        } = self.plan;
        if self.batch.orders.len() < max_orders && self.batch.size_bytes < max_bytes {
            return Ok(Vec::new());
        }
        self.flush()
    }

    /// Passes over an order that is refused.
    ///
    /// # Errors
    /// Returns an error if the process is to stop.
    pub fn pass_over(&mut self, index: Offset) -> anyhow::Result<()> {
        check_not_stopped(&self.shutdown)?;
        self.batch.reach(index.next());
        Ok(())
    }

    /// Stores what is waiting, and returns the orders that the database rejects.
    ///
    /// # Errors
    /// Returns an error if the process is to stop, or if another import of the same orders has taken over.
    pub fn flush(&mut self) -> anyhow::Result<Vec<(Offset, Refusal)>> {
        let (mut must_settle, mut has_failed) = (false, false);
        let mut rejected = Vec::new();
        while !self.batch.is_empty() {
            let started_with = self.batch.orders.len();
            match self.step(must_settle, has_failed) {
                Ok(Step::Stored(stored)) => {
                    self.stored(stored.written);
                    break;
                }
                Ok(Step::NotStored) => must_settle = false,
                Ok(Step::BringsBack(offsets)) => {
                    self.batch.leave_out(&offsets);
                    self.tally.left_out += started_with - self.batch.orders.len();
                }
                Ok(Step::Refused(refused)) => {
                    let offsets: Vec<Offset> = refused.iter().map(|(offset, _)| *offset).collect();
                    self.batch.leave_out(&offsets);
                    rejected.extend(refused);
                }
                Ok(Step::Lost) => bail!(
                    "another import of the same file has taken over at order {}; this one has stopped",
                    self.batch.old_next_offset
                ),
                Ok(Step::NoRow) => {
                    must_settle = true;
                    self.report("another session holds the import's row");
                    thread::sleep(LOCK_POLL_INTERVAL);
                    check_not_stopped(&self.shutdown)?;
                }
                // Another process has inserted one of the orders meanwhile: now it exists.
                Err(Trouble::Query(DieselError::DatabaseError(
                    DatabaseErrorKind::UniqueViolation,
                    _,
                ))) if !has_failed => has_failed = true,
                Err(trouble) => {
                    (must_settle, has_failed) = (true, true);
                    self.wait_after(&trouble)?;
                }
            }
        }
        rejected.sort_unstable_by_key(|(offset, _)| *offset);
        Ok(rejected)
    }

    fn step(&mut self, must_settle: bool, has_failed: bool) -> Result<Step, Trouble> {
        let connection = self.connection.get()?;
        let (consumer, claim, batch) = (&self.consumer, &self.claim, &self.batch);
        Ok(if must_settle {
            attempt::settle(connection, consumer, claim, batch)?
        } else {
            attempt::store(connection, consumer, claim, batch, false, has_failed)?
        })
    }

    fn stored(&mut self, written: usize) {
        let orders = self.batch.orders.len();
        // What a later order of the same batch has replaced was stored, too.
        let stored = if self.plan.replaces { orders } else { written };
        self.tally.stored += stored;
        self.tally.kept += orders - stored;
        if self.reports.has_reported() {
            info!("the database works again");
        }
        self.reports.reset();
        self.backoff.reset();
        let Reading { partition, .. } = self.batch.reading;
        self.batch = open_batch(partition, self.plan.replaces, self.batch.new_next_offset);
    }

    /// Nobody knows what state the connection is in.
    fn wait_after(&mut self, trouble: &Trouble) -> anyhow::Result<()> {
        self.connection.close();
        self.report(&trouble.to_string());
        thread::sleep(self.backoff.next_delay());
        check_not_stopped(&self.shutdown)
    }

    fn report(&mut self, reason: &str) {
        if self.reports.is_due() {
            warn!("cannot store orders, retrying: {reason}");
        }
    }
}

fn claim(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: Partition,
) -> Result<Claim, Trouble> {
    offsets::claim_import(connection, consumer, partition).map_err(|error| match error {
        DieselError::NotFound => Trouble::RowLocked(partition, Vec::new()),
        other => Trouble::Query(other),
    })
}

fn open_batch(partition: Partition, replaces: bool, next_offset: Offset) -> Batch {
    let reading = Reading {
        partition,
        generation: 0,
    };
    Batch::of_file(reading, next_offset, replaces)
}

fn check_not_stopped(shutdown: &CancellationToken) -> anyhow::Result<()> {
    if shutdown.is_cancelled() {
        bail!("interrupted: repeat the command, and it continues");
    }
    Ok(())
}
