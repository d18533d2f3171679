//! One batch is one transaction: it advances the offset, writes orders and dead letters, and emits the events.

use std::collections::HashMap;

use diesel::connection::{DefaultLoadingMode, SimpleConnection};
use diesel::prelude::*;
use diesel::result::Error as DieselError;
use shared::db::models::{NewOrder, OrderRow, Source, VersionedOrder};
use shared::db::orders::UpsertOrders;
use shared::db::schema::orders;
use shared::events::{self, Operation};
use shared::order::{Order, OrderUid};
use shared::traces;

use super::removed::{self, Old, Reader};
use crate::batch::{Batch, SourcedOrder};
use crate::dead_letters::{self, DeadLetter};
use crate::failpoints::{self, Phase};
use crate::guard::{Guard, Verdict};
use crate::ledger::{self, Newest};
use crate::offsets::{self, Claim};
use crate::record::{Consumer, Offset, Position, Reason, Refusal};

/// How a retry waits for the locks of orders. Somebody may hold them for long, and meanwhile the writer does nothing else.
const HURRY: &str = "SET LOCAL lock_timeout = '200ms'";
/// How every COMMIT waits for the server's lock on the queue of notifications: like the session.
const NO_HURRY: &str = "SET LOCAL lock_timeout = '10s'";

/// What storing a batch did with its orders.
#[derive(Debug)]
pub struct Stored {
    /// How many orders were written.
    pub written: usize,
    /// The messages that the guard held back. They have become dead letters.
    pub held_back: Vec<Offset>,
}

/// What became of a batch.
pub(super) enum Outcome {
    /// It is stored.
    Stored(Stored),
    /// Nothing is stored, because the messages at these offsets would bring back what was removed.
    BringsBack(Vec<Offset>),
}

/// Why a transaction was rolled back.
enum Rollback {
    BringsBack(Vec<Old>),
    Failed(DieselError),
}

impl From<DieselError> for Rollback {
    fn from(error: DieselError) -> Self {
        Self::Failed(error)
    }
}

/// Stores a batch whole or not at all. `halts` stops the partition after it. A retry does not wait long for orders that others
/// have locked.
///
/// # Errors
/// Returns the database's error; [`offsets::is_fence`] recognises the one for a batch that is not ours to store. After an
/// error of the connection the outcome is unknown.
pub(super) fn store(
    connection: &mut PgConnection,
    consumer: &Consumer,
    claim: &Claim,
    batch: &Batch,
    halts: bool,
    is_retry: bool,
) -> QueryResult<Outcome> {
    let stored = connection.transaction(|connection| {
        failpoints::open_fence(connection, consumer, claim.epoch, batch)?;
        traces::leaf("fence", || {
            offsets::advance(connection, consumer, claim, batch, halts)
        })?;
        if is_retry {
            connection.batch_execute(HURRY)?;
        }
        failpoints::commit_offset(connection)?;
        let guard = &claim.guard;
        let written = failpoints::skip_on_error(connection, |connection| {
            store_orders(connection, guard, batch.folded(guard))
        })?;
        let held_letters = written.held_letters(batch);
        let letters = failpoints::unless_swallowed(&batch.dead_letters);
        let newest = traces::leaf("look at the ledger", || {
            let newest = look_at_ledger(connection, &written, letters)?;
            refuse_old(connection, Reader { consumer, guard }, newest, &written)?;
            Ok::<_, Rollback>(newest)
        })?;
        let (partition, incarnation) = (guard.partition, guard.incarnation);
        for letters in [letters, &held_letters] {
            if letters.is_empty() {
                continue;
            }
            traces::leaf("insert dead letters", || {
                let erased = removed::find_erased_letters(connection, newest, letters)?;
                dead_letters::insert(
                    connection,
                    consumer,
                    partition,
                    incarnation,
                    letters,
                    &erased,
                )
            })?;
        }
        traces::leaf("notify the caches", || notify(connection, &written))?;
        if is_retry {
            connection.batch_execute(NO_HURRY)?;
        }
        failpoints::reached(Phase::BeforeCommit);
        let letters = held_letters.iter();
        let stored = Stored {
            written: written.len(),
            held_back: letters.map(|letter| letter.position.offset).collect(),
        };
        Ok((stored, traces::part("COMMIT")))
    });
    match stored {
        // The span of the COMMIT ends here.
        Ok((stored, _commit)) => Ok(Outcome::Stored(stored)),
        Err(Rollback::BringsBack(old)) => Ok(Outcome::BringsBack(
            old.iter().map(|old| old.offset).collect(),
        )),
        Err(Rollback::Failed(error)) => Err(error),
    }
}

fn held_back_refusal() -> Refusal {
    Refusal {
        reason: Reason::HeldBack,
        detail: "the message may have been read before, and the stored order may be newer; `ingestor dead-letters replay` \
                 with this letter's number stores it all the same"
            .to_owned(),
    }
}

/// Returns the offsets of those messages of a batch that would bring back what was removed. Writes nothing.
///
/// # Errors
/// Returns the database's error.
pub(super) fn find_old(
    connection: &mut PgConnection,
    consumer: &Consumer,
    guard: &Guard,
    batch: &Batch,
) -> QueryResult<Vec<Offset>> {
    connection.transaction(|connection| {
        let folded = batch.folded(guard);
        let existing = lock_existing(connection, &folded)?;
        let (mut replaced, inserted): (Vec<_>, Vec<_>) =
            (folded.into_iter()).partition(|order| existing.contains_key(order.uid()));
        replaced.retain(|order| !order.keeps_existing);
        let written = Written {
            inserted,
            replaced,
            held_back: Vec::new(),
        };
        let newest = ledger::look(connection)?;
        let old = written.find_old(connection, Reader { consumer, guard }, newest)?;
        Ok(old.iter().map(|old| old.offset).collect())
    })
}

/// Looks at the ledger if the batch has anything to compare with it.
fn look_at_ledger(
    connection: &mut PgConnection,
    written: &Written<'_>,
    letters: &[DeadLetter],
) -> QueryResult<Newest> {
    if written.len() + written.held_back.len() + letters.len() == 0 {
        return Ok(Newest::default());
    }
    ledger::look(connection)
}

/// Returns an error if a message that was written would bring back what was removed.
///
/// It comes after the orders were written. Before that, another writer could still create one of them and delete it.
fn refuse_old(
    connection: &mut PgConnection,
    reader: Reader<'_>,
    newest: Newest,
    written: &Written<'_>,
) -> Result<(), Rollback> {
    let old = written.find_old(connection, reader, newest)?;
    if old.is_empty() {
        Ok(())
    } else {
        Err(Rollback::BringsBack(old))
    }
}

/// What became of an order whose message was read before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// It is written.
    Written,
    /// The stored order is newer, or may be. Nothing was written.
    Superseded,
    /// The order was deleted after the message was produced. Nothing was written.
    Deleted,
    /// The order or its customer was erased after the message was produced. Nothing was written.
    Erased,
}

/// How an order is replayed.
#[derive(Clone, Copy, Debug)]
pub struct Replay {
    /// The guard of the message's partition.
    pub guard: Guard,
    /// The message's place and time.
    pub position: Position,
    /// An operator has decided to store it whatever is stored. As after a write by the api, no message then counts as its
    /// writer.
    pub is_decided: bool,
    /// It is stored although it was deleted, but not if it was erased.
    pub revives_deleted: bool,
}

/// Stores an order whose message was read before, in the caller's transaction, unless the stored order may be newer or the
/// order was removed.
///
/// # Errors
/// Returns the database's error.
pub fn store_replayed(
    connection: &mut PgConnection,
    consumer: &Consumer,
    order: &Order,
    replay: Replay,
) -> QueryResult<Replayed> {
    let guard = &replay.guard;
    let source = guard.source_at(replay.position.offset);
    let sourced = SourcedOrder {
        order,
        position: replay.position,
        is_replay: !replay.is_decided,
        source: Some(source).filter(|_| !replay.is_decided),
        keeps_existing: false,
    };
    let stored = connection.transaction(|connection| {
        let written = store_orders(connection, guard, vec![sourced])?;
        let newest = look_at_ledger(connection, &written, &[])?;
        let mut old = written.find_old(connection, Reader { consumer, guard }, newest)?;
        old.retain(|old| old.is_erased || !replay.revives_deleted);
        if !old.is_empty() {
            return Err(Rollback::BringsBack(old));
        }
        notify(connection, &written)?;
        Ok(written.len() > 0)
    });
    match stored {
        Ok(true) => Ok(Replayed::Written),
        Ok(false) => Ok(Replayed::Superseded),
        Err(Rollback::BringsBack(old)) if old.iter().any(|old| old.is_erased) => {
            Ok(Replayed::Erased)
        }
        Err(Rollback::BringsBack(_)) => Ok(Replayed::Deleted),
        Err(Rollback::Failed(error)) => Err(error),
    }
}

/// What [`store_orders`] did.
#[derive(Debug, Default)]
pub(super) struct Written<'a> {
    /// These were written and did not exist.
    inserted: Vec<SourcedOrder<'a>>,
    /// These were written and existed.
    replaced: Vec<SourcedOrder<'a>>,
    /// These were not written: what is stored in their place differs from them and may be newer.
    held_back: Vec<SourcedOrder<'a>>,
}

impl<'a> Written<'a> {
    fn len(&self) -> usize {
        self.inserted.len() + self.replaced.len()
    }

    fn find_old(
        &self,
        connection: &mut PgConnection,
        reader: Reader<'_>,
        newest: Newest,
    ) -> QueryResult<Vec<Old>> {
        removed::find_old(connection, reader, newest, &self.inserted, &self.replaced)
    }

    fn uids(&self) -> impl Iterator<Item = &'a str> {
        self.inserted
            .iter()
            .chain(&self.replaced)
            .map(SourcedOrder::uid)
    }

    /// The letters of what was held back.
    fn held_letters(&self, batch: &Batch) -> Vec<DeadLetter> {
        self.held_back
            .iter()
            .filter_map(|order| batch.message_at(order.offset()))
            .map(|message| DeadLetter::new(message, held_back_refusal()))
            .collect()
    }
}

/// Writes orders that are sorted by uid, each with a different uid, unless the guard forbids it.
///
/// Orders that exist are locked first, in the order of their uids, and replaced by one statement. New ones are copied. If
/// another writer inserts one of the new orders meanwhile, that is a unique violation, and the whole transaction must be
/// retried. A second look within the transaction would lock rows out of order, which can deadlock with another writer.
pub(super) fn store_orders<'a>(
    connection: &mut PgConnection,
    guard: &Guard,
    latest: Vec<SourcedOrder<'a>>,
) -> QueryResult<Written<'a>> {
    if latest.is_empty() {
        return Ok(Written::default());
    }
    let existing = traces::leaf("lock existing orders", || {
        lock_existing(connection, &latest)
    })?;
    let mut held_back = Vec::new();
    let mut written = latest;
    written.retain(|order| {
        let verdict = match existing.get(order.uid()) {
            Some(_) if order.keeps_existing => Verdict::Superseded,
            Some(written_by) if order.is_replay => guard.judge_replay(order.position, *written_by),
            _ => Verdict::Write,
        };
        if verdict == Verdict::HeldBack {
            held_back.push(*order);
        }
        verdict == Verdict::Write
    });
    let (replaced, inserted): (Vec<_>, Vec<_>) =
        (written.into_iter()).partition(|order| existing.contains_key(order.uid()));
    let row = |order: &SourcedOrder<'a>| NewOrder::new(order.order, order.source);
    let to_copy: Vec<NewOrder<'_>> = inserted.iter().map(row).collect();
    let to_replace: Vec<NewOrder<'_>> = replaced.iter().map(row).collect();
    if !to_copy.is_empty() {
        traces::leaf("copy new orders", || {
            diesel::copy_from(orders::table)
                .from_insertable(&to_copy)
                .execute(connection)
        })?;
    }
    if !to_replace.is_empty() {
        traces::leaf("replace orders", || {
            UpsertOrders::new(&to_replace).execute(connection)
        })?;
    }
    retain_different(connection, &mut held_back)?;
    Ok(Written {
        inserted,
        replaced,
        held_back,
    })
}

/// Keeps the orders that differ from what is stored under their uids.
fn retain_different(
    connection: &mut PgConnection,
    orders: &mut Vec<SourcedOrder<'_>>,
) -> QueryResult<()> {
    if orders.is_empty() {
        return Ok(());
    }
    let rows = orders::table
        .filter(orders::order_uid.eq_any(orders.iter().map(SourcedOrder::uid)))
        .select(OrderRow::as_select())
        .load(connection)?;
    // What cannot be read differs from every order.
    let stored: HashMap<OrderUid, Order> = (rows.into_iter())
        .filter_map(|row| VersionedOrder::try_from(row).ok())
        .map(|stored| (stored.order.order_uid.clone(), stored.order))
        .collect();
    orders.retain(|order| stored.get(&order.order.order_uid) != Some(order.order));
    Ok(())
}

/// Locks the orders that exist. Returns the message that last wrote each of them, `None` after a write by the api.
fn lock_existing(
    connection: &mut PgConnection,
    orders: &[SourcedOrder<'_>],
) -> QueryResult<HashMap<String, Option<Source>>> {
    let uids: Vec<&str> = orders.iter().map(SourcedOrder::uid).collect();
    let rows = orders::table
        .filter(orders::order_uid.eq_any(uids))
        .select((
            orders::order_uid,
            orders::source_partition,
            orders::source_incarnation,
            orders::source_offset,
        ))
        .order(orders::order_uid)
        .for_update()
        .load_iter::<(String, Option<i32>, Option<i32>, Option<i64>), DefaultLoadingMode>(
            connection,
        )?;
    rows.map(|row| {
        let (uid, partition, incarnation, offset) = row?;
        let source = || {
            Some(Source {
                partition: partition?,
                incarnation: incarnation?,
                offset: offset?,
            })
        };
        Ok((uid, source()))
    })
    .collect()
}

fn notify(connection: &mut PgConnection, written: &Written<'_>) -> QueryResult<()> {
    if written.len() == 0 {
        return Ok(());
    }
    events::notify(Operation::Upsert, written.uids())
        .execute(connection)
        .map(|_| ())
}
