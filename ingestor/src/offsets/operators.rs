//! What operators may change in a group's offsets. Every change raises the epoch and removes the owner. So the process
//! that reads the partition is fenced, reads the row again and claims the partition again.

use chrono::{DateTime, Utc};
use diesel::dsl::now;
use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::{BigInt, Text};
use shared::db::schema::{consumer_offsets, offset_incidents, orders, removed_orders};
use uuid::Uuid;

use super::acceptance::{self, Decision};
use super::{INITIALISE_LOCK, Incident, OffsetRow, Patience, lock_row, new_rows, open_incident};
use crate::record::{Consumer, Incarnation, Offset, Partition};

diesel::define_sql_function! {
    /// Draws the next value of a sequence.
    fn nextval(sequence: Text) -> BigInt;
}

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

/// Returns the row of a partition.
///
/// # Errors
/// Returns the database's error.
pub fn find(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: Partition,
) -> QueryResult<Option<OffsetRow>> {
    row_of!(consumer, partition)
        .select(OffsetRow::as_select())
        .first(connection)
        .optional()
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

/// Accepts an incident, and returns the row as it is from then on.
///
/// # Errors
/// Returns [`OperatorError::Refused`] if the incident is not open any more, or if the decision does not say where reading
/// continues.
pub fn accept_gap(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: Partition,
    incident: &Incident,
    decision: Decision,
) -> Result<OffsetRow, OperatorError> {
    connection.transaction(|connection| {
        let row = lock_row(connection, consumer, partition, Patience::EndOurs)?;
        if open_incident(connection, consumer, partition)?.as_ref() != Some(incident) {
            return refused(format!(
                "incident {} of partition {partition} is not open any more; see `ingestor offsets show`",
                incident.id
            ));
        }
        let incarnation = new_incarnation(connection)?;
        let now_ms = Utc::now().timestamp_millis();
        let accepted = acceptance::accept(&row, incident, decision, incarnation, now_ms)
            .map_err(OperatorError::Refused)?;
        diesel::update(row_of!(consumer, partition))
            .set((
                consumer_offsets::next_offset.eq(accepted.next_offset),
                consumer_offsets::incarnation.eq(accepted.incarnation),
                consumer_offsets::last_offset.eq(accepted.last_offset),
                consumer_offsets::last_timestamp.eq(accepted.last_timestamp),
                consumer_offsets::replay_until.eq(accepted.replay_until),
                consumer_offsets::witnesses.eq(accepted.witnesses.to_numbers()),
                consumer_offsets::log_since.eq(accepted.log_since),
                consumer_offsets::doubt_until.eq(accepted.doubt_until),
                consumer_offsets::doubt_timestamp.eq(accepted.doubt_timestamp),
            ))
            .execute(connection)?;
        fence_owner(connection, consumer, &row)?;
        let resolved_at = now.into_sql::<diesel::sql_types::Timestamptz>().nullable();
        diesel::update(offset_incidents::table.find(incident.id))
            .set((
                offset_incidents::resume_offset.eq(accepted.next_offset),
                offset_incidents::resume_incarnation.eq(accepted.incarnation),
                offset_incidents::resolved_at.eq(resolved_at),
            ))
            .execute(connection)?;
        Ok(accepted)
    })
}

fn new_incarnation(connection: &mut PgConnection) -> Result<Incarnation, OperatorError> {
    let drawn: i64 = diesel::select(nextval("incarnation_seq")).get_result(connection)?;
    match i32::try_from(drawn) {
        Ok(number) => Ok(Incarnation(number)),
        Err(_) => refused(format!(
            "the sequence incarnation_seq is at {drawn}, which is too high"
        )),
    }
}

/// What the api and `ingestor erase` have done to orders, and no message has undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changes {
    /// Orders that were last written by the api.
    pub put: i64,
    /// Orders and customers that were removed.
    pub removed: i64,
}

/// Returns what was changed since a time in milliseconds since 1970, or at any time.
///
/// # Errors
/// Returns the database's error.
pub fn changes_since(connection: &mut PgConnection, since_ms: Option<i64>) -> QueryResult<Changes> {
    let mut put = orders::table
        .filter(orders::source_partition.is_null())
        .count()
        .into_boxed();
    let mut removed = removed_orders::table.count().into_boxed();
    if let Some(since) = since_ms.and_then(DateTime::<Utc>::from_timestamp_millis) {
        put = put.filter(orders::updated_at.ge(since));
        removed = removed.filter(removed_orders::removed_at.ge(since));
    }
    Ok(Changes {
        put: put.get_result(connection)?,
        removed: removed.get_result(connection)?,
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
