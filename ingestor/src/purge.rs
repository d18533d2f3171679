//! Removes what is older than an age, in small transactions that disturb nobody. The ledger is not involved: reading an old
//! message again stores its order again.

use std::time::Instant;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use shared::db::schema::{dead_letters, orders};

use crate::deletion::{self, ORDERS_PER_STEP};

/// The most letters of one transaction.
const LETTERS_PER_STEP: i64 = 500;

/// Where a walk over all orders by age stands.
type Place = (DateTime<Utc>, String);

/// Removes the orders whose `date_created` and `created_at` both lie before `cutoff`, and tells after each step how many it has
/// removed. `dry_run` only counts them. An order that another session has locked is being changed, and stays.
///
/// # Errors
/// Returns the database's error. What was removed until then stays removed.
pub fn purge_orders(
    connection: &mut PgConnection,
    cutoff: DateTime<Utc>,
    dry_run: bool,
    progress: impl FnMut(usize),
) -> QueryResult<usize> {
    in_steps(
        connection,
        dry_run,
        progress,
        |connection, place| old_orders(connection, cutoff, place),
        |connection, old| connection.transaction(|connection| delete(connection, cutoff, old)),
    )
}

/// Walks to the end, from place to place. `look` returns where it stopped, and what is old up to there; no place at the end.
/// `remove` returns how much of that it has removed. A rest follows each removal.
fn in_steps<P, K>(
    connection: &mut PgConnection,
    dry_run: bool,
    mut progress: impl FnMut(usize),
    look: impl Fn(&mut PgConnection, Option<P>) -> QueryResult<(Option<P>, Vec<K>)>,
    remove: impl Fn(&mut PgConnection, &[K]) -> QueryResult<usize>,
) -> QueryResult<usize> {
    let mut removed = 0;
    let mut place = None;
    loop {
        let started_at = Instant::now();
        let (next, old) = look(connection, place)?;
        if next.is_none() {
            return Ok(removed);
        }
        place = next;
        if dry_run {
            removed += old.len();
        } else if !old.is_empty() {
            removed += remove(connection, &old)?;
            deletion::rest(started_at);
        }
        progress(removed);
    }
}

/// Looks at the next orders by `date_created`. Returns where it stopped, and those of them that are old; no place at the end.
fn old_orders(
    connection: &mut PgConnection,
    cutoff: DateTime<Utc>,
    after: Option<Place>,
) -> QueryResult<(Option<Place>, Vec<String>)> {
    let mut query = orders::table
        .filter(orders::date_created.lt(cutoff))
        .into_boxed();
    if let Some((date_created, uid)) = &after {
        let is_after = orders::date_created
            .gt(date_created)
            .or(orders::order_uid.gt(uid));
        query = query
            .filter(orders::date_created.ge(date_created))
            .filter(is_after);
    }
    let rows: Vec<(DateTime<Utc>, String, DateTime<Utc>)> = query
        .select((orders::date_created, orders::order_uid, orders::created_at))
        .order((orders::date_created, orders::order_uid))
        .limit(ORDERS_PER_STEP)
        .load(connection)?;
    let next = rows
        .last()
        .map(|(date_created, uid, _)| (*date_created, uid.clone()));
    let old = rows.into_iter().filter(|(_, _, at)| *at < cutoff);
    Ok((next, old.map(|(_, uid, _)| uid).collect()))
}

/// Deletes those of the orders that are still old and that nobody has locked.
fn delete(
    connection: &mut PgConnection,
    cutoff: DateTime<Utc>,
    uids: &[String],
) -> QueryResult<usize> {
    let locked: Vec<String> = orders::table
        .filter(orders::order_uid.eq_any(uids))
        .filter(orders::date_created.lt(cutoff))
        .filter(orders::created_at.lt(cutoff))
        .select(orders::order_uid)
        .order(orders::order_uid)
        .for_update()
        .skip_locked()
        .load(connection)?;
    deletion::delete_locked(connection, &locked)?;
    Ok(locked.len())
}

/// Removes the dead letters that were written before `cutoff`, of every group and topic and in every state, and tells after
/// each step how many it has removed. `dry_run` only counts them.
///
/// # Errors
/// Returns the database's error. What was removed until then stays removed.
pub fn purge_letters(
    connection: &mut PgConnection,
    cutoff: DateTime<Utc>,
    dry_run: bool,
    progress: impl FnMut(usize),
) -> QueryResult<usize> {
    in_steps(
        connection,
        dry_run,
        progress,
        |connection, after| old_letters(connection, cutoff, after),
        |connection, old| {
            diesel::delete(dead_letters::table.filter(dead_letters::id.eq_any(old)))
                .execute(connection)
        },
    )
}

/// Looks at the next letters by number. Numbers and times rise together, but not strictly.
fn old_letters(
    connection: &mut PgConnection,
    cutoff: DateTime<Utc>,
    after: Option<i64>,
) -> QueryResult<(Option<i64>, Vec<i64>)> {
    let rows: Vec<(i64, DateTime<Utc>)> = dead_letters::table
        .filter(dead_letters::id.gt(after.unwrap_or(0)))
        .select((dead_letters::id, dead_letters::created_at))
        .order(dead_letters::id)
        .limit(LETTERS_PER_STEP)
        .load(connection)?;
    let next = rows.last().map(|(id, _)| *id);
    let old = rows.into_iter().filter(|(_, at)| *at < cutoff);
    Ok((next, old.map(|(id, _)| id).collect()))
}
