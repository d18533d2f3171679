//! Locks a partition's row, and deals with a session that holds it.
//!
//! A daemon never waits for a row within a statement, because its writer has other partitions. It tries, does something else,
//! and tries again. Only an operator's command waits here.

use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::{Bool, Integer, Text};
use shared::db::schema::consumer_offsets;
use tracing::warn;

use super::OffsetRow;
use crate::record::{Consumer, Partition};

/// How long a row may be held before somebody looks who holds it. A claim then ends the session if it is one of ours. A
/// process that is frozen inside a transaction holds the row for ever: no timeout of the server ends a session stopped
/// inside COPY.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How long an operator's command waits in all.
const COMMAND_WAIT: Duration = Duration::from_secs(5);
/// The time between two attempts to lock a row.
pub const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What to do about a session that does not release the row in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// End it if it is one of ours: it is considered frozen, and the partition is not its any more.
    EndOurs,
    /// Leave it alone.
    Wait,
}

/// The outcome of an attempt to lock a partition's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RowLock {
    /// It is locked until the transaction ends.
    Ours(OffsetRow),
    /// Another session holds it.
    Held,
    /// The partition has no row.
    Missing,
}

/// Tries to lock the partition's row, and does not wait.
///
/// # Errors
/// Returns the database's error.
pub(super) fn try_lock_row(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: Partition,
) -> QueryResult<RowLock> {
    let row = row_of!(consumer, partition)
        .select(OffsetRow::as_select())
        .for_update()
        .skip_locked()
        .first(connection)
        .optional()?;
    if let Some(row) = row {
        return Ok(RowLock::Ours(row));
    }
    let row = row_of!(consumer, partition).select(consumer_offsets::partition);
    let exists: bool = diesel::select(diesel::dsl::exists(row)).get_result(connection)?;
    Ok(if exists {
        RowLock::Held
    } else {
        RowLock::Missing
    })
}

/// Returns whether another session holds the partition's row now.
///
/// # Errors
/// Returns the database's error.
pub fn is_row_held(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: Partition,
) -> QueryResult<bool> {
    // Outside of a transaction the lock ends with the statement.
    Ok(try_lock_row(connection, consumer, partition)? == RowLock::Held)
}

/// Locks the partition's row for an operator's command, and waits for a few seconds.
///
/// # Errors
/// Returns the database's error, and `NotFound` if the row is locked for too long or does not exist.
pub(super) fn lock_row(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: Partition,
    patience: Patience,
) -> QueryResult<OffsetRow> {
    let started_at = Instant::now();
    let mut has_looked = false;
    loop {
        match try_lock_row(connection, consumer, partition)? {
            RowLock::Ours(row) => return Ok(row),
            RowLock::Missing => return Err(DieselError::NotFound),
            RowLock::Held => {}
        }
        if !has_looked && started_at.elapsed() > LOCK_PATIENCE {
            has_looked = true;
            let holders = deal_with_holders(connection, consumer, partition, patience)?;
            if holders.iter().any(|holder| !holder.is_ended) {
                warn!("waiting: {}", held_reason(partition, &holders));
            }
        }
        if started_at.elapsed() > COMMAND_WAIT {
            return Err(DieselError::NotFound);
        }
        std::thread::sleep(LOCK_POLL_INTERVAL);
    }
}

/// A session that holds a partition's row.
#[derive(Clone, Debug, PartialEq, Eq, QueryableByName)]
pub struct Holder {
    /// The process of the server that serves it.
    #[diesel(sql_type = Integer)]
    pub pid: i32,
    /// The name that it gave itself.
    #[diesel(sql_type = Text)]
    pub application: String,
    /// Whether it was ended.
    #[diesel(sql_type = Bool)]
    pub is_ended: bool,
}

/// Tells an operator that a partition waits for its row, and who holds it. Nobody is known to hold a row that several sessions
/// share.
pub fn held_reason(partition: Partition, holders: &[Holder]) -> String {
    let names: Vec<String> = (holders.iter())
        .map(|holder| format!("{:?} with pid {}", holder.application, holder.pid))
        .collect();
    let who = if names.is_empty() {
        "another session".to_owned()
    } else {
        format!("another session ({})", names.join(", "))
    };
    format!(
        "{who} has locked the row of partition {partition} in consumer_offsets; end that transaction"
    )
}

/// Finds the session whose transaction has locked or changed the row. With [`Patience::EndOurs`] ends it if it is one of ours:
/// if it has the name of this one. The row's `xmax` is that transaction, and `pg_locks` has the session of every transaction.
///
/// If several sessions share the lock, `xmax` is no transaction but a number for all of them, and nobody is found. Ours never
/// share a lock. Such a number may be that of an unrelated transaction, so the session must also have locked the table.
///
/// # Errors
/// Returns the database's error, for example because a role of ours may not end a superuser's session.
pub fn deal_with_holders(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: Partition,
    patience: Patience,
) -> QueryResult<Vec<Holder>> {
    let holders: Vec<Holder> = diesel::sql_query(
        // MATERIALIZED: otherwise the planner may end the session of every lock that it looks at.
        "WITH holder AS MATERIALIZED (
             SELECT held.pid, activity.application_name FROM consumer_offsets AS row
               JOIN pg_locks AS held ON held.locktype = 'transactionid' AND held.transactionid = row.xmax
                                    AND held.granted AND held.mode = 'ExclusiveLock'
               JOIN pg_stat_activity AS activity ON activity.pid = held.pid
              WHERE row.group_id = $1 AND row.topic = $2 AND row.partition = $3
                AND held.pid <> pg_backend_pid()
                AND EXISTS (SELECT FROM pg_locks AS used
                             WHERE used.pid = held.pid AND used.locktype = 'relation'
                               AND used.relation = 'consumer_offsets'::regclass))
         SELECT pid, coalesce(application_name, '') AS application,
                CASE WHEN $4 AND application_name = current_setting('application_name')
                     THEN pg_terminate_backend(pid) ELSE false END AS is_ended
           FROM holder",
    )
    .bind::<Text, _>(&consumer.group_id)
    .bind::<Text, _>(&consumer.topic)
    .bind::<Integer, _>(partition)
    .bind::<Bool, _>(patience == Patience::EndOurs)
    .load(connection)?;
    for holder in holders.iter().filter(|holder| holder.is_ended) {
        warn!(
            kafka.partition = partition.0,
            holder.pid, "ended a session of ours that held the partition's row"
        );
    }
    Ok(holders)
}
