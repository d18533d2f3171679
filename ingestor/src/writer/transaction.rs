//! One batch is one transaction: it advances the offset, writes orders and dead letters, and emits the events.

use std::collections::HashMap;

use diesel::connection::DefaultLoadingMode;
use diesel::prelude::*;
use shared::db::models::{NewOrder, Source};
use shared::db::orders::UpsertOrders;
use shared::db::schema::orders;
use shared::events::{self, Operation};
use shared::order::Order;

use crate::batch::{Batch, SourcedOrder};
use crate::dead_letters;
use crate::failpoints::{self, Phase};
use crate::offsets::{self, Claim};
use crate::record::{Consumer, Offset};

/// Stores a batch whole or not at all, and returns how many orders it wrote. `halts` stops the partition after it.
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
) -> QueryResult<usize> {
    connection.transaction(|connection| {
        failpoints::open_fence(connection, consumer, claim.epoch, batch)?;
        offsets::advance(connection, consumer, claim, batch, halts)?;
        failpoints::commit_offset(connection)?;
        let origin = Origin::of(claim, batch);
        let written = failpoints::skip_on_error(connection, |connection| {
            store_orders(connection, origin, batch.folded())
        })?;
        let letters = failpoints::unless_swallowed(&batch.dead_letters);
        let partition = batch.reading.partition;
        dead_letters::insert(connection, consumer, partition, claim.incarnation, letters)?;
        notify(connection, &written)?;
        failpoints::reached(Phase::BeforeCommit);
        Ok(written.len())
    })
}

/// Stores an order whose message was read before, in the caller's transaction, unless the stored order is newer. Returns
/// whether the order was written.
///
/// # Errors
/// Returns the database's error.
pub fn store_replayed(
    connection: &mut PgConnection,
    order: &Order,
    source: Source,
) -> QueryResult<bool> {
    let origin = Origin {
        partition: source.partition,
        incarnation: source.incarnation,
        replay_until: Offset(i64::MAX),
    };
    let sourced = SourcedOrder {
        order,
        offset: Offset(source.offset),
    };
    let written = store_orders(connection, origin, vec![sourced])?;
    notify(connection, &written)?;
    Ok(!written.is_empty())
}

/// Where the messages of a batch come from, and which of them may have been read before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    partition: i32,
    incarnation: i32,
    /// Messages below this offset are a replay.
    replay_until: Offset,
}

impl Origin {
    /// The origin of a batch that was read under a claim.
    pub(super) fn of(claim: &Claim, batch: &Batch) -> Self {
        Self {
            partition: batch.reading.partition.0,
            incarnation: claim.incarnation.0,
            replay_until: claim.replay_until.unwrap_or(Offset(0)),
        }
    }

    fn source(self, offset: Offset) -> Source {
        Source {
            partition: self.partition,
            incarnation: self.incarnation,
            offset: offset.0,
        }
    }

    /// The guard: a replay replaces only what an earlier message of its partition wrote. It replaces neither what a later
    /// message nor what the api wrote.
    fn may_replace(self, offset: Offset, written_by: Option<Source>) -> bool {
        let is_earlier = |row: Source| {
            row.partition == self.partition
                && (row.incarnation, row.offset) < (self.incarnation, offset.0)
        };
        offset >= self.replay_until || written_by.is_some_and(is_earlier)
    }
}

/// Writes orders that are sorted by uid, each with a different uid. Returns those that it wrote.
///
/// Orders that exist are locked first, in the order of their uids, and replaced by one statement. New ones are copied. If
/// another writer inserts one of the new orders meanwhile, that is a unique violation, and the whole transaction must be
/// retried. A second look within the transaction would lock rows out of order, which can deadlock with another writer.
pub(super) fn store_orders<'a>(
    connection: &mut PgConnection,
    origin: Origin,
    latest: Vec<SourcedOrder<'a>>,
) -> QueryResult<Vec<SourcedOrder<'a>>> {
    if latest.is_empty() {
        return Ok(latest);
    }
    let existing = lock_existing(connection, &latest)?;
    let mut written = latest;
    written.retain(|order| {
        let row = existing.get(order.uid());
        row.is_none_or(|written_by| origin.may_replace(order.offset, *written_by))
    });
    let (existing, new): (Vec<_>, Vec<_>) =
        (written.iter()).partition(|order| existing.contains_key(order.uid()));
    let row =
        |order: &SourcedOrder<'a>| NewOrder::new(order.order, Some(origin.source(order.offset)));
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
    Ok(written)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_replaces_only_what_an_earlier_message_of_its_partition_wrote() {
        let origin = Origin {
            partition: 0,
            incarnation: 1,
            replay_until: Offset(10),
        };
        let row = |partition, incarnation, offset| {
            Some(Source {
                partition,
                incarnation,
                offset,
            })
        };
        for (written_by, is_replaced) in [
            (row(0, 1, 4), true),
            (row(0, 1, 5), false),
            (row(0, 1, 6), false),
            (row(0, 0, 100), true),
            (row(0, 2, 0), false),
            (row(1, 0, 0), false),
            (None, false),
        ] {
            assert_eq!(
                origin.may_replace(Offset(5), written_by),
                is_replaced,
                "{written_by:?}"
            );
            let is_first_reading = origin.may_replace(Offset(10), written_by);
            assert!(is_first_reading, "{written_by:?}");
        }
    }
}
