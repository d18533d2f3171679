//! What operators may change in a group's offsets. Every change raises the epoch and removes the owner. So the process
//! that reads the partition is fenced, reads the row again and claims the partition again.

use diesel::dsl::now;
use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::BigInt;
use shared::db::schema::{consumer_offsets, offset_incidents};
use uuid::Uuid;

use super::{INITIALISE_LOCK, Incident, OffsetRow, Patience, lock_row, new_rows, open_incident};
use crate::record::{Consumer, Offset, Partition};

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The database failed.
    #[error("{0}")]
    Query(#[from] DieselError),
    /// The change would be wrong. The text says why and what to do.
    #[error("{0}")]
    Refused(String),
}

fn refused<T>(reason: String) -> Result<T, OperatorError> {
    Err(OperatorError::Refused(reason))
}

/// Returns the rows of a group and topic, by partition.
///
/// # Errors
/// Returns the database's error.
pub fn list(connection: &mut PgConnection, consumer: &Consumer) -> QueryResult<Vec<OffsetRow>> {
    consumer_offsets::table
        .filter(consumer_offsets::group_id.eq(&consumer.group_id))
        .filter(consumer_offsets::topic.eq(&consumer.topic))
        .order(consumer_offsets::partition)
        .select(OffsetRow::as_select())
        .load(connection)
}

/// Returns the groups that have rows for the topic.
///
/// # Errors
/// Returns the database's error.
pub fn groups_of_topic(connection: &mut PgConnection, topic: &str) -> QueryResult<Vec<String>> {
    consumer_offsets::table
        .filter(consumer_offsets::topic.eq(topic))
        .select(consumer_offsets::group_id)
        .distinct()
        .order(consumer_offsets::group_id)
        .load(connection)
}

/// Creates rows at the given offsets.
///
/// # Errors
/// Returns [`OperatorError::Refused`] if one of the partitions has a row.
pub fn init(
    connection: &mut PgConnection,
    consumer: &Consumer,
    starts: &[(Partition, Offset)],
) -> Result<(), OperatorError> {
    connection.transaction(|connection| {
        diesel::sql_query("SELECT pg_advisory_xact_lock($1)")
            .bind::<BigInt, _>(INITIALISE_LOCK)
            .execute(connection)?;
        for row in list(connection, consumer)? {
            if starts.iter().any(|(partition, _)| *partition == row.partition) {
                return refused(format!(
                    "partition {} is already at offset {}: `ingestor offsets rewind` sets it back, and only an accepted \
                     gap sets it forward",
                    row.partition, row.next_offset
                ));
            }
        }
        diesel::insert_into(consumer_offsets::table)
            .values(new_rows(consumer, starts.iter().copied()))
            .execute(connection)?;
        Ok(())
    })
}

/// Accepts an incident exactly as it was recorded.
///
/// # Errors
/// Returns [`OperatorError::Refused`] if the incident is not open any more.
pub fn accept_gap(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: Partition,
    incident: &Incident,
) -> Result<(), OperatorError> {
    connection.transaction(|connection| {
        let row = lock_row(connection, consumer, partition, Patience::EndOurs)?;
        if open_incident(connection, consumer, partition)?.as_ref() != Some(incident) {
            return refused(format!(
                "incident {} of partition {partition} is not open any more; see `ingestor offsets show`",
                incident.id
            ));
        }
        if incident.resume_incarnation != row.incarnation {
            // The last record belongs to the incarnation that ends.
            forget_last_record(connection, consumer, partition)?;
        }
        diesel::update(row_of!(consumer, partition))
            .set((
                consumer_offsets::next_offset.eq(incident.resume_offset),
                consumer_offsets::incarnation.eq(incident.resume_incarnation),
            ))
            .execute(connection)?;
        fence_owner(connection, consumer, &row)?;
        let resolved_at = now.into_sql::<diesel::sql_types::Timestamptz>().nullable();
        diesel::update(offset_incidents::table.find(incident.id))
            .set(offset_incidents::resolved_at.eq(resolved_at))
            .execute(connection)?;
        Ok(())
    })
}

/// Sets partitions back: either all or none.
///
/// # Errors
/// Returns [`OperatorError::Refused`] if records would be skipped, or if a partition has an open incident.
pub fn rewind(
    connection: &mut PgConnection,
    consumer: &Consumer,
    targets: &[(Partition, Offset)],
) -> Result<(), OperatorError> {
    connection.transaction(|connection| {
        for &(partition, target) in targets {
            let row = lock_row(connection, consumer, partition, Patience::EndOurs)?;
            check_rewind(connection, consumer, &row, target)?;
            forget_last_record(connection, consumer, partition)?;
            diesel::update(row_of!(consumer, partition))
                .set(consumer_offsets::next_offset.eq(target))
                .execute(connection)?;
            fence_owner(connection, consumer, &row)?;
        }
        Ok(())
    })
}

/// Checks whether a partition may be set back to `target`.
///
/// # Errors
/// Returns [`OperatorError::Refused`] if records would be skipped, or if the partition has an open incident.
pub fn check_rewind(
    connection: &mut PgConnection,
    consumer: &Consumer,
    row: &OffsetRow,
    target: Offset,
) -> Result<(), OperatorError> {
    let (partition, next_offset) = (row.partition, row.next_offset);
    if target > next_offset {
        return refused(format!(
            "partition {partition} is at offset {next_offset}: going to {target} would skip records"
        ));
    }
    if let Some(incident) = open_incident(connection, consumer, partition)? {
        return refused(format!(
            "partition {partition} has an open incident, accept it first: {}",
            incident.detail
        ));
    }
    Ok(())
}

/// Resumes halted partitions.
///
/// # Errors
/// Returns the database's error.
pub fn resume(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partitions: &[Partition],
) -> Result<(), OperatorError> {
    connection.transaction(|connection| {
        for &partition in partitions {
            let row = lock_row(connection, consumer, partition, Patience::EndOurs)?;
            diesel::update(row_of!(consumer, partition))
                .set((
                    consumer_offsets::halted.eq(false),
                    consumer_offsets::consecutive_bad.eq(0),
                ))
                .execute(connection)?;
            fence_owner(connection, consumer, &row)?;
        }
        Ok(())
    })
}

fn forget_last_record(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: Partition,
) -> QueryResult<()> {
    diesel::update(row_of!(consumer, partition))
        .set((
            consumer_offsets::last_offset.eq(None::<Offset>),
            consumer_offsets::last_timestamp.eq(None::<i64>),
        ))
        .execute(connection)
        .map(drop)
}

/// Makes the process that reads the partition lose it. The row is locked.
fn fence_owner(
    connection: &mut PgConnection,
    consumer: &Consumer,
    row: &OffsetRow,
) -> QueryResult<()> {
    diesel::update(row_of!(consumer, row.partition))
        .set((
            consumer_offsets::epoch.eq(row.epoch.next()),
            consumer_offsets::owner.eq(None::<Uuid>),
            consumer_offsets::updated_at.eq(now),
        ))
        .execute(connection)
        .map(drop)
}
