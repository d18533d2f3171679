//! One batch is one transaction: it advances the offset, writes orders and dead letters, and emits the events.

use std::collections::HashMap;

use diesel::connection::{DefaultLoadingMode, SimpleConnection};
use diesel::prelude::*;
use shared::db::models::{NewOrder, OrderRow, Source, VersionedOrder};
use shared::db::orders::UpsertOrders;
use shared::db::schema::orders;
use shared::events::{self, Operation};
use shared::order::{Order, OrderUid};

use crate::batch::{Batch, SourcedOrder};
use crate::dead_letters::{self, DeadLetter};
use crate::failpoints::{self, Phase};
use crate::guard::{Guard, Verdict};
use crate::offsets::{self, Claim};
use crate::record::{Consumer, Position, Reason, Refusal};

/// How a retry waits for the locks of orders. Somebody may hold them for long, and meanwhile the writer does nothing else.
const HURRY: &str = "SET LOCAL lock_timeout = '200ms'";
/// How every COMMIT waits for the server's lock on the queue of notifications: like the session.
const NO_HURRY: &str = "SET LOCAL lock_timeout = '10s'";

/// What storing a batch did with its orders.
#[derive(Debug)]
pub(super) struct Stored {
    /// How many orders were written.
    pub(super) written: usize,
    /// How many the guard held back. They have become dead letters.
    pub(super) held_back: usize,
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
) -> QueryResult<Stored> {
    connection.transaction(|connection| {
        failpoints::open_fence(connection, consumer, claim.epoch, batch)?;
        offsets::advance(connection, consumer, claim, batch, halts)?;
        if is_retry {
            connection.batch_execute(HURRY)?;
        }
        failpoints::commit_offset(connection)?;
        let guard = &claim.guard;
        let Outcome { written, held_back } = failpoints::skip_on_error(connection, |connection| {
            store_orders(connection, guard, batch.folded(guard))
        })?;
        let letters = failpoints::unless_swallowed(&batch.dead_letters);
        let (partition, incarnation) = (guard.partition, guard.incarnation);
        dead_letters::insert(connection, consumer, partition, incarnation, letters)?;
        let held_letters: Vec<DeadLetter> = held_back
            .iter()
            .filter_map(|order| batch.message_at(order.offset()))
            .map(|message| DeadLetter::new(message, held_back_refusal()))
            .collect();
        dead_letters::insert(connection, consumer, partition, incarnation, &held_letters)?;
        notify(connection, &written)?;
        if is_retry {
            connection.batch_execute(NO_HURRY)?;
        }
        failpoints::reached(Phase::BeforeCommit);
        Ok(Stored {
            written: written.len(),
            held_back: held_letters.len(),
        })
    })
}

fn held_back_refusal() -> Refusal {
    Refusal {
        reason: Reason::HeldBack,
        detail: "the message may have been read before, and the stored order may be newer; `ingestor dead-letters replay` \
                 with this letter's number stores it all the same"
            .to_owned(),
    }
}

/// Stores an order whose message was read before, in the caller's transaction, unless the stored order may be newer. Returns
/// whether the order was written.
///
/// # Errors
/// Returns the database's error.
pub fn store_replayed(
    connection: &mut PgConnection,
    order: &Order,
    guard: &Guard,
    position: Position,
) -> QueryResult<bool> {
    let sourced = SourcedOrder {
        order,
        position,
        is_replay: true,
    };
    let written = store_orders(connection, guard, vec![sourced])?.written;
    notify(connection, &written)?;
    Ok(!written.is_empty())
}

/// Stores an order because an operator has decided so, whatever is stored. As after a write by the api, no message counts as
/// what wrote it.
///
/// # Errors
/// Returns the database's error.
pub fn store_by_decision(connection: &mut PgConnection, order: &Order) -> QueryResult<()> {
    UpsertOrders::new(&[NewOrder::new(order, None)]).execute(connection)?;
    events::notify(Operation::Upsert, [order.order_uid.as_str()])
        .execute(connection)
        .map(|_| ())
}

/// What [`store_orders`] did.
#[derive(Debug, Default)]
pub(super) struct Outcome<'a> {
    /// These were written.
    pub(super) written: Vec<SourcedOrder<'a>>,
    /// What is stored in the place of these differs from them and may be newer.
    held_back: Vec<SourcedOrder<'a>>,
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
) -> QueryResult<Outcome<'a>> {
    if latest.is_empty() {
        return Ok(Outcome::default());
    }
    let existing = lock_existing(connection, &latest)?;
    let mut held_back = Vec::new();
    let mut written = latest;
    written.retain(|order| {
        let verdict = match existing.get(order.uid()) {
            Some(written_by) if order.is_replay => guard.judge_replay(order.position, *written_by),
            _ => Verdict::Write,
        };
        if verdict == Verdict::HeldBack {
            held_back.push(*order);
        }
        verdict == Verdict::Write
    });
    let (existing, new): (Vec<_>, Vec<_>) =
        (written.iter()).partition(|order| existing.contains_key(order.uid()));
    let row = |order: &SourcedOrder<'a>| {
        NewOrder::new(order.order, Some(guard.source_at(order.offset())))
    };
    let to_copy: Vec<NewOrder<'_>> = new.into_iter().map(row).collect();
    let to_replace: Vec<NewOrder<'_>> = existing.into_iter().map(row).collect();
    if !to_copy.is_empty() {
        diesel::copy_from(orders::table)
            .from_insertable(&to_copy)
            .execute(connection)?;
    }
    if !to_replace.is_empty() {
        UpsertOrders::new(&to_replace).execute(connection)?;
    }
    retain_different(connection, &mut held_back)?;
    Ok(Outcome { written, held_back })
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

fn notify(connection: &mut PgConnection, written: &[SourcedOrder<'_>]) -> QueryResult<()> {
    if written.is_empty() {
        return Ok(());
    }
    events::notify(Operation::Upsert, written.iter().map(SourcedOrder::uid))
        .execute(connection)
        .map(|_| ())
}
