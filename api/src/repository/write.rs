//! The writes of this process: replacing an order and deleting one.
//!
//! Each write is one transaction about one row. It locks the row first, as every writer does. Then it checks the version,
//! writes, and tells the caches in the same transaction.

use diesel::dsl::{now, sql};
use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::{BigInt, Text};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use shared::db::models::NewOrder;
use shared::db::orders::UpsertOrders;
use shared::db::removed::{self, How, Kind};
use shared::db::schema::orders;
use shared::events::{self, Operation};
use shared::order::Order;

use super::{Repository, Revision, Session, StoreError};

/// Two statements of a write wait for others, each for no longer than the statement time-out: the first one for the row, and
/// COMMIT for the server's lock on the queue of notifications.
const WAITING_STATEMENTS: u32 = 2;

/// A set of revisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revisions {
    /// Every revision.
    Any,
    /// These revisions.
    These(Vec<Revision>),
}

impl Revisions {
    /// Returns whether the revision belongs to the set.
    pub fn contains(&self, revision: Revision) -> bool {
        match self {
            Self::Any => true,
            Self::These(revisions) => revisions.contains(&revision),
        }
    }
}

/// The revisions that a client allows to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Precondition {
    /// The revision must be one of these.
    pub accepted: Revisions,
    /// The revision must not be one of these.
    pub refused: Revisions,
}

impl Precondition {
    fn holds(&self, revision: Revision) -> bool {
        self.accepted.contains(revision) && !self.refused.contains(revision)
    }
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The order does not exist.
    #[error("no such order")]
    NotFound,
    /// The client does not allow the order's present revision to be changed.
    #[error("the order has revision {current}")]
    VersionMismatch {
        /// The present revision.
        current: Revision,
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
    /// Replaces an order that exists; returns its new revision.
    ///
    /// # Errors
    /// Returns a [`WriteError`] if the order does not exist, the precondition does not hold, or the database gave no answer.
    pub async fn replace_order(
        &self,
        order: &Order,
        precondition: &Precondition,
    ) -> Result<Revision, WriteError> {
        self.write(order.order_uid.as_str(), Some(order), precondition)
            .await
    }

    /// Deletes an order, and notes it in the ledger, so that no older message brings it back. Returns the revision that the
    /// order had.
    ///
    /// # Errors
    /// Returns a [`WriteError`] if the order does not exist, the precondition does not hold, or the database gave no answer.
    pub async fn delete_order(
        &self,
        uid: &str,
        precondition: &Precondition,
    ) -> Result<Revision, WriteError> {
        self.write(uid, None, precondition).await
    }

    /// Writes on a session that may write. A session stays read-only if its role was read-only when it began. It is then
    /// replaced once, together with the others.
    async fn write(
        &self,
        uid: &str,
        replacement: Option<&Order>,
        precondition: &Precondition,
    ) -> Result<Revision, WriteError> {
        for _ in 0..2 {
            let mut session = self.session(&self.pool).await?;
            let written = Self::write_on(&mut session, uid, replacement, precondition).await;
            if let Err(WriteError::Store(StoreError::ReadOnly)) = written {
                self.distrust_connections();
            } else {
                return written;
            }
        }
        Err(StoreError::ReadOnly.into())
    }

    /// Deletes the order if there is no replacement for it.
    async fn write_on(
        session: &mut Session,
        uid: &str,
        replacement: Option<&Order>,
        precondition: &Precondition,
    ) -> Result<Revision, WriteError> {
        let history = session.history();
        let transaction = async |connection: &mut AsyncPgConnection| {
            let version = lock_order(connection, uid).await?;
            let version = version.ok_or(Rollback::Refused(WriteError::NotFound))?;
            let current = Revision { version, history };
            if !precondition.holds(current) {
                return Err(Rollback::Refused(WriteError::VersionMismatch { current }));
            }
            let (operation, version) = match replacement {
                Some(order) => {
                    let upsert = UpsertOrders::new(&[NewOrder::new(order, None)]);
                    (Operation::Upsert, upsert.get_result(connection).await?)
                }
                None => {
                    let delete = diesel::delete(orders::table.find(uid));
                    delete.execute(connection).await?;
                    let record = removed::record(Kind::Order, How::Deleted, vec![uid.to_owned()]);
                    record.execute(connection).await?;
                    (Operation::Delete, version)
                }
            };
            let notify = events::notify(operation, [uid]);
            notify.execute(connection).await?;
            Ok(Revision { version, history })
        };
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

impl Repository {
    /// Draws a new version for an order that still has this one, and tells the caches. Its content was changed without one.
    ///
    /// # Errors
    /// Returns a [`StoreError`] if the database gave no answer or accepts no writes.
    pub async fn redraw_version(&self, uid: &str, version: i64) -> Result<(), StoreError> {
        let redraw = diesel::update(orders::table.find(uid))
            .filter(orders::version.eq(version))
            .set((
                orders::version.eq(sql::<BigInt>("nextval('order_version_seq')")),
                orders::updated_at.eq(now),
            ));
        let transaction = async |connection: &mut AsyncPgConnection| {
            redraw.execute(connection).await?;
            let notify = events::notify(Operation::Upsert, [uid]);
            notify.execute(connection).await?;
            Ok::<_, DieselError>(())
        };
        let mut session = self.session(&self.pool).await?;
        let redrawn = session.run(WAITING_STATEMENTS, async |connection| {
            connection.transaction(transaction).await
        });
        redrawn.await
    }
}

/// Locks the row, and returns the version that it has; `None` if there is no such order.
///
/// Says once more that this transaction emits its own events: a pooler may have given it a session without our settings. Then
/// a trigger would draw another version than the one that the client is told.
async fn lock_order(connection: &mut AsyncPgConnection, uid: &str) -> QueryResult<Option<i64>> {
    let emits = sql::<Text>("set_config('orders.emits', 'on', true)");
    let query = orders::table.find(uid).select((orders::version, emits));
    let locked = query.for_update().first::<(i64, String)>(connection).await;
    Ok(locked.optional()?.map(|(version, _)| version))
}
