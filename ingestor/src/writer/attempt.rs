//! One attempt to store a batch, and what to do after it.

use diesel::prelude::*;
use diesel::result::Error as DieselError;
use shared::traces;

use super::isolation;
use super::transaction::{self, Outcome, Stored};
use crate::batch::Batch;
use crate::failpoints::{self, Phase};
use crate::offsets::{self, Claim, Reread};
use crate::record::{Consumer, Offset, Refusal};

/// The outcome of an attempt to store a batch.
#[derive(Debug)]
pub enum Step {
    /// It is stored.
    Stored(Stored),
    /// It is not stored, and may be.
    NotStored,
    /// The messages at these offsets would bring back what was deleted or erased.
    BringsBack(Vec<Offset>),
    /// A constraint rejects these messages. They are sorted by offset.
    Refused(Vec<(Offset, Refusal)>),
    /// The partition is not ours any more.
    Lost,
    /// Another session holds the row, or there is none.
    NoRow,
}

/// Tries once to store a batch, whole or not at all. `halts` stops the partition after it. A retry does not wait long for
/// orders that others have locked.
///
/// # Errors
/// Returns the database's error. The outcome is then unknown: ask [`settle`].
pub fn store(
    connection: &mut PgConnection,
    consumer: &Consumer,
    claim: &Claim,
    batch: &Batch,
    halts: bool,
    is_retry: bool,
) -> QueryResult<Step> {
    match transaction::store(connection, consumer, claim, batch, halts, is_retry) {
        Ok(Outcome::Stored(stored)) => {
            failpoints::reached(Phase::Committed);
            Ok(Step::Stored(stored))
        }
        Ok(Outcome::BringsBack(offsets)) => Ok(Step::BringsBack(offsets)),
        Err(DieselError::NotFound) => Ok(Step::NoRow),
        Err(error) if offsets::is_fence(&error) => Ok(Step::Lost),
        Err(error) if isolation::is_refusal(&error) => {
            // An order that is to be left out must not become a dead letter.
            let guard = &claim.guard;
            let old = traces::leaf("look for removed orders", || {
                transaction::find_old(connection, consumer, guard, batch)
            })?;
            if !old.is_empty() {
                return Ok(Step::BringsBack(old));
            }
            let refused = traces::leaf("find what is rejected", || {
                isolation::find_refused(connection, batch, guard)
            })?;
            if refused.is_empty() {
                // The orders were rejected and then were not: none of them is to blame.
                return Err(error);
            }
            Ok(Step::Refused(refused))
        }
        Err(error) => Err(error),
    }
}

/// Asks the database about an attempt whose outcome is unknown.
///
/// # Errors
/// Returns the database's error.
pub fn settle(
    connection: &mut PgConnection,
    consumer: &Consumer,
    claim: &Claim,
    batch: &Batch,
) -> QueryResult<Step> {
    let reread = offsets::reread(connection, consumer, batch.reading.partition, claim.epoch)?;
    Ok(match reread {
        // Nobody knows any more which orders were held back or kept.
        Reread::Ours(offset) if offset == batch.new_next_offset => Step::Stored(Stored {
            written: batch.folded(&claim.guard).len(),
            held_back: Vec::new(),
        }),
        Reread::Ours(offset) if offset == batch.old_next_offset => Step::NotStored,
        Reread::Locked => Step::NoRow,
        Reread::Ours(_) | Reread::Lost => Step::Lost,
    })
}
