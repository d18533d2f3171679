//! The same functions in a build without failpoints: they do nothing.

use diesel::prelude::*;

use super::{Phase, Plant};
use crate::batch::Batch;
use crate::dead_letters::DeadLetter;
use crate::record::{Consumer, Epoch};

/// Nothing is armed.
pub struct Armed;

/// Arms nothing.
pub fn arm() -> Armed {
    Armed
}

/// Continues.
#[inline(always)]
pub fn reached(_phase: Phase) {}

/// No fault is ever planted.
#[inline(always)]
pub fn is_planted(_plant: Plant) -> bool {
    false
}

/// Leaves the fence as it is.
#[inline(always)]
pub fn open_fence(_: &mut PgConnection, _: &Consumer, _: Epoch, _: &Batch) -> QueryResult<()> {
    Ok(())
}

/// Leaves the transaction as it is.
#[inline(always)]
pub fn commit_offset(_: &mut PgConnection) -> QueryResult<()> {
    Ok(())
}

/// Does the work.
#[inline(always)]
pub fn skip_on_error<T: Default>(
    connection: &mut PgConnection,
    work: impl FnOnce(&mut PgConnection) -> QueryResult<T>,
) -> QueryResult<T> {
    work(connection)
}

/// Returns all of them.
#[inline(always)]
pub fn unless_swallowed(letters: &[DeadLetter]) -> &[DeadLetter] {
    letters
}
