//! One batch, one transaction: offset, orders, items, dead letters, events.

use std::collections::HashSet;

use diesel::dsl::now;
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::sql_types::{Array, Text};
use diesel::upsert::excluded;
use shared::db::models::{NewOrder, NewOrderItem};
use shared::db::orders::next_version;
use shared::db::schema::{order_items, orders};
use shared::events::{self, Operation};

use crate::batch::{Batch, IncomingOrder};
use crate::dead_letters::{self, Source};
use crate::offsets::{self, Claim, Consumer};

/// Rows of one upsert: 30 columns each stay below the 65,535 binds of a statement.
const ROWS_PER_UPSERT: usize = 1_000;

/// Stores a batch whole or not at all.
///
/// # Errors
/// Fails as the database does; [`offsets::is_fence`] knows the refusal of a batch that is not ours to store. After any
/// other error the outcome is unknown.
pub(super) fn store(
    connection: &mut PgConnection,
    consumer: &Consumer,
    claim: &Claim,
    batch: &Batch,
) -> QueryResult<()> {
    connection.transaction(|connection| {
        offsets::advance(connection, consumer, claim, batch)?;
        let latest = batch.folded();
        store_orders(connection, batch.reading.partition, &latest)?;
        let source = Source {
            group_id: &consumer.group_id,
            topic: &consumer.topic,
            incarnation: claim.incarnation,
            partition: batch.reading.partition,
        };
        dead_letters::insert(connection, source, &batch.dead_letters)?;
        notify(connection, &latest)
    })
}

/// Writes orders that are sorted by uid and named once each.
///
/// New orders are copied; those that exist are locked first, so that nobody sees a new header with old items.
fn store_orders(
    connection: &mut PgConnection,
    partition: i32,
    latest: &[&IncomingOrder],
) -> QueryResult<()> {
    if latest.is_empty() {
        return Ok(());
    }
    let uids: Vec<&str> = latest
        .iter()
        .map(|incoming| incoming.order.order_uid.as_str())
        .collect();
    let existing: HashSet<String> = orders::table
        .filter(orders::order_uid.eq_any(&uids))
        .select(orders::order_uid)
        .order(orders::order_uid)
        .for_update()
        .load_iter::<String, diesel::connection::DefaultLoadingMode>(connection)?
        .collect::<QueryResult<_>>()?;
    // A nested transaction is a savepoint.
    let copied =
        connection.transaction(|connection| write(connection, partition, latest, &existing));
    match copied {
        Err(DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => {
            // Somebody has inserted one of them since we looked: take all for existing.
            let all = uids.into_iter().map(str::to_owned).collect();
            write(connection, partition, latest, &all)
        }
        outcome => outcome,
    }
}

fn write(
    connection: &mut PgConnection,
    partition: i32,
    latest: &[&IncomingOrder],
    existing: &HashSet<String>,
) -> QueryResult<()> {
    let rows = latest
        .iter()
        .map(|incoming| NewOrder::new(&incoming.order, Some((partition, incoming.offset))));
    let (to_upsert, to_copy): (Vec<_>, Vec<_>) = rows
        .zip(latest)
        .partition(|(_, incoming)| existing.contains(incoming.order.order_uid.as_str()));
    if !to_copy.is_empty() {
        let to_copy: Vec<NewOrder<'_>> = to_copy.into_iter().map(|(row, _)| row).collect();
        diesel::copy_from(orders::table)
            .from_insertable(&to_copy)
            .execute(connection)?;
    }
    if !to_upsert.is_empty() {
        for chunk in to_upsert.chunks(ROWS_PER_UPSERT) {
            let rows: Vec<NewOrder<'_>> = chunk.iter().map(|(row, _)| *row).collect();
            upsert(connection, &rows)?;
        }
        let uids: Vec<&str> = to_upsert
            .iter()
            .map(|(_, incoming)| incoming.order.order_uid.as_str())
            .collect();
        diesel::delete(order_items::table.filter(order_items::order_uid.eq_any(uids)))
            .execute(connection)?;
    }
    let items: Vec<NewOrderItem<'_>> = latest
        .iter()
        .flat_map(|incoming| NewOrderItem::all_of(&incoming.order))
        .collect();
    diesel::copy_from(order_items::table)
        .from_insertable(&items)
        .execute(connection)?;
    Ok(())
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

fn notify(connection: &mut PgConnection, latest: &[&IncomingOrder]) -> QueryResult<()> {
    let payloads = events::encode(
        Operation::Upsert,
        latest
            .iter()
            .map(|incoming| incoming.order.order_uid.as_str()),
    );
    if payloads.is_empty() {
        return Ok(());
    }
    diesel::sql_query("SELECT pg_notify($1, payload) FROM unnest($2) AS payload")
        .bind::<Text, _>(events::CHANNEL)
        .bind::<Array<Text>, _>(payloads)
        .execute(connection)
        .map(|_| ())
}
