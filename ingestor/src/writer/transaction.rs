//! One batch, one transaction: offset, orders, items, dead letters, events.

use std::collections::HashMap;

use diesel::connection::DefaultLoadingMode;
use diesel::dsl::now;
use diesel::prelude::*;
use diesel::upsert::excluded;
use shared::db::models::{NewOrder, NewOrderItem};
use shared::db::orders::next_version;
use shared::db::schema::{order_items, orders};
use shared::events::{self, Operation};

use crate::batch::{Batch, SourcedOrder};
use crate::dead_letters::{self, Source};
use crate::failpoints::{self, Phase};
use crate::offsets::{self, Claim, Consumer};

/// Rows of one upsert: 30 columns each stay below the 65,535 binds of a statement.
const ROWS_PER_UPSERT: usize = 1_000;

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
        let partition = batch.reading.partition;
        let written = failpoints::skip_on_error(connection, |connection| {
            store_orders(connection, partition, batch.folded(), Guard::of(claim))
        })?;
        let source = Source {
            group_id: &consumer.group_id,
            topic: &consumer.topic,
            incarnation: claim.incarnation,
            partition,
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
    partition: i32,
    order: SourcedOrder<'_>,
    guard: Guard,
) -> QueryResult<bool> {
    let written = store_orders(connection, partition, vec![order], guard)?;
    notify(connection, &written)?;
    Ok(!written.is_empty())
}

/// Which messages must not replace what is newer. Every other one replaces what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Those below this offset were read before: they replace only what an earlier message of their partition wrote,
    /// not what a later one or a PUT has made.
    Below(i64),
    /// All of them, and their offsets are of a former topic: they write only what is not there.
    AbsentOnly,
}

impl Guard {
    /// The guard of a partition that may have been rewound.
    pub(super) fn of(claim: &Claim) -> Self {
        Self::Below(claim.replay_until.unwrap_or(0))
    }

    fn allows(self, partition: i32, order: &SourcedOrder<'_>, row: &RowSource) -> bool {
        let is_earlier = || {
            row.partition == Some(partition)
                && row.offset.is_some_and(|offset| offset < order.offset)
        };
        match self {
            Self::Below(end) => order.offset >= end || is_earlier(),
            Self::AbsentOnly => false,
        }
    }
}

/// Writes orders that are sorted by uid and named once each; answers those that it wrote.
///
/// New orders are copied; those that exist are locked first, so that nobody sees a new header with old items. One that
/// somebody inserts in between is a unique violation: the transaction is to be tried again, which gives its locks back; one
/// that is still held would be out of the order of uids, and could close a circle with another writer.
pub(super) fn store_orders<'a>(
    connection: &mut PgConnection,
    partition: i32,
    latest: Vec<SourcedOrder<'a>>,
    guard: Guard,
) -> QueryResult<Vec<SourcedOrder<'a>>> {
    if latest.is_empty() {
        return Ok(latest);
    }
    let existing = lock_existing(connection, &latest)?;
    let mut to_write = latest;
    to_write.retain(|order| {
        let row = existing.get(order.uid());
        row.is_none_or(|row| guard.allows(partition, order, row))
    });
    write(connection, partition, &to_write, |uid| {
        existing.contains_key(uid)
    })?;
    Ok(to_write)
}

/// Which message wrote an order last; none after a PUT.
struct RowSource {
    partition: Option<i32>,
    offset: Option<i64>,
}

fn lock_existing(
    connection: &mut PgConnection,
    orders: &[SourcedOrder<'_>],
) -> QueryResult<HashMap<String, RowSource>> {
    let uids: Vec<&str> = orders.iter().map(SourcedOrder::uid).collect();
    let rows = orders::table
        .filter(orders::order_uid.eq_any(uids))
        .select((
            orders::order_uid,
            orders::source_partition,
            orders::source_offset,
        ))
        .order(orders::order_uid)
        .for_update()
        .load_iter::<(String, Option<i32>, Option<i64>), DefaultLoadingMode>(connection)?;
    rows.map(|row| row.map(|(uid, partition, offset)| (uid, RowSource { partition, offset })))
        .collect()
}

fn write(
    connection: &mut PgConnection,
    partition: i32,
    latest: &[SourcedOrder<'_>],
    exists: impl Fn(&str) -> bool,
) -> QueryResult<()> {
    let (to_upsert, to_copy): (Vec<_>, Vec<_>) =
        latest.iter().partition(|order| exists(order.uid()));
    if !to_copy.is_empty() {
        diesel::copy_from(orders::table)
            .from_insertable(&new_rows(partition, &to_copy))
            .execute(connection)?;
    }
    if !to_upsert.is_empty() {
        for chunk in to_upsert.chunks(ROWS_PER_UPSERT) {
            upsert(connection, &new_rows(partition, chunk))?;
        }
        let uids: Vec<&str> = to_upsert.iter().map(|order| order.uid()).collect();
        diesel::delete(order_items::table.filter(order_items::order_uid.eq_any(uids)))
            .execute(connection)?;
    }
    let items_count = latest.iter().map(|order| order.order.items.len()).sum();
    let mut items: Vec<NewOrderItem<'_>> = Vec::with_capacity(items_count);
    items.extend(
        latest
            .iter()
            .flat_map(|order| NewOrderItem::all_of(order.order)),
    );
    if !items.is_empty() {
        diesel::copy_from(order_items::table)
            .from_insertable(&items)
            .execute(connection)?;
    }
    Ok(())
}

fn new_rows<'a>(partition: i32, orders: &[&SourcedOrder<'a>]) -> Vec<NewOrder<'a>> {
    let row =
        |order: &&SourcedOrder<'a>| NewOrder::new(order.order, Some((partition, order.offset)));
    orders.iter().map(row).collect()
}

/// Replaces rows, or inserts those that were deleted meanwhile.
fn upsert(connection: &mut PgConnection, rows: &[NewOrder<'_>]) -> QueryResult<()> {
    macro_rules! replaced {
        ($($column:ident),+ $(,)?) => {
            ($(orders::$column.eq(excluded(orders::$column)),)+ orders::version.eq(next_version()), orders::updated_at.eq(now))
        };
    }
    diesel::insert_into(orders::table)
        .values(rows)
        .on_conflict(orders::order_uid)
        .do_update()
        .set(replaced!(
            track_number,
            entry,
            delivery_name,
            delivery_phone,
            delivery_zip,
            delivery_city,
            delivery_address,
            delivery_region,
            delivery_email,
            payment_transaction,
            payment_request_id,
            payment_currency,
            payment_provider,
            payment_amount,
            payment_dt,
            payment_bank,
            payment_delivery_cost,
            payment_goods_total,
            payment_custom_fee,
            locale,
            internal_signature,
            customer_id,
            delivery_service,
            shardkey,
            sm_id,
            date_created,
            oof_shard,
            source_partition,
            source_offset,
        ))
        .execute(connection)
        .map(|_| ())
}

fn notify(connection: &mut PgConnection, written: &[SourcedOrder<'_>]) -> QueryResult<()> {
    if written.is_empty() {
        return Ok(());
    }
    events::notify(Operation::Upsert, written.iter().map(SourcedOrder::uid))
        .execute(connection)
        .map(|_| ())
}
