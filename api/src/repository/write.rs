//! The writes of this process: creating an order, replacing one, editing one and deleting one.
//!
//! Each write is one transaction about one row. It locks the row first, as every writer does. Then it checks the version,
//! writes, and tells the caches in the same transaction. A row that does not exist is inserted instead.

mod precondition;
mod statements;

use diesel::dsl::{now, sql};
use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::BigInt;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use shared::db::HistoryId;
use shared::db::models::VersionedOrder;
use shared::db::removed::{self, How, Kind};
use shared::db::schema::orders;
use shared::events::Operation;
use shared::order::{Order, OrderError};
use shared::traces;

use super::rights::Rights;
use super::{Repository, Revision, StoreError, unreadable};
pub use precondition::{Precondition, Revisions};
use statements::{insert, lock_order, lock_whole_order, notify, replace};

/// Two statements of a write wait for others, each for no longer than the statement time-out: the first one for the row, and
/// COMMIT for the server's lock on the queue of notifications.
const WAITING_STATEMENTS: u32 = 2;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The revision that the order has now, or had before it was deleted.
    pub revision: Revision,
    /// What became of the order.
    pub effect: Effect,
}

impl AsRef<Self> for Written {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// What a write did to an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// There was no such order.
    Created,
    /// The order has a new revision.
    Replaced,
    /// The order is as it was, so nothing was written.
    Unchanged,
    /// The order is gone.
    Deleted,
}

impl Effect {
    /// The name in the log. `done` says that the order existed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Unchanged => "unchanged",
            Self::Replaced | Self::Deleted => "done",
        }
    }
}

/// An order that was edited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edited {
    /// What was written.
    pub written: Written,
    /// The order as it is now.
    pub order: Order,
}

impl AsRef<Written> for Edited {
    fn as_ref(&self) -> &Written {
        &self.written
    }
}

/// What to make of an order.
pub type Edit = dyn Fn(&Order) -> Result<Order, OrderError> + Send + Sync;

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The order does not exist.
    #[error("no such order")]
    NotFound,
    /// The order to create exists.
    #[error("order {order_uid} exists")]
    Exists {
        /// Its id.
        order_uid: String,
        /// Its revision.
        current: Revision,
    },
    /// The client does not allow the order to be changed as it is.
    #[error("the precondition does not hold")]
    VersionMismatch {
        /// The present revision, if the order exists.
        current: Option<Revision>,
    },
    /// The edited order is not valid.
    #[error(transparent)]
    Invalid(OrderError),
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

impl From<WriteError> for Rollback {
    fn from(error: WriteError) -> Self {
        Self::Refused(error)
    }
}

impl Repository {
    /// Creates an order.
    ///
    /// # Errors
    /// Returns a [`WriteError`] if the order exists, or the database gave no answer.
    pub async fn create_order(&self, order: &Order) -> Result<Written, WriteError> {
        let created = self.put_order(order, &Precondition::ABSENT).await;
        created.map_err(|refused| match refused {
            WriteError::VersionMismatch {
                current: Some(current),
            } => WriteError::Exists {
                order_uid: order.order_uid.to_string(),
                current,
            },
            other => other,
        })
    }

    /// Replaces an order that exists. Creates one if the precondition is that there is none.
    ///
    /// # Errors
    /// Returns a [`WriteError`] if the order does not exist but should, the precondition does not hold, or the database gave
    /// no answer.
    pub async fn put_order(
        &self,
        order: &Order,
        precondition: &Precondition,
    ) -> Result<Written, WriteError> {
        self.write(&Put {
            order,
            precondition,
        })
        .await
    }

    /// Replaces an order by what `edit` makes of it. The order is locked meanwhile, so no other write is lost. Writes nothing if
    /// the order stays the same.
    ///
    /// # Errors
    /// Returns a [`WriteError`] if the order does not exist, the precondition does not hold, `edit` fails, or the database gave
    /// no answer.
    pub async fn edit_order(
        &self,
        uid: &str,
        edit: &Edit,
        precondition: &Precondition,
    ) -> Result<Edited, WriteError> {
        let change = Rewrite {
            uid,
            edit,
            precondition,
        };
        self.write(&change).await
    }

    /// Deletes an order, and notes it in the ledger, so that no older message brings it back.
    ///
    /// # Errors
    /// Returns a [`WriteError`] if the order does not exist, the precondition does not hold, or the database gave no answer.
    pub async fn delete_order(
        &self,
        uid: &str,
        precondition: &Precondition,
    ) -> Result<Written, WriteError> {
        self.write(&Delete { uid, precondition }).await
    }

    /// Runs a transaction on a session that may write. A session stays read-only if its role was read-only when it began. It
    /// is then replaced once, together with the others.
    async fn write<C: Change>(&self, change: &C) -> Result<C::Outcome, WriteError> {
        for _ in 0..2 {
            let mut session = self.session(&self.pool).await?;
            let history = session.history();
            let write = async |connection: &mut AsyncPgConnection| {
                let attempt = async |connection: &mut AsyncPgConnection| {
                    let written = change.make(connection, history).await?;
                    Ok::<_, Rollback>((written, traces::part("COMMIT")))
                };
                match connection.transaction(attempt).await {
                    // The span of the COMMIT ends here.
                    Ok((written, _commit)) => Ok(Ok(written)),
                    Err(Rollback::Refused(refusal)) => Ok(Err(refusal)),
                    Err(Rollback::Failed(error)) => Err(error),
                }
            };
            let written = session.run_needing(&C::RIGHTS, C::NAME, WAITING_STATEMENTS, write);
            match written.await {
                Err(StoreError::ReadOnly) => self.distrust_connections(),
                written => return written?,
            }
        }
        Err(StoreError::ReadOnly.into())
    }
}

/// A change of one order.
trait Change: Sync {
    /// The rights that it needs.
    const RIGHTS: Rights;
    /// Its name in traces.
    const NAME: &'static str;
    /// What the client learns of it.
    type Outcome: Send;

    /// Makes the change within a transaction.
    fn make(
        &self,
        connection: &mut AsyncPgConnection,
        history: HistoryId,
    ) -> impl Future<Output = Result<Self::Outcome, Rollback>> + Send;
}

fn check(precondition: &Precondition, current: Option<Revision>) -> Result<(), WriteError> {
    if precondition.holds(current) {
        Ok(())
    } else {
        Err(WriteError::VersionMismatch { current })
    }
}

struct Put<'a> {
    order: &'a Order,
    precondition: &'a Precondition,
}

impl Change for Put<'_> {
    const RIGHTS: Rights = Rights::STORE;
    const NAME: &'static str = "UPSERT orders";
    type Outcome = Written;

    async fn make(
        &self,
        connection: &mut AsyncPgConnection,
        history: HistoryId,
    ) -> Result<Written, Rollback> {
        let uid = self.order.order_uid.as_str();
        let (version, effect) = loop {
            let version = lock_order(connection, uid).await?;
            let current = version.map(|version| Revision { version, history });
            if current.is_none() && !self.precondition.demands_absence() {
                return Err(WriteError::NotFound.into());
            }
            check(self.precondition, current)?;
            if current.is_some() {
                break (replace(connection, self.order).await?, Effect::Replaced);
            }
            // Nothing can be locked before it exists. If somebody else creates the order meanwhile, this waits for them, and
            // the next look finds it. If they always delete it again, the limit of the whole transaction ends the loop.
            if let Some(version) = insert(connection, self.order).await? {
                break (version, Effect::Created);
            }
        };
        notify(connection, Operation::Upsert, uid).await?;
        let revision = Revision { version, history };
        Ok(Written { revision, effect })
    }
}

struct Rewrite<'a> {
    uid: &'a str,
    edit: &'a Edit,
    precondition: &'a Precondition,
}

impl Change for Rewrite<'_> {
    const RIGHTS: Rights = Rights::STORE;
    const NAME: &'static str = "UPDATE orders";
    type Outcome = Edited;

    async fn make(
        &self,
        connection: &mut AsyncPgConnection,
        history: HistoryId,
    ) -> Result<Edited, Rollback> {
        let stored = lock_whole_order(connection, self.uid).await?;
        let stored = stored.ok_or(WriteError::NotFound)?;
        let stored = VersionedOrder::try_from(stored).map_err(unreadable);
        let stored = stored.map_err(WriteError::Store)?;
        let version = stored.version;
        let revision = Revision { version, history };
        check(self.precondition, Some(revision))?;
        let order = (self.edit)(&stored.order).map_err(WriteError::Invalid)?;
        if order == stored.order {
            let effect = Effect::Unchanged;
            let written = Written { revision, effect };
            return Ok(Edited { written, order });
        }
        let version = replace(connection, &order).await?;
        notify(connection, Operation::Upsert, self.uid).await?;
        let revision = Revision { version, history };
        let effect = Effect::Replaced;
        let written = Written { revision, effect };
        Ok(Edited { written, order })
    }
}

struct Delete<'a> {
    uid: &'a str,
    precondition: &'a Precondition,
}

impl Change for Delete<'_> {
    const RIGHTS: Rights = Rights::DELETE;
    const NAME: &'static str = "DELETE orders";
    type Outcome = Written;

    async fn make(
        &self,
        connection: &mut AsyncPgConnection,
        history: HistoryId,
    ) -> Result<Written, Rollback> {
        let version = lock_order(connection, self.uid).await?;
        let version = version.ok_or(WriteError::NotFound)?;
        let revision = Revision { version, history };
        check(self.precondition, Some(revision))?;
        let delete = diesel::delete(orders::table.find(self.uid));
        traces::leaf_async("delete the row", delete.execute(connection)).await?;
        let uids = vec![self.uid.to_owned()];
        let record = removed::record(Kind::Order, How::Deleted, uids);
        traces::leaf_async("note it in the ledger", record.execute(connection)).await?;
        notify(connection, Operation::Delete, self.uid).await?;
        let effect = Effect::Deleted;
        Ok(Written { revision, effect })
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
            notify(connection, Operation::Upsert, uid).await
        };
        let mut session = self.session(&self.pool).await?;
        let redrawn = session.run("UPDATE orders", WAITING_STATEMENTS, async |connection| {
            connection.transaction(transaction).await
        });
        redrawn.await
    }
}
