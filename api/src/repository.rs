//! The queries of this process, and what their failures mean to a client.
//!
//! The internal text of an error is logged here, once. No client sees it.

mod explain;
mod filter;
mod listed;
mod outage;
mod page;
mod revision;
mod rights;
mod session;
mod snapshot;
mod total;
mod trust;
mod write;

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use compact_str::CompactString;
use deadpool::managed::{Object, PoolError, TimeoutType};
use diesel::dsl::{AsExprOf, sql};
use diesel::expression::{SqlLiteral, UncheckedBind};
use diesel::prelude::*;
use diesel::sql_types::{Bool, Text, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use futures_util::TryStreamExt;
use shared::db::models::{OrderRow, UnreadableOrder, VersionedOrder};
use shared::db::schema::orders;
use shared::db::{AsyncPool, HistoryId, SessionError};
use shared::traces;
use tracing::{error, warn};

pub use filter::OrderFilter;
pub use listed::{Content, ListedOrder, OrderSummary, View};
use outage::OutageLog;
pub use revision::Revision;
use session::Session;
pub use snapshot::Snapshot;
pub use total::TotalKind;
use trust::Trust;
pub use write::{Edited, Effect, Precondition, Revisions, WriteError, Written};

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

/// The name of reads in traces.
const SELECT: &str = "SELECT orders";

/// A place in the list of orders, which has the newest order first: the order's `date_created` and its uid.
pub type Position = (DateTime<Utc>, String);

/// Why the database gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No connection became free in time.
    #[error("every database connection is busy")]
    Overloaded,
    /// The server cannot be reached, or the connection broke.
    #[error("the database is away")]
    Unavailable,
    /// The server, or this role, may not write.
    #[error("the database accepts no writes")]
    ReadOnly,
    /// The role lacks a right that a write needs.
    #[error("the database role may not write")]
    Forbidden,
    /// The statement ran for as long as it may.
    #[error("the database took too long")]
    Timeout,
    /// A statement failed that must not fail, or an order cannot be read.
    #[error("an internal error")]
    Internal,
}

/// What the database answered, and the history of that database.
#[derive(Debug)]
pub struct Answered<T> {
    /// What was asked for.
    pub content: T,
    /// The history of the server's content when the session began.
    pub history: HistoryId,
}

impl<T> Answered<T> {
    fn map<U>(self, change: impl FnOnce(T) -> U) -> Answered<U> {
        self.with_history(|_, content| change(content))
    }

    /// Changes what was asked for. The history stays the same.
    pub fn with_history<U>(self, change: impl FnOnce(HistoryId, T) -> U) -> Answered<U> {
        Answered {
            content: change(self.history, self.content),
            history: self.history,
        }
    }
}

/// How much the pool of connections is used.
#[derive(Clone, Copy, Debug)]
pub struct PoolUse {
    /// Connections in use.
    pub busy: usize,
    /// Open connections that are free.
    pub idle: usize,
    /// The most connections.
    pub max: usize,
    /// Reads and writes that wait for a connection.
    pub waiting: usize,
}

/// Orders by uid. An order that cannot be read is an error of its own.
pub type OrdersByUid = HashMap<CompactString, Result<VersionedOrder, StoreError>>;

/// The orders in PostgreSQL.
#[derive(Clone)]
pub struct Repository {
    pool: AsyncPool,
    snapshot_pool: AsyncPool,
    statement_timeout: Duration,
    trust: Arc<Trust>,
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
            trust: Arc::new(Trust::new()),
            outage_log: Arc::default(),
        }
    }

    /// Returns how much the pool is used, besides exports.
    pub fn pool_use(&self) -> PoolUse {
        let status = self.pool.status();
        let idle = status.available.min(status.size);
        PoolUse {
            busy: status.size - idle,
            idle,
            max: status.max_size,
            waiting: status.waiting,
        }
    }

    /// Drops every present connection: another server has taken over, or the schema has changed. Connections to the former
    /// server may still be up, but the events do not tell of what it holds.
    pub fn distrust_connections(&self) {
        let since = self.trust.distrust();
        for pool in [&self.pool, &self.snapshot_pool] {
            pool.retain(|_, metrics| metrics.created >= since);
        }
    }

    /// Notes which history the listener hears of; `None` if it hears nothing.
    pub fn set_heard_history(&self, history: Option<HistoryId>) {
        self.trust.set_heard(history);
    }

    /// Ends when a connection has reached a server with another history than the listener hears of. That connection is
    /// dropped after its use.
    pub async fn history_mismatch(&self) {
        self.trust.mismatch().await;
    }

    /// Reads one order; gives `None` if it does not exist.
    ///
    /// # Errors
    /// Returns a [`StoreError`] if the database gave no answer or the order cannot be read.
    pub async fn find_order(
        &self,
        uid: &str,
    ) -> Result<Answered<Option<VersionedOrder>>, StoreError> {
        let mut found = self.find_orders(&[uid]).await?;
        let order = found.content.remove(uid).transpose()?;
        Ok(found.map(|_| order))
    }

    /// Reads those of the orders that exist, in one statement.
    ///
    /// # Errors
    /// Returns a [`StoreError`] if the database gave no answer.
    pub async fn find_orders(&self, uids: &[&str]) -> Result<Answered<OrdersByUid>, StoreError> {
        let mut content = OrdersByUid::new();
        let insert = |uid, found: Answered<_>| {
            content.insert(uid, found.content);
            ControlFlow::Continue(())
        };
        let history = self.each_order(uids, insert).await?;
        Ok(Answered { content, history })
    }

    /// Reads those of the orders that exist, in one statement. Gives each to `take` when it arrives, until `take` breaks. So
    /// only one order at a time has to be in memory. Returns the history that all of them belong to.
    ///
    /// # Errors
    /// Returns a [`StoreError`] if the database gave no answer. `take` may have got some of the orders.
    pub async fn each_order(
        &self,
        uids: &[&str],
        mut take: impl FnMut(
            CompactString,
            Answered<Result<VersionedOrder, StoreError>>,
        ) -> ControlFlow<()>,
    ) -> Result<HistoryId, StoreError> {
        let padding = uids.first().copied().unwrap_or_default();
        let mut padded = uids.to_vec();
        padded.resize(uids.len().max(MIN_ARRAY), padding);
        let query = orders::table
            .filter(orders::order_uid.eq_any(padded))
            .select(OrderRow::as_select());
        let mut session = self.session(&self.pool).await?;
        let history = session.history();
        let read = async |connection: &mut _| {
            let mut rows = query.load_stream::<OrderRow>(connection).await?;
            while let Some(row) = rows.try_next().await? {
                let (uid, content) = match VersionedOrder::try_from(row) {
                    Ok(found) => (found.order.order_uid.as_str().into(), Ok(found)),
                    Err(error) => (error.order_uid.as_str().into(), Err(unreadable(error))),
                };
                if take(uid, Answered { content, history }).is_break() {
                    break;
                }
            }
            Ok(())
        };
        session.run(SELECT, 1, read).await?;
        Ok(history)
    }

    /// Reads the versions of those of the orders that exist.
    ///
    /// # Errors
    /// Returns a [`StoreError`] if the database gave no answer.
    pub async fn find_versions(
        &self,
        uids: &[&str],
    ) -> Result<Answered<HashMap<String, i64>>, StoreError> {
        let query = orders::table
            .filter(orders::order_uid.eq_any(uids))
            .select((orders::order_uid, orders::version));
        let rows: Answered<Vec<(String, i64)>> = self
            .ask(async |connection| query.load(connection).await)
            .await?;
        Ok(rows.map(|rows| rows.into_iter().collect()))
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

    /// Asks the database whether it accepts writes. A connection on which it does not is not used again: its role may have
    /// been read-only only when the connection was made.
    ///
    /// # Errors
    /// Returns a [`StoreError`] if there was no answer.
    pub async fn accepts_writes(&self) -> Result<bool, StoreError> {
        let mut session = self.session(&self.pool).await?;
        let accepts = sql::<Bool>("current_setting('transaction_read_only') = 'off'");
        let query = diesel::select(accepts);
        let accepts: bool = session
            .run("SHOW", 1, async |connection| {
                query.get_result(connection).await
            })
            .await?;
        if !accepts {
            session.close();
        }
        Ok(accepts)
    }

    /// Returns whether the tables and the sequence that this process needs exist.
    ///
    /// # Errors
    /// Returns a [`StoreError`] if the database gave no answer.
    pub async fn has_schema(&self) -> Result<bool, StoreError> {
        let present = "EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('orders') AND attname = 'items') \
                       AND to_regclass('order_version_seq') IS NOT NULL AND to_regclass('service_history') IS NOT NULL";
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
        Ok(self.ask(statement).await?.content)
    }

    /// Does the same, and says whose answer it is.
    async fn ask<T>(
        &self,
        statement: impl AsyncFnOnce(&mut AsyncPgConnection) -> QueryResult<T>,
    ) -> Result<Answered<T>, StoreError> {
        let mut session = self.session(&self.pool).await?;
        let history = session.history();
        let content = session.run(SELECT, 1, statement).await?;
        Ok(Answered { content, history })
    }

    /// Takes a connection out of a pool. It may have another history than the listener hears of: any primary may answer a
    /// read, but nothing that it answers is stored.
    async fn session(&self, pool: &AsyncPool) -> Result<Session, StoreError> {
        loop {
            let waiting = traces::part("wait for a connection");
            let connection = pool.get().await.map_err(|error| self.refusal(&error))?;
            drop(waiting);
            if !self.trust.is_trusted(Object::metrics(&connection).created) {
                // It was in use when the connections were distrusted.
                drop(Object::take(connection));
                continue;
            }
            let session = Session::new(connection, self.statement_timeout);
            if self.trust.is_foreign(session.history()) {
                warn!("the pool has reached a server with another history than the listener's");
                self.distrust_connections();
                self.trust.report_mismatch();
            }
            return Ok(session);
        }
    }

    /// Says what it means that a pool gave no connection, and logs it.
    fn refusal(&self, error: &PoolError<SessionError>) -> StoreError {
        if let PoolError::Timeout(TimeoutType::Wait) = error {
            self.outage_log.warn(StoreError::Overloaded);
            return StoreError::Overloaded;
        }
        let reason: &dyn Display = match error {
            // The text of the pool's own error only adds that a connection was made.
            PoolError::Backend(reason) => reason,
            _ => error,
        };
        self.outage_log
            .warn(format_args!("cannot connect to the database: {reason}"));
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
