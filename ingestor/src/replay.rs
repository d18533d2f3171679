//! Decisions on dead letters: a letter is replayed through the same validation and the same writer, or it is dropped.
//! Each letter is decided on once.

use diesel::prelude::*;
use diesel::result::Error as DieselError;
use shared::order::{Decoder, Order};

use crate::dead_letters::stored::{self, LetterState, LetterSummary, StoredLetter};
use crate::guard::{Doubt, Guard};
use crate::offsets::operators;
use crate::record::{self, Consumer, Offset};
use crate::writer::{Replay, Replayed, is_refusal, store_replayed};

/// What became of a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its order is stored.
    Replayed,
    /// The stored order is newer; nothing was written.
    Superseded,
    /// The order was deleted after the message was produced, and stays deleted. The letter ends as superseded.
    Deleted,
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

/// Which letter is replayed, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// One of many that were selected by a filter: the guard decides.
    Selected,
    /// An operator has named it by its number. A letter that was held back or superseded is stored in any case.
    Named,
}

/// Stores the letter's order if it is valid by now and the stored order is not newer. `dry_run` changes nothing.
///
/// An order that was deleted after the message was produced stays deleted, unless `revives_deleted` is given. One that was
/// erased never comes back.
///
/// # Errors
/// Returns [`DecideError`]; then nothing was changed.
pub fn replay(
    connection: &mut PgConnection,
    consumer: &Consumer,
    decoder: Decoder,
    id: i64,
    wish: Wish,
    revives_deleted: bool,
    dry_run: bool,
) -> Result<Outcome, DecideError> {
    decide(connection, dry_run, |connection| {
        let mut take = |from| stored::take(connection, consumer, id, from, LetterState::Replayed);
        let (letter, is_decided) = match take(LetterState::New)? {
            Some(letter) => (letter, false),
            None if wish == Wish::Named => {
                let superseded = take(LetterState::Superseded)?;
                (superseded.ok_or(DecideError::NotNew(id))?, true)
            }
            None => return Err(DecideError::NotNew(id).into()),
        };
        let order = order_of(decoder, &letter)?;
        let replay = Replay {
            guard: guard_of(connection, consumer, &letter.summary)?,
            position: letter.summary.position(),
            is_decided,
            revives_deleted,
        };
        let replayed = store_replayed(connection, consumer, &order, replay).map_err(|error| {
            if is_refusal(&error) {
                kept(format!("the database rejects it: {error}"))
            } else {
                error.into()
            }
        })?;
        let outcome = match replayed {
            Replayed::Written => return Ok(Outcome::Replayed),
            Replayed::Superseded => Outcome::Superseded,
            Replayed::Deleted => Outcome::Deleted,
            Replayed::Erased => {
                return Err(kept("its order or its customer was erased".to_owned()));
            }
        };
        stored::set_state(connection, id, LetterState::Superseded)?;
        Ok(outcome)
    })
}

fn order_of(decoder: Decoder, letter: &StoredLetter) -> Result<Order, Undone> {
    if let Some(why) = letter.summary.blanking() {
        return Err(kept(why));
    }
    if letter.is_cut() {
        return Err(kept(format!(
            "only {} of its {} bytes are kept",
            letter.payload.as_ref().map_or(0, Vec::len),
            letter.summary.payload_size
        )));
    }
    record::decode(decoder, letter.payload.as_deref()).map_err(|refusal| {
        kept(format!(
            "{}: {}",
            <&str>::from(refusal.reason),
            refusal.detail
        ))
    })
}

/// The guard of the letter's partition, for which every message is a replay. If the partition is in another incarnation by now, nothing is known of the letter's but
/// its log.
fn guard_of(
    connection: &mut PgConnection,
    consumer: &Consumer,
    letter: &LetterSummary,
) -> QueryResult<Guard> {
    let incarnation = letter.incarnation;
    let row = operators::find(connection, consumer, letter.partition)?;
    let present = row.map(|row| row.guard());
    let log_since = present.map_or(incarnation, |guard| guard.log_since.min(incarnation));
    let replay_until = Some(Offset(i64::MAX));
    Ok(match present {
        Some(guard) if guard.incarnation == incarnation => Guard {
            replay_until,
            ..guard
        },
        _ => Guard {
            partition: letter.partition,
            incarnation,
            log_since,
            replay_until,
            doubt: Some(Doubt::ALL),
        },
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
        stored::take(
            connection,
            consumer,
            id,
            LetterState::New,
            LetterState::Dropped,
        )?
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
