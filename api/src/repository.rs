//! The queries of this process, and what their failures mean to a client.
//!
//! The internal text of an error is logged here, once. No client sees it.

mod outage;
mod page;
mod session;
mod snapshot;
mod write;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use compact_str::CompactString;
use deadpool::managed::TimeoutType;
use diesel::dsl::{AsExprOf, sql};
use diesel::expression::{SqlLiteral, UncheckedBind};
use diesel::prelude::*;
use diesel::sql_types::{Bool, Text, Timestamptz};
use diesel_async::pooled_connection::deadpool::{Object, PoolError};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use parking_lot::Mutex;
use shared::db::AsyncPool;
use shared::db::models::{OrderRow, UnreadableOrder, VersionedOrder};
use shared::db::schema::orders;
use tracing::error;

use outage::OutageLog;
pub use page::OrderFilter;
use session::Session;
pub use snapshot::Snapshot;
pub use write::{Precondition, Versions, WriteError};

/// The name of the pool's sessions in `pg_stat_activity`.
pub const APPLICATION_NAME: &str = "orders-api";

/// The name of the sessions of exports in `pg_stat_activity`.
pub const EXPORT_APPLICATION_NAME: &str = "orders-api-export";

/// The smallest number of elements of an array that orders are read by.
///
/// Of an array that it does not know, PostgreSQL expects ten elements (`estimate_array_length` of its planner). A plan for
/// fewer would therefore look cheaper than the plan that it keeps, and every statement would be planned anew. Planning
/// costs as much as running the statement.
const MIN_ARRAY: usize = 10;

/// Finds the orders whose items are broken. A writer that bypasses the triggers can store such items, because constraints do
/// not look into them.
const FIND_BROKEN_ITEMS: &str = "SELECT order_uid, order_items_fault(items) FROM orders WHERE order_items_fault(items) IS NOT NULL";

/// A place in the list of orders, which has the newest order first: the order's `date_created` and its uid.
pub type Position = (DateTime<Utc>, String);

/// Why the database gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No connection became free in time.
    #[error("every database connection is busy")]
    Overloaded,
    /// The server cannot be reached, the connection broke, or the server takes no writes.
    #[error("the database is away")]
    Unavailable,
    /// The statement ran for as long as it may.
    #[error("the database took too long")]
    Timeout,
    /// A statement failed that must not fail, or an order cannot be read.
    #[error("an internal error")]
    Internal,
}

/// The orders in PostgreSQL.
#[derive(Clone)]
pub struct Repository {
    pool: AsyncPool,
    snapshot_pool: AsyncPool,
    statement_timeout: Duration,
    /// A connection that was made before this moment is not used any more.
    trusted_since: Arc<Mutex<Instant>>,
    outage_log: Arc<OutageLog>,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Repository").finish_non_exhaustive()
    }
}

impl Repository {
    /// Makes a repository of two pools, whose statements the server ends after `statement_timeout`.
    ///
    /// Snapshots have a pool of their own. They last for long, and must leave the other reads their connections.
    pub fn new(pool: AsyncPool, snapshot_pool: AsyncPool, statement_timeout: Duration) -> Self {
        Self {
            pool,
            snapshot_pool,
            statement_timeout,
            trusted_since: Arc::new(Mutex::new(Instant::now())),
            outage_log: Arc::default(),
        }
    }

    /// Drops every present connection: another server has taken over. Connections to the former server may still be up, but
    /// the events do not tell of what it holds.
    pub fn distrust_connections(&self) {
        let now = Instant::now();
        *self.trusted_since.lock() = now;
        for pool in [&self.pool, &self.snapshot_pool] {
            pool.retain(|_, metrics| metrics.created > now);
        }
    }

    /// Reads one order; gives `None` if it does not exist.
    ///
    /// # Errors
    /// Returns a [`StoreError`] if the database gave no answer or the order cannot be read.
    pub async fn find_order(&self, uid: &str) -> Result<Option<VersionedOrder>, StoreError> {
        self.find_orders(&[uid]).await?.remove(uid).transpose()
    }

    /// Reads those of the orders that exist, in one statement. An order that cannot be read is an error of its own.
    ///
    /// # Errors
    /// Returns a [`StoreError`] if the database gave no answer.
    pub async fn find_orders(
        &self,
        uids: &[&str],
    ) -> Result<HashMap<CompactString, Result<VersionedOrder, StoreError>>, StoreError> {
        let padding = uids.first().copied().unwrap_or_default();
        let mut padded = uids.to_vec();
        padded.resize(uids.len().max(MIN_ARRAY), padding);
        let query = orders::table
            .filter(orders::order_uid.eq_any(padded))
            .select(OrderRow::as_select());
        let rows: Vec<OrderRow> = self
            .run(async |connection| query.load(connection).await)
            .await?;
        let by_uid = |row: OrderRow| match VersionedOrder::try_from(row) {
            Ok(found) => (found.order.order_uid.as_str().into(), Ok(found)),
            Err(error) => (error.order_uid.as_str().into(), Err(unreadable(error))),
        };
        Ok(rows.into_iter().map(by_uid).collect())
    }

    /// Reads the versions of those of the orders that exist.
    ///
    /// # Errors
    /// Returns a [`StoreError`] if the database gave no answer.
    pub async fn find_versions(&self, uids: &[&str]) -> Result<HashMap<String, i64>, StoreError> {
        let query = orders::table
            .filter(orders::order_uid.eq_any(uids))
            .select((orders::order_uid, orders::version));
        let rows: Vec<(String, i64)> = self
            .run(async |connection| query.load(connection).await)
            .await?;
        Ok(rows.into_iter().collect())
    }

    /// Reads the positions of at most `limit` orders, newest first: those behind `after`, or the newest of all.
    ///
    /// # Errors
    /// Returns a [`StoreError`] if the database gave no answer.
    pub async fn newest_uids(
        &self,
        limit: usize,
        after: Option<&Position>,
    ) -> Result<Vec<Position>, StoreError> {
        let mut query = orders::table
            .select((orders::date_created, orders::order_uid))
            .order((orders::date_created.desc(), orders::order_uid.desc()))
            .limit(i64::try_from(limit).unwrap_or(i64::MAX))
            .into_boxed();
        if let Some(position) = after {
            query = query.filter(older_than(position));
        }
        self.run(async |connection| query.load(connection).await)
            .await
    }

    /// Asks the database for nothing but an answer.
    ///
    /// # Errors
    /// Returns a [`StoreError`] if there was none.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.select_bool("true").await.map(|_| ())
    }

    /// Returns whether the table and the sequence that this process needs exist.
    ///
    /// # Errors
    /// Returns a [`StoreError`] if the database gave no answer.
    pub async fn has_schema(&self) -> Result<bool, StoreError> {
        let present = "EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('orders') AND attname = 'items') \
                       AND to_regclass('order_version_seq') IS NOT NULL";
        self.select_bool(present).await
    }

    async fn select_bool(&self, expression: &'static str) -> Result<bool, StoreError> {
        let query = diesel::select(sql::<Bool>(expression));
        self.run(async |connection| query.get_result(connection).await)
            .await
    }

    /// Runs one statement on a connection of the pool.
    async fn run<T>(
        &self,
        statement: impl AsyncFnOnce(&mut AsyncPgConnection) -> QueryResult<T>,
    ) -> Result<T, StoreError> {
        let mut session = self.session(&self.pool).await?;
        session.run(1, statement).await
    }

    /// Takes a connection out of a pool.
    async fn session(&self, pool: &AsyncPool) -> Result<Session, StoreError> {
        loop {
            let connection = pool.get().await.map_err(|error| self.refusal(&error))?;
            if Object::metrics(&connection).created >= *self.trusted_since.lock() {
                return Ok(Session::new(connection, self.statement_timeout));
            }
            // It was in use when the connections were distrusted.
            drop(Object::take(connection));
        }
    }

    /// Says what it means that a pool gave no connection, and logs it.
    fn refusal(&self, error: &PoolError) -> StoreError {
        if let PoolError::Timeout(TimeoutType::Wait) = error {
            self.outage_log.warn(StoreError::Overloaded);
            return StoreError::Overloaded;
        }
        self.outage_log
            .warn(format_args!("cannot connect to the database: {error}"));
        StoreError::Unavailable
    }
}

/// Logs that an order cannot be read.
fn unreadable(error: UnreadableOrder) -> StoreError {
    error!(
        order.id = error.order_uid.as_str(),
        "{error}; to find all such orders: {FIND_BROKEN_ITEMS}"
    );
    StoreError::Internal
}

/// The rows behind a position. This is a comparison of rows: unlike the same condition with OR, it enters the index at the
/// right place.
fn older_than((date_created, order_uid): &Position) -> OlderThan {
    sql::<Bool>("(date_created, order_uid) < (")
        .bind::<Timestamptz, _>(*date_created)
        .sql(", ")
        .bind::<Text, _>(order_uid.clone())
        .sql(")")
}

type WithTime = UncheckedBind<SqlLiteral<Bool>, AsExprOf<DateTime<Utc>, Timestamptz>>;
type WithUid = UncheckedBind<SqlLiteral<Bool, WithTime>, AsExprOf<String, Text>>;
type OlderThan = SqlLiteral<Bool, WithUid>;
