//! The queries on orders that both processes use.
//!
//! Every read is one statement, so header and items come from one snapshot. Every writer locks the `orders` rows
//! first, sorted by uid, then touches items in further statements.

use diesel::dsl::sql;
use diesel::expression::{SqlLiteral, ValidGrouping};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Integer, Record, Text};

use super::models::{ItemRow, OrderRow};
use super::schema::orders;

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
pub type SelectOrder = (diesel::dsl::AsSelect<OrderRow, Pg>, ItemsOfOrder);

/// What [`select_order`] loads; turns into a [`VersionedOrder`](super::models::VersionedOrder).
pub type OrderWithItems = (OrderRow, Vec<ItemRow>);

/// What to select from `orders` to read whole orders.
pub fn select_order() -> SelectOrder {
    (OrderRow::as_select(), ItemsOfOrder)
}

/// The items of an order of `orders`, in their order. No `sql()`: diesel prepares a query with such a part anew each
/// time.
#[derive(Clone, Copy, Debug, QueryId, ValidGrouping)]
pub struct ItemsOfOrder;

impl Expression for ItemsOfOrder {
    type SqlType = Array<ItemRecord>;
}

impl AppearsOnTable<orders::table> for ItemsOfOrder {}
impl SelectableExpression<orders::table> for ItemsOfOrder {}

impl QueryFragment<Pg> for ItemsOfOrder {
    fn walk_ast<'b>(&'b self, mut pass: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        pass.push_sql(
            "ARRAY(SELECT (chrt_id, track_number, price, rid, name, sale, size, total_price, nm_id, brand, status) \
             FROM order_items WHERE order_items.order_uid = orders.order_uid ORDER BY position)",
        );
        Ok(())
    }
}

/// The next version of an order, for `SET version = ...`.
///
/// Drawn while the row is locked: a value from EXCLUDED or from a subquery is drawn before the lock and was seen to go
/// backwards.
pub fn next_version() -> SqlLiteral<BigInt> {
    sql("nextval('order_version_seq')")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_an_order_is_prepared_once() {
        let query = orders::table.find("a").select(select_order());
        let may_be_kept = QueryFragment::<Pg>::is_safe_to_cache_prepared(&query, &Pg);
        assert_eq!(may_be_kept, Ok(true));
    }
}
