//! One batch, one transaction: offset, orders, dead letters, events.

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
use crate::offsets::{self, Claim, Consumer};

/// Stores a batch whole or not at all; answers how many orders it wrote. `halts` stops the partition behind it.
///
/// # Errors
/// Fails as the database does; [`offsets::is_fence`] knows the refusal of a batch that is not ours to store. After an
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
        let source = dead_letters::Source {
            group_id: &consumer.group_id,
            topic: &consumer.topic,
            incarnation: origin.incarnation,
            partition: origin.partition,
        };
        let letters = failpoints::unless_swallowed(&batch.dead_letters);
        dead_letters::insert(connection, source, letters)?;
        notify(connection, &written)?;
        failpoints::reached(Phase::BeforeCommit);
        Ok(written.len())
    })
}

/// Stores an order whose message was read before, in the caller's transaction, unless something newer is there; says
/// whether it did.
///
/// # Errors
/// Fails as the database does.
pub fn store_replayed(
    connection: &mut PgConnection,
    order: &Order,
    source: Source,
) -> QueryResult<bool> {
    let origin = Origin {
        partition: source.partition,
        incarnation: source.incarnation,
        replay_until: i64::MAX,
    };
    let sourced = SourcedOrder {
        order,
        offset: source.offset,
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
    replay_until: i64,
}

impl Origin {
    /// The origin of a batch that was read under a claim.
    pub(super) fn of(claim: &Claim, batch: &Batch) -> Self {
        Self {
            partition: batch.reading.partition,
            incarnation: claim.incarnation,
            replay_until: claim.replay_until.unwrap_or(0),
        }
    }

    fn source(self, offset: i64) -> Source {
        Source {
            partition: self.partition,
            incarnation: self.incarnation,
            offset,
        }
    }

    /// The guard: a replay replaces only what an earlier message of its partition wrote, neither what a later one wrote
    /// nor what the api did.
    fn may_replace(self, offset: i64, written_by: Option<Source>) -> bool {
        let is_earlier = |row: Source| {
            row.partition == self.partition
                && (row.incarnation, row.offset) < (self.incarnation, offset)
        };
        offset >= self.replay_until || written_by.is_some_and(is_earlier)
    }
}

/// Writes orders that are sorted by uid and named once each; answers those that it wrote.
///
/// Orders that exist are locked first, in the order of their uids, and replaced by one statement; new ones are copied. If
/// another writer inserts one of these in between, that is a unique violation: the whole transaction must be tried again.
/// A second look within it would lock rows out of the order of uids, which can deadlock with another writer.
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
    let (mut to_replace, mut to_copy) = (Vec::new(), Vec::with_capacity(written.len()));
    for order in &written {
        let rows = if existing.contains_key(order.uid()) {
            &mut to_replace
        } else {
            &mut to_copy
        };
        let source = origin.source(order.offset);
        rows.push(NewOrder::new(order.order, Some(source)));
    }
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

/// Locks those of the orders that exist; gives the message that wrote each last, `None` after a write by the api.
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
            replay_until: 10,
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
                origin.may_replace(5, written_by),
                is_replaced,
                "{written_by:?}"
            );
            assert!(origin.may_replace(10, written_by), "{written_by:?}");
        }
    }
}
