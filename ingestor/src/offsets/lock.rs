//! Locks a partition's row, even if a frozen process holds it.

use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::{Integer, Text};
use shared::db::schema::consumer_offsets;
use tracing::warn;

use super::OffsetRow;
use crate::record::{Consumer, Partition};

/// How long a claim waits for another process's transaction before it ends that process's session. A process that is
/// frozen inside a transaction holds the row for ever: no timeout of the server ends a session stopped inside COPY.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How long it then waits for the lock to be released.
const TERMINATION_PATIENCE: Duration = Duration::from_secs(10);
/// The time between two looks at a locked row.
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Locks the partition's row. A holder that does not release it in time is considered frozen, and its session is ended.
pub(super) fn lock_row(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: Partition,
) -> QueryResult<OffsetRow> {
    let started_at = Instant::now();
    let mut has_terminated = false;
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
        if !has_terminated && started_at.elapsed() > LOCK_PATIENCE {
            has_terminated = true;
            for holder in terminate_holder(connection, consumer, partition)? {
                warn!(
                    kafka.partition = partition.0,
                    holder.pid = holder,
                    "ended a session that held the partition's row"
                );
            }
        }
        if started_at.elapsed() > LOCK_PATIENCE + TERMINATION_PATIENCE {
            return Err(DieselError::NotFound);
        }
        std::thread::sleep(LOCK_POLL_INTERVAL);
    }
}

/// Ends the session whose transaction has locked or changed the row. The row's `xmax` is that transaction, and `pg_locks`
/// has the session of every transaction.
fn terminate_holder(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: Partition,
) -> QueryResult<Vec<i32>> {
    #[derive(QueryableByName)]
    struct Holder {
        #[diesel(sql_type = Integer)]
        pid: i32,
    }
    let holders: Vec<Holder> = diesel::sql_query(
        // MATERIALIZED: otherwise the planner may end the session of every lock that it looks at.
        "WITH holder AS MATERIALIZED (
             SELECT held.pid FROM consumer_offsets AS row
               JOIN pg_locks AS held ON held.locktype = 'transactionid' AND held.transactionid = row.xmax
                                    AND held.granted AND held.mode = 'ExclusiveLock'
              WHERE row.group_id = $1 AND row.topic = $2 AND row.partition = $3
                AND held.pid <> pg_backend_pid())
         SELECT pid FROM holder WHERE pg_terminate_backend(pid)",
    )
    .bind::<Text, _>(&consumer.group_id)
    .bind::<Text, _>(&consumer.topic)
    .bind::<Integer, _>(partition)
    .load(connection)?;
    Ok(holders.into_iter().map(|holder| holder.pid).collect())
}
