//! Decisions on dead letters: a letter is replayed through the same validation and the same writer, or it is dropped.
//! Each letter is decided on once.

use diesel::prelude::*;
use diesel::result::Error as DieselError;
use shared::db::models::Source;
use shared::order::Decoder;

use crate::dead_letters::stored::{self, LetterState};
use crate::record::{self, Consumer};
use crate::writer::{is_refusal, store_replayed};

/// What became of a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its order is stored.
    Replayed,
    /// The stored order is newer; nothing was written.
    Superseded,
    /// It was given up.
    Dropped,
    /// It stays new, for this reason.
    Kept(String),
}

/// Why a letter could not be decided on.
#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    /// The letter does not exist, or somebody else has decided on it.
    #[error(
        "there is no new dead letter {0} of this group and topic: somebody has decided on it, or it never existed"
    )]
    NotNew(i64),
    /// The database failed.
    #[error("{0}")]
    Query(#[from] DieselError),
}

/// What ends the transaction without a change.
enum Undone {
    Outcome(Outcome),
    Error(DecideError),
}

impl From<DecideError> for Undone {
    fn from(error: DecideError) -> Self {
        Self::Error(error)
    }
}

impl From<DieselError> for Undone {
    fn from(error: DieselError) -> Self {
        Self::Error(error.into())
    }
}

/// Stores the letter's order if it is valid by now and the stored order is not newer. `dry_run` changes nothing.
///
/// An order that was deleted is stored again. What a message of a later incarnation wrote is newer than the letter.
///
/// # Errors
/// Returns [`DecideError`]; then nothing was changed.
pub fn replay(
    connection: &mut PgConnection,
    consumer: &Consumer,
    decoder: Decoder,
    id: i64,
    dry_run: bool,
) -> Result<Outcome, DecideError> {
    decide(connection, dry_run, |connection| {
        let letter = stored::take(connection, consumer, id, LetterState::Replayed)?
            .ok_or(DecideError::NotNew(id))?;
        if letter.is_cut() {
            return Err(kept(format!(
                "only {} of its {} bytes are kept",
                letter.payload.as_ref().map_or(0, Vec::len),
                letter.summary.payload_size
            )));
        }
        let order = record::decode(decoder, letter.payload.as_deref()).map_err(|refusal| {
            kept(format!(
                "{}: {}",
                <&str>::from(refusal.reason),
                refusal.detail
            ))
        })?;
        let source = Source {
            partition: letter.summary.partition.0,
            incarnation: letter.summary.incarnation.0,
            offset: letter.summary.offset.0,
        };
        let is_written = store_replayed(connection, &order, source).map_err(|error| {
            if is_refusal(&error) {
                kept(format!("the database rejects it: {error}"))
            } else {
                error.into()
            }
        })?;
        if is_written {
            return Ok(Outcome::Replayed);
        }
        stored::set_state(connection, id, LetterState::Superseded)?;
        Ok(Outcome::Superseded)
    })
}

/// Gives a letter up. `dry_run` changes nothing.
///
/// # Errors
/// Returns [`DecideError`]; then nothing was changed.
pub fn drop_letter(
    connection: &mut PgConnection,
    consumer: &Consumer,
    id: i64,
    dry_run: bool,
) -> Result<Outcome, DecideError> {
    decide(connection, dry_run, |connection| {
        stored::take(connection, consumer, id, LetterState::Dropped)?
            .ok_or(DecideError::NotNew(id))?;
        Ok(Outcome::Dropped)
    })
}

/// Runs a decision in one transaction, which is rolled back if the letter is kept or nothing may change.
fn decide(
    connection: &mut PgConnection,
    dry_run: bool,
    decision: impl FnOnce(&mut PgConnection) -> Result<Outcome, Undone>,
) -> Result<Outcome, DecideError> {
    let decided = connection.transaction(|connection| match decision(connection) {
        Ok(outcome) if dry_run => Err(Undone::Outcome(outcome)),
        other => other,
    });
    match decided {
        Ok(outcome) | Err(Undone::Outcome(outcome)) => Ok(outcome),
        Err(Undone::Error(error)) => Err(error),
    }
}

fn kept(why: String) -> Undone {
    Undone::Outcome(Outcome::Kept(why))
}
