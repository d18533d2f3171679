//! Letters are decided on: replayed through the same validation and the same writer, or dropped. Each once.

use diesel::dsl::now;
use diesel::prelude::*;
use diesel::result::Error as DieselError;
use shared::db::models::Source;
use shared::db::schema::dead_letters;

use super::stored::{LetterState, StoredLetter};
use crate::batch;
use crate::offsets::Consumer;
use crate::writer::{is_refusal, store_replayed};

/// What came of a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its order is stored.
    Replayed,
    /// Something newer is there; nothing was written.
    Superseded,
    /// It was given up.
    Dropped,
    /// It stays as it was; says why.
    Kept(String),
}

/// Why a letter could not be decided on.
#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    /// Somebody else has decided on it, or it is not there.
    #[error(
        "there is no new dead letter {0} of this group and topic: somebody has decided on it, or it never was"
    )]
    NotNew(i64),
    /// As the database says.
    #[error("{0}")]
    Query(#[from] DieselError),
}

/// What ends the transaction without a change.
enum Undone {
    Outcome(Outcome),
    Error(DecideError),
}

impl From<DieselError> for Undone {
    fn from(error: DieselError) -> Self {
        Self::Error(error.into())
    }
}

/// Stores the letter's order, if it is valid by now and nothing newer is there; `dry_run` changes nothing.
///
/// An order that was deleted comes back. What a message of a later incarnation wrote is newer than the letter.
///
/// # Errors
/// [`DecideError`]; nothing is changed then.
pub fn replay(
    connection: &mut PgConnection,
    consumer: &Consumer,
    id: i64,
    dry_run: bool,
) -> Result<Outcome, DecideError> {
    let done = connection.transaction(|connection| {
        // First of all: of two replays at once, the second waits here, and then finds no new letter.
        let letter = take(connection, consumer, id, LetterState::Replayed)?;
        if letter.is_cut() {
            return Err(kept(format!(
                "only {} of its {} bytes are kept",
                letter.payload.as_ref().map_or(0, Vec::len),
                letter.summary.payload_size
            )));
        }
        let order = batch::decode(letter.payload.as_deref())
            .map_err(|refusal| kept(format!("{}: {}", refusal.reason, refusal.detail)))?;
        let source = Source {
            partition: letter.summary.partition,
            incarnation: letter.summary.incarnation,
            offset: letter.summary.offset,
        };
        let written = store_replayed(connection, &order, source).map_err(|error| {
            if is_refusal(&error) {
                kept(format!("the database refuses it: {error}"))
            } else {
                error.into()
            }
        })?;
        if !written {
            set_state(connection, id, LetterState::Superseded)?;
        }
        let outcome = if written {
            Outcome::Replayed
        } else {
            Outcome::Superseded
        };
        end(outcome, dry_run)
    });
    settle(done)
}

/// Gives a letter up; `dry_run` changes nothing.
///
/// # Errors
/// [`DecideError`]; nothing is changed then.
pub fn drop_letter(
    connection: &mut PgConnection,
    consumer: &Consumer,
    id: i64,
    dry_run: bool,
) -> Result<Outcome, DecideError> {
    let done = connection.transaction(|connection| {
        take(connection, consumer, id, LetterState::Dropped)?;
        end(Outcome::Dropped, dry_run)
    });
    settle(done)
}

fn kept(why: String) -> Undone {
    Undone::Outcome(Outcome::Kept(why))
}

fn end(outcome: Outcome, dry_run: bool) -> Result<Outcome, Undone> {
    if dry_run {
        Err(Undone::Outcome(outcome))
    } else {
        Ok(outcome)
    }
}

fn settle(done: Result<Outcome, Undone>) -> Result<Outcome, DecideError> {
    match done {
        Ok(outcome) | Err(Undone::Outcome(outcome)) => Ok(outcome),
        Err(Undone::Error(error)) => Err(error),
    }
}

/// Takes the letter out of state `new`, or raises where it is not in it.
fn take(
    connection: &mut PgConnection,
    consumer: &Consumer,
    id: i64,
    state: LetterState,
) -> Result<StoredLetter, Undone> {
    let of_group = dead_letters::table
        .find(id)
        .filter(dead_letters::group_id.eq(&consumer.group_id))
        .filter(dead_letters::topic.eq(&consumer.topic))
        .filter(dead_letters::state.eq(LetterState::New.as_str()));
    let taken = diesel::update(of_group)
        .set((
            dead_letters::state.eq(state.as_str()),
            dead_letters::updated_at.eq(now),
        ))
        .returning(StoredLetter::as_returning())
        .get_result(connection)
        .optional()?;
    taken.ok_or(Undone::Error(DecideError::NotNew(id)))
}

fn set_state(connection: &mut PgConnection, id: i64, state: LetterState) -> QueryResult<()> {
    diesel::update(dead_letters::table.find(id))
        .set(dead_letters::state.eq(state.as_str()))
        .execute(connection)
        .map(|_| ())
}
