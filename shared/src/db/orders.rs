//! The queries on orders that both processes use.
//!
//! Every read is one statement, so header and items come from one snapshot. Every writer locks the `orders` rows
//! first, sorted by uid, then touches items in further statements.

use diesel::dsl::sql;
use diesel::expression::SqlLiteral;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Integer, Record, Text};

use super::models::{ItemRow, OrderRow};

/// An item as a composite value.
pub type ItemRecord = Record<(
    BigInt,
    Text,
    BigInt,
    Text,
    Text,
    Integer,
    Text,
    BigInt,
    BigInt,
    Text,
    BigInt,
)>;

/// An order's row with its items as one array; load it as [`OrderWithItems`].
pub type SelectOrder = (
    diesel::dsl::AsSelect<OrderRow, diesel::pg::Pg>,
    SqlLiteral<Array<ItemRecord>>,
);

/// What [`select_order`] loads; turns into a [`VersionedOrder`](super::models::VersionedOrder).
pub type OrderWithItems = (OrderRow, Vec<ItemRow>);

/// What to select from `orders` to read whole orders.
pub fn select_order() -> SelectOrder {
    let items = sql(
        "ARRAY(SELECT (chrt_id, track_number, price, rid, name, sale, size, total_price, nm_id, brand, status) \
         FROM order_items WHERE order_items.order_uid = orders.order_uid ORDER BY position)",
    );
    (OrderRow::as_select(), items)
}

/// The next version of an order, for `SET version = ...`.
///
/// Drawn while the row is locked: a value from EXCLUDED or from a subquery is drawn before the lock and was seen to go
/// backwards.
pub fn next_version() -> SqlLiteral<BigInt> {
    sql("nextval('order_version_seq')")
}
