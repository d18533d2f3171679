//! The writes of this process: replacing an order and deleting one.
//!
//! Each write is one transaction about one row. It locks the row first, as every writer does. Then it checks the version,
//! writes, and tells the caches in the same transaction.

use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use shared::db::models::NewOrder;
use shared::db::orders::UpsertOrders;
use shared::db::schema::orders;
use shared::events::{self, Operation};
use shared::order::Order;

use super::{Repository, StoreError};

/// Two statements of a write wait for others, each for no longer than the statement time-out: the first one for the row, and
/// COMMIT for the server's lock on the queue of notifications.
const WAITING_STATEMENTS: u32 = 2;

/// A set of versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Versions {
    /// Every version.
    Any,
    /// These versions.
    These(Vec<i64>),
}

impl Versions {
    /// Returns whether the version belongs to the set.
    pub fn contains(&self, version: i64) -> bool {
        match self {
            Self::Any => true,
            Self::These(versions) => versions.contains(&version),
        }
    }
}

/// The versions that a client allows to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Precondition {
    /// The version must be one of these.
    pub accepted: Versions,
    /// The version must not be one of these.
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
    /// The order does not exist.
    #[error("no such order")]
    NotFound,
    /// The client does not allow the order's present version to be changed.
    #[error("the order has version {current}")]
    VersionMismatch {
        /// The present version.
        current: i64,
    },
    /// The database gave no answer. The write may have happened.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a transaction was rolled back.
enum Rollback {
    Refused(WriteError),
    Failed(DieselError),
}

impl From<DieselError> for Rollback {
    fn from(error: DieselError) -> Self {
        Self::Failed(error)
    }
}

impl Repository {
    /// Replaces an order that exists; returns its new version.
    ///
    /// # Errors
    /// Returns a [`WriteError`] if the order does not exist, the precondition does not hold, or the database gave no answer.
    pub async fn replace_order(
        &self,
        order: &Order,
        precondition: &Precondition,
    ) -> Result<i64, WriteError> {
        self.write(order.order_uid.as_str(), Some(order), precondition)
            .await
    }

    /// Deletes an order; returns the version that it had.
    ///
    /// # Errors
    /// Returns a [`WriteError`] if the order does not exist, the precondition does not hold, or the database gave no answer.
    pub async fn delete_order(
        &self,
        uid: &str,
        precondition: &Precondition,
    ) -> Result<i64, WriteError> {
        self.write(uid, None, precondition).await
    }

    /// Deletes the order if there is no replacement for it.
    async fn write(
        &self,
        uid: &str,
        replacement: Option<&Order>,
        precondition: &Precondition,
    ) -> Result<i64, WriteError> {
        let transaction = async |connection: &mut AsyncPgConnection| {
            let current = lock_order(connection, uid, precondition).await?;
            let (operation, version) = match replacement {
                Some(order) => {
                    let upsert = UpsertOrders::new(&[NewOrder::new(order, None)]);
                    (Operation::Upsert, upsert.get_result(connection).await?)
                }
                None => {
                    let delete = diesel::delete(orders::table.find(uid));
                    delete.execute(connection).await?;
                    (Operation::Delete, current)
                }
            };
            let notify = events::notify(operation, [uid]);
            notify.execute(connection).await?;
            Ok(version)
        };
        let mut session = self.session(&self.pool).await?;
        let written = session.run(WAITING_STATEMENTS, async |connection| {
            match connection.transaction(transaction).await {
                Ok(version) => Ok(Ok(version)),
                Err(Rollback::Refused(refusal)) => Ok(Err(refusal)),
                Err(Rollback::Failed(error)) => Err(error),
            }
        });
        written.await?
    }
}

/// Locks the row, and returns the version that it has.
async fn lock_order(
    connection: &mut AsyncPgConnection,
    uid: &str,
    precondition: &Precondition,
) -> Result<i64, Rollback> {
    let query = orders::table.find(uid).select(orders::version);
    let current = query.for_update().first(connection).await.optional()?;
    match current {
        Some(version) if precondition.holds(version) => Ok(version),
        Some(current) => Err(Rollback::Refused(WriteError::VersionMismatch { current })),
        None => Err(Rollback::Refused(WriteError::NotFound)),
    }
}
