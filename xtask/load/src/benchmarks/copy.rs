//! Rows for the table of orders, written with COPY.

use diesel::prelude::*;
use shared::db::models::{NewOrder, Source};
use shared::db::schema::orders;
use shared::order::Order;

/// The rows of one transaction.
pub(super) struct Chunk<'a>(Vec<NewOrder<'a>>);

impl<'a> Chunk<'a> {
    /// Makes rows that look as if the ingestor had written them.
    pub(super) fn from_kafka(orders: &'a [Order]) -> Self {
        let source = Source {
            partition: 0,
            incarnation: 0,
            offset: 0,
        };
        Self::new(orders, Some(source))
    }

    /// Makes rows that look as if the api had written them.
    pub(super) fn from_api(orders: &'a [Order]) -> Self {
        Self::new(orders, None)
    }

    fn new(orders: &'a [Order], source: Option<Source>) -> Self {
        let rows = orders.iter().map(|order| NewOrder::new(order, source));
        Self(rows.collect())
    }

    /// Writes the rows in one transaction.
    pub(super) fn copy(&self, connection: &mut PgConnection) -> QueryResult<()> {
        connection.transaction(|connection| {
            diesel::copy_from(orders::table)
                .from_insertable(&self.0)
                .execute(connection)
        })?;
        Ok(())
    }
}
