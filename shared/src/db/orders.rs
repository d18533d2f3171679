//! The statement with which both processes replace orders.
//!
//! One order is one row, so one statement writes it whole. Every writer first locks the rows that it will change, in the
//! order of their uids.

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Integer, Jsonb, Nullable, Text, Timestamptz};

use super::models::{ItemsToStore, NewOrder};

/// Defines [`UpsertOrders`] for the columns of [`NewOrder`], with their Rust and SQL types.
macro_rules! upsert_orders {
    ($($column:ident: $value:ty => $sql_type:ty),+ $(,)?) => {
        /// Replaces orders, or inserts those that do not exist. Returns the new version of each.
        ///
        /// The rows travel as one array per column, so the text of the statement does not depend on their number and the
        /// server plans it once per session. diesel's own upsert is planned anew each time.
        ///
        /// `SET` draws the version while the row is locked. A value from `EXCLUDED` or from a subquery is drawn before the
        /// lock, and such versions were seen to go backwards.
        #[derive(Debug)]
        pub struct UpsertOrders<'a> {
            $($column: Vec<$value>),+
        }

        impl<'a> UpsertOrders<'a> {
            /// Takes rows with a different uid each.
            pub fn new(rows: &[NewOrder<'a>]) -> Self {
                Self { $($column: rows.iter().map(|row| row.$column).collect()),+ }
            }
        }

        impl QueryFragment<Pg> for UpsertOrders<'_> {
            fn walk_ast<'b>(&'b self, mut pass: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
                let columns = [$(stringify!($column)),+];
                pass.push_sql("INSERT INTO orders (");
                pass.push_sql(&columns.join(", "));
                pass.push_sql(") SELECT * FROM unnest(");
                $(
                    if stringify!($column) != columns[0] {
                        pass.push_sql(", ");
                    }
                    pass.push_bind_param::<Array<$sql_type>, _>(&self.$column)?;
                )+
                pass.push_sql(") ON CONFLICT (order_uid) DO UPDATE SET ");
                for column in columns {
                    pass.push_sql(column);
                    pass.push_sql(" = excluded.");
                    pass.push_sql(column);
                    pass.push_sql(", ");
                }
                pass.push_sql("version = nextval('order_version_seq'), updated_at = now() RETURNING version");
                Ok(())
            }
        }
    };
}

upsert_orders! {
    order_uid: &'a str => Text,
    track_number: &'a str => Text,
    entry: &'a str => Text,
    delivery_name: &'a str => Text,
    delivery_phone: &'a str => Text,
    delivery_zip: &'a str => Text,
    delivery_city: &'a str => Text,
    delivery_address: &'a str => Text,
    delivery_region: &'a str => Text,
    delivery_email: &'a str => Text,
    payment_transaction: &'a str => Text,
    payment_request_id: &'a str => Text,
    payment_currency: &'a str => Text,
    payment_provider: &'a str => Text,
    payment_amount: i64 => BigInt,
    payment_dt: i64 => BigInt,
    payment_bank: &'a str => Text,
    payment_delivery_cost: i64 => BigInt,
    payment_goods_total: i64 => BigInt,
    payment_custom_fee: i64 => BigInt,
    items: ItemsToStore<'a> => Jsonb,
    locale: &'a str => Text,
    internal_signature: &'a str => Text,
    customer_id: &'a str => Text,
    delivery_service: &'a str => Text,
    shardkey: &'a str => Text,
    sm_id: i64 => BigInt,
    date_created: DateTime<Utc> => Timestamptz,
    oof_shard: &'a str => Text,
    source_partition: Option<i32> => Nullable<Integer>,
    source_offset: Option<i64> => Nullable<BigInt>,
    source_incarnation: Option<i32> => Nullable<Integer>,
}

impl QueryId for UpsertOrders<'_> {
    type QueryId = UpsertOrders<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl Query for UpsertOrders<'_> {
    type SqlType = BigInt;
}

impl RunQueryDsl<PgConnection> for UpsertOrders<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upserts_are_planned_once_per_session() {
        let may_be_kept = UpsertOrders::new(&[]).is_safe_to_cache_prepared(&Pg);
        assert_eq!(may_be_kept, Ok(true));
    }
}
