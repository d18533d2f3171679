//! Locks a partition's row, even if a frozen process holds it.

use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::{Bool, Integer, Text};
use shared::db::schema::consumer_offsets;
use tracing::warn;

use super::OffsetRow;
use crate::record::{Consumer, Partition};

/// How long a claim waits for another process's transaction before it ends that process's session. A process that is
/// frozen inside a transaction holds the row for ever: no timeout of the server ends a session stopped inside COPY.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How long a claim waits in all. Then the writer looks whether it is to stop, and comes back.
const CLAIM_WAIT: Duration = Duration::from_secs(5);
/// How long a re-read waits. A COMMIT of ours that is still running takes less.
const REREAD_WAIT: Duration = Duration::from_secs(1);
/// The time between two looks at a locked row.
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What to do about a session that does not release the row in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// End it if it is one of ours: it is considered frozen, and the partition is not its any more.
    EndOurs,
    /// Leave it alone.
    Wait,
}

/// Locks the partition's row.
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
    let mut has_looked = patience == Patience::Wait;
    let max_wait = match patience {
        Patience::EndOurs => CLAIM_WAIT,
        Patience::Wait => REREAD_WAIT,
    };
    loop {
        let row = row_of!(consumer, partition)
            .select(OffsetRow::as_select())
            .for_update()
            .skip_locked()
            .first(connection)
            .optional()?;
        if let Some(row) = row {
            return Ok(row);
        }
        if !has_looked && started_at.elapsed() > LOCK_PATIENCE {
            has_looked = true;
            for holder in deal_with_holders(connection, consumer, partition)? {
                report(partition, &holder);
            }
        }
        if started_at.elapsed() > max_wait {
            return Err(DieselError::NotFound);
        }
        std::thread::sleep(LOCK_POLL_INTERVAL);
    }
}

/// A session that holds the row.
#[derive(QueryableByName)]
struct Holder {
    #[diesel(sql_type = Integer)]
    pid: i32,
    #[diesel(sql_type = Text)]
    application: String,
    /// Whether the session was ended.
    #[diesel(sql_type = Bool)]
    is_ended: bool,
}

fn report(partition: Partition, holder: &Holder) {
    let (pid, application) = (holder.pid, holder.application.as_str());
    if holder.is_ended {
        warn!(
            kafka.partition = partition.0,
            holder.pid = pid,
            "ended a session of ours that held the partition's row"
        );
    } else {
        warn!(
            kafka.partition = partition.0,
            holder.pid = pid,
            holder.application = application,
            "the partition waits: another session has locked its row in consumer_offsets; end that transaction"
        );
    }
}

/// Finds the session whose transaction has locked or changed the row, and ends it if it is one of ours: if it has the name of
/// this one. The row's `xmax` is that transaction, and `pg_locks` has the session of every transaction.
///
/// If several sessions share the lock, `xmax` is no transaction but a number for all of them, and nobody is found. Ours never
/// share a lock. Such a number may be that of an unrelated transaction, so the session must also have locked the table.
fn deal_with_holders(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: Partition,
) -> QueryResult<Vec<Holder>> {
    diesel::sql_query(
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
                CASE WHEN application_name = current_setting('application_name')
                     THEN pg_terminate_backend(pid) ELSE false END AS is_ended
           FROM holder",
    )
    .bind::<Text, _>(&consumer.group_id)
    .bind::<Text, _>(&consumer.topic)
    .bind::<Integer, _>(partition)
    .load(connection)
}
