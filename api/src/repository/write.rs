//! The writes of this process: replace an order, delete one.
//!
//! Each is one transaction about one row. It locks the row first, as every writer does, then looks at the version, then
//! writes, and tells the caches in the same transaction.

use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use shared::db::models::NewOrder;
use shared::db::orders::UpsertOrders;
use shared::db::schema::orders;
use shared::events::{self, Operation};
use shared::order::Order;

use super::{Repository, StoreError, within};

/// A set of versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Versions {
    /// Every one.
    Any,
    /// These.
    These(Vec<i64>),
}

impl Versions {
    /// Whether the version is one of them.
    pub fn contains(&self, version: i64) -> bool {
        match self {
            Self::Any => true,
            Self::These(versions) => versions.contains(&version),
        }
    }
}

/// Which versions a client accepts to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Precondition {
    /// One of these,
    pub accepted: Versions,
    /// and none of these.
    pub refused: Versions,
}

impl Precondition {
    fn holds(&self, version: i64) -> bool {
        self.accepted.contains(version) && !self.refused.contains(version)
    }
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// There is no such order.
    #[error("no such order")]
    NotFound,
    /// The order has another version than the client accepts.
    #[error("the order has version {current}")]
    VersionMismatch {
        /// The version it has.
        current: i64,
    },
    /// The database gave no answer; the write may have happened.
    #[error(transparent)]
    Store(StoreError),
    /// As diesel says it; [`Repository`] turns it into [`Self::Store`].
    #[error(transparent)]
    Query(#[from] DieselError),
}

impl Repository {
    /// Replaces an order that exists; gives its new version.
    ///
    /// # Errors
    /// [`WriteError`] as said there, never `Query`.
    pub async fn replace_order(
        &self,
        order: &Order,
        precondition: &Precondition,
    ) -> Result<i64, WriteError> {
        let mut session = self.session().await.map_err(WriteError::Store)?;
        let transaction = session.connection.transaction(async |connection| {
            let uid = order.order_uid.as_str();
            lock_order(connection, uid, precondition).await?;
            let version = UpsertOrders::new(&[NewOrder::new(order, None)])
                .get_result(connection)
                .await?;
            events::notify(Operation::Upsert, [uid])
                .execute(connection)
                .await?;
            Ok(version)
        });
        let outcome = within(WAITING_STATEMENTS * session.statement_timeout, transaction).await;
        settle(session, outcome).await
    }

    /// Deletes an order; gives the version that it had.
    ///
    /// # Errors
    /// [`WriteError`] as said there, never `Query`.
    pub async fn delete_order(
        &self,
        uid: &str,
        precondition: &Precondition,
    ) -> Result<i64, WriteError> {
        let mut session = self.session().await.map_err(WriteError::Store)?;
        let transaction = session.connection.transaction(async |connection| {
            let version = lock_order(connection, uid, precondition).await?;
            diesel::delete(orders::table.find(uid))
                .execute(connection)
                .await?;
            events::notify(Operation::Delete, [uid])
                .execute(connection)
                .await?;
            Ok(version)
        });
        let outcome = within(WAITING_STATEMENTS * session.statement_timeout, transaction).await;
        settle(session, outcome).await
    }
}

/// The statements of a write that wait for others, each for no longer than its time-out: the first one for the row, and
/// COMMIT for the server's lock on the queue of notifications.
const WAITING_STATEMENTS: u32 = 2;

async fn lock_order(
    connection: &mut AsyncPgConnection,
    uid: &str,
    precondition: &Precondition,
) -> Result<i64, WriteError> {
    let current = orders::table
        .find(uid)
        .select(orders::version)
        .for_update()
        .first::<i64>(connection)
        .await
        .optional()?
        .ok_or(WriteError::NotFound)?;
    if precondition.holds(current) {
        Ok(current)
    } else {
        Err(WriteError::VersionMismatch { current })
    }
}

async fn settle<T>(
    session: super::Session,
    outcome: Option<Result<T, WriteError>>,
) -> Result<T, WriteError> {
    let outcome = match outcome {
        Some(Err(WriteError::Query(error))) => Some(Err(error)),
        Some(Err(refusal)) => return Err(refusal),
        Some(Ok(value)) => Some(Ok(value)),
        None => None,
    };
    session.settle(outcome).await.map_err(WriteError::Store)
}
