//! The queries of this process, and what their failures mean to a client.
//!
//! Internal texts of errors are logged here, once, and go no further.
//!
//! diesel hides SQLSTATEs and the server's texts are in the server's language, so failures are told apart by what does
//! not depend on either: the pool's own errors, diesel's kinds, whether the connection broke, and, for the statement
//! time-out (57014), whether the statement had run for as long as it may.

mod outage;
mod page;
mod snapshot;
mod write;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use compact_str::CompactString;
use deadpool_types::{Object, PoolError, TimeoutType};
use diesel::dsl::{AsExprOf, sql};
use diesel::expression::{SqlLiteral, UncheckedBind};
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::sql_types::{Bool, Text, Timestamptz};
use diesel_async::pooled_connection::PoolableConnection;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use shared::db::AsyncPool;
use shared::db::models::{OrderRow, VersionedOrder};
use shared::db::schema::orders;
use tracing::{error, warn};

use outage::OutageLog;
pub use page::OrderFilter;
pub use snapshot::Snapshot;
pub use write::{Precondition, Versions, WriteError};

mod deadpool_types {
    pub(super) use deadpool::managed::TimeoutType;
    pub(super) use diesel_async::pooled_connection::deadpool::{Object, PoolError};
}

/// The name of the pool's sessions in `pg_stat_activity`.
pub const APPLICATION_NAME: &str = "orders-api";

/// The name of the sessions of exports.
pub const EXPORT_APPLICATION_NAME: &str = "orders-api-export";

/// How much longer than the server's own limit an answer is waited for: beyond it the server hangs.
const ANSWER_GRACE: Duration = Duration::from_secs(1);

/// Fewest elements of an array that orders are read by. Of an unknown array PostgreSQL expects ten
/// (`estimate_array_length` of its planner), so that a plan for fewer would look cheaper than the one that it keeps, and
/// every statement would be planned anew, which costs as much as running it.
const MIN_ARRAY: usize = 10;

/// Finds the orders whose items a writer has broken that bypassed the triggers: constraints do not look into the items.
const FIND_BROKEN_ITEMS: &str = "SELECT order_uid, order_items_fault(items) FROM orders WHERE order_items_fault(items) IS NOT NULL";

/// A place in the list of orders, newest first.
pub type Position = (DateTime<Utc>, String);

/// Why the database gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Every connection was busy for too long.
    #[error("every database connection is busy")]
    Overloaded,
    /// Nobody answers, or the connection broke.
    #[error("the database is away")]
    Unavailable,
    /// The statement ran for as long as it may.
    #[error("the database took too long")]
    Timeout,
    /// Something that should not happen.
    #[error("an internal error")]
    Internal,
}

/// Orders in PostgreSQL.
#[derive(Clone)]
pub struct Repository {
    pool: AsyncPool,
    snapshot_pool: AsyncPool,
    statement_timeout: Duration,
    /// Connections made before this are used no more.
    trusted_since: Arc<Mutex<Instant>>,
    outage_log: Arc<OutageLog>,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Repository").finish_non_exhaustive()
    }
}

impl Repository {
    /// Reads by pools whose statements end after `statement_timeout`. Snapshots have one of their own: they last, and must
    /// leave the others their connections.
    pub fn new(pool: AsyncPool, snapshot_pool: AsyncPool, statement_timeout: Duration) -> Self {
        Self {
            pool,
            snapshot_pool,
            statement_timeout,
            trusted_since: Arc::new(Mutex::new(Instant::now())),
            outage_log: Arc::default(),
        }
    }

    /// Another server has taken over: connections to the one before may still be up, and what it answers is not what the
    /// events tell of.
    pub fn distrust_connections(&self) {
        let now = Instant::now();
        *lock(&self.trusted_since) = now;
        for pool in [&self.pool, &self.snapshot_pool] {
            pool.retain(|_, metrics| metrics.created > now);
        }
    }

    fn is_trusted(&self, connection: &Object<AsyncPgConnection>) -> bool {
        Object::metrics(connection).created >= *lock(&self.trusted_since)
    }

    /// Reads one order.
    ///
    /// # Errors
    /// [`StoreError`] as said there.
    pub async fn find_order(&self, uid: &str) -> Result<Option<VersionedOrder>, StoreError> {
        let mut session = self.session().await?;
        session.order_uid = Some(uid.into());
        let query = orders::table.find(uid).select(OrderRow::as_select());
        let outcome = within(
            session.limit(),
            query.first::<OrderRow>(&mut session.connection),
        )
        .await;
        let row = session
            .settle(outcome.map(OptionalExtension::optional))
            .await?;
        Ok(row.map(VersionedOrder::from))
    }

    /// Reads those of the orders that exist, in any order.
    ///
    /// # Errors
    /// [`StoreError`] as said there.
    pub async fn find_orders(&self, uids: &[&str]) -> Result<Vec<VersionedOrder>, StoreError> {
        let mut session = self.session().await?;
        if let [uid] = uids {
            session.order_uid = Some((*uid).into());
        }
        let padding = uids.first().copied().unwrap_or_default();
        let mut padded = uids.to_vec();
        padded.resize(uids.len().max(MIN_ARRAY), padding);
        let query = orders::table
            .filter(orders::order_uid.eq_any(padded))
            .select(OrderRow::as_select());
        let outcome = within(
            session.limit(),
            query.load::<OrderRow>(&mut session.connection),
        )
        .await;
        let rows = session.settle(outcome).await?;
        Ok(rows.into_iter().map(VersionedOrder::from).collect())
    }

    /// The versions of those of the orders that exist, in any order.
    ///
    /// # Errors
    /// [`StoreError`] as said there.
    pub async fn find_versions(&self, uids: &[&str]) -> Result<Vec<(String, i64)>, StoreError> {
        let mut session = self.session().await?;
        let query = orders::table
            .filter(orders::order_uid.eq_any(uids))
            .select((orders::order_uid, orders::version));
        let outcome = within(
            session.limit(),
            query.load::<(String, i64)>(&mut session.connection),
        )
        .await;
        session.settle(outcome).await
    }

    /// The uids of the newest orders, from `after` on.
    ///
    /// # Errors
    /// [`StoreError`] as said there.
    pub async fn newest_uids(
        &self,
        limit: usize,
        after: Option<&Position>,
    ) -> Result<Vec<Position>, StoreError> {
        let mut session = self.session().await?;
        let mut query = orders::table
            .select((orders::date_created, orders::order_uid))
            .order((orders::date_created.desc(), orders::order_uid.desc()))
            .limit(i64::try_from(limit).unwrap_or(i64::MAX))
            .into_boxed();
        if let Some(position) = after {
            query = query.filter(older_than(position));
        }
        let outcome = within(
            session.limit(),
            query.load::<Position>(&mut session.connection),
        )
        .await;
        session.settle(outcome).await
    }

    /// Asks for nothing but an answer.
    ///
    /// # Errors
    /// [`StoreError`] as said there.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.select_bool("true").await.map(|_| ())
    }

    /// Whether the table and the sequence that this process needs are there.
    ///
    /// # Errors
    /// [`StoreError`] as said there.
    pub async fn has_schema(&self) -> Result<bool, StoreError> {
        let present = "EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('orders') AND attname = 'items') \
                       AND to_regclass('order_version_seq') IS NOT NULL";
        self.select_bool(present).await
    }

    async fn select_bool(&self, expression: &'static str) -> Result<bool, StoreError> {
        let mut session = self.session().await?;
        let query = diesel::select(sql::<Bool>(expression));
        let outcome = within(
            session.limit(),
            query.get_result::<bool>(&mut session.connection),
        )
        .await;
        session.settle(outcome).await
    }

    async fn session(&self) -> Result<Session, StoreError> {
        self.session_of(&self.pool).await
    }

    async fn session_of(&self, pool: &AsyncPool) -> Result<Session, StoreError> {
        let mut got = pool.get().await;
        // It may have been in use when it came to be distrusted.
        while got
            .as_ref()
            .is_ok_and(|connection| !self.is_trusted(connection))
        {
            drop(got.map(Object::take));
            got = pool.get().await;
        }
        match got {
            Ok(connection) => Ok(Session {
                connection,
                order_uid: None,
                started: Instant::now(),
                statement_timeout: self.statement_timeout,
            }),
            Err(PoolError::Timeout(TimeoutType::Wait)) => {
                let overloaded = StoreError::Overloaded;
                self.outage_log.warn(overloaded);
                Err(overloaded)
            }
            Err(error) => {
                self.outage_log
                    .warn(format_args!("cannot connect to the database: {error}"));
                Err(StoreError::Unavailable)
            }
        }
    }
}

/// Nothing panics under the lock.
fn lock(instant: &Mutex<Instant>) -> MutexGuard<'_, Instant> {
    instant.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The rows behind a position. A row comparison: unlike its spelling with OR it walks the index from the right place.
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

/// `None` is no answer at all.
async fn within<T>(limit: Duration, query: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, query).await.ok()
}

/// A connection in use.
struct Session {
    connection: Object<AsyncPgConnection>,
    /// The order that is asked for, where it is a single one; for the log.
    order_uid: Option<CompactString>,
    started: Instant,
    statement_timeout: Duration,
}

impl Session {
    /// A little longer than the server itself may take.
    fn limit(&self) -> Duration {
        self.statement_timeout + ANSWER_GRACE
    }

    async fn is_alive(&mut self) -> bool {
        let query = diesel::select(sql::<Bool>("true"));
        let answer = within(self.limit(), query.execute(&mut self.connection)).await;
        matches!(answer, Some(Ok(_)))
    }

    /// Ends the use of the connection, as [`Self::judge`] says.
    async fn settle<T>(mut self, outcome: Option<QueryResult<T>>) -> Result<T, StoreError> {
        let is_answered = outcome.is_some();
        let judged = self.judge(outcome).await;
        if !is_answered {
            // Not back into the pool: its answer may still come.
            drop(Object::take(self.connection));
        }
        judged
    }

    /// Says what a failure means, and logs it.
    async fn judge<T>(&mut self, outcome: Option<QueryResult<T>>) -> Result<T, StoreError> {
        let elapsed = self.started.elapsed();
        let error = match outcome {
            Some(Ok(value)) => return Ok(value),
            Some(Err(error)) => error,
            None => {
                warn!(
                    duration_ms = elapsed.as_millis(),
                    "no answer from the database"
                );
                return Err(StoreError::Timeout);
            }
        };
        let meaning = match &error {
            _ if self.connection.is_broken() => StoreError::Unavailable,
            DieselError::BrokenTransactionManager => StoreError::Unavailable,
            DieselError::DatabaseError(kind, _) => match kind {
                DatabaseErrorKind::UnableToSendCommand
                | DatabaseErrorKind::ClosedConnection
                // The primary has become a standby.
                | DatabaseErrorKind::ReadOnlyTransaction => StoreError::Unavailable,
                DatabaseErrorKind::Unknown if elapsed >= self.statement_timeout => StoreError::Timeout,
                // 57P01 and its like come as an ordinary error, just before the connection closes.
                DatabaseErrorKind::Unknown if !self.is_alive().await => StoreError::Unavailable,
                _ => StoreError::Internal,
            },
            _ => StoreError::Internal,
        };
        let order_uid = self.order_uid.as_deref();
        match (meaning, &error) {
            (_, DieselError::DeserializationError(cause)) => {
                // diesel's own text names the field only.
                let cause = cause.source().unwrap_or(cause.as_ref());
                error!(
                    order.id = order_uid,
                    "an order cannot be read: {error}: {cause}; to find all such orders: {FIND_BROKEN_ITEMS}"
                );
            }
            (StoreError::Internal, _) => error!(order.id = order_uid, "query failed: {error}"),
            _ => warn!(duration_ms = elapsed.as_millis(), "{meaning}: {error}"),
        }
        Err(meaning)
    }
}
