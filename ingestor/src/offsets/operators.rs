//! What operators may do to a group's offsets. Every change raises the epoch and takes the owner away, so that whoever
//! reads the partition is fenced, looks at the row again and claims it anew.

use chrono::{DateTime, Utc};
use diesel::dsl::now;
use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::BigInt;
use shared::db::schema::{consumer_offsets, offset_incidents};
use uuid::Uuid;

use super::{Consumer, INITIALISE_LOCK, Incident, lock_row, open_incident};
use crate::batch::Position;

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The database failed.
    #[error("{0}")]
    Query(#[from] DieselError),
    /// It would not be right; says why and what to do.
    #[error("{0}")]
    Refused(String),
}

fn refused<T>(reason: String) -> Result<T, OperatorError> {
    Err(OperatorError::Refused(reason))
}

/// A partition's row, for people.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = consumer_offsets, check_for_backend(diesel::pg::Pg))]
pub struct Progress {
    /// Partition.
    pub partition: i32,
    /// Where to read on.
    pub next_offset: i64,
    /// Raised by every claim.
    pub epoch: i64,
    /// The process that claimed it last.
    pub owner: Option<Uuid>,
    /// Which topic of that name.
    pub incarnation: i32,
    /// Offset of the last record that was read.
    pub last_offset: Option<i64>,
    /// Its timestamp in milliseconds since 1970.
    pub last_timestamp: Option<i64>,
    /// Dead letters since the last good order.
    pub consecutive_bad: i64,
    /// Not read until resumed.
    pub halted: bool,
    /// Records below were read before a rewind.
    pub replay_until: Option<i64>,
    /// When the row changed last.
    pub updated_at: DateTime<Utc>,
}

impl Progress {
    /// The last record that was read.
    pub fn last_record(&self) -> Option<Position> {
        Some(Position {
            offset: self.last_offset?,
            timestamp_ms: self.last_timestamp,
        })
    }
}

/// The rows of a group and topic, by partition.
///
/// # Errors
/// Fails as the database does.
pub fn list(connection: &mut PgConnection, consumer: &Consumer) -> QueryResult<Vec<Progress>> {
    consumer_offsets::table
        .filter(consumer_offsets::group_id.eq(&consumer.group_id))
        .filter(consumer_offsets::topic.eq(&consumer.topic))
        .order(consumer_offsets::partition)
        .select(Progress::as_select())
        .load(connection)
}

/// The groups that have rows for the topic.
///
/// # Errors
/// Fails as the database does.
pub fn groups_of_topic(connection: &mut PgConnection, topic: &str) -> QueryResult<Vec<String>> {
    consumer_offsets::table
        .filter(consumer_offsets::topic.eq(topic))
        .select(consumer_offsets::group_id)
        .distinct()
        .order(consumer_offsets::group_id)
        .load(connection)
}

/// Makes rows at the given offsets.
///
/// # Errors
/// Refuses where one of the partitions has a row.
pub fn init(
    connection: &mut PgConnection,
    consumer: &Consumer,
    starts: &[(i32, i64)],
) -> Result<(), OperatorError> {
    connection.transaction(|connection| {
        diesel::sql_query("SELECT pg_advisory_xact_lock($1)")
            .bind::<BigInt, _>(INITIALISE_LOCK)
            .execute(connection)?;
        for row in list(connection, consumer)? {
            if starts.iter().any(|(partition, _)| *partition == row.partition) {
                return refused(format!(
                    "partition {} is at offset {} already; `ingestor offsets rewind` sets it back, and nothing sets it \
                     forward but an accepted gap",
                    row.partition, row.next_offset
                ));
            }
        }
        let rows: Vec<_> = starts
            .iter()
            .map(|(partition, next_offset)| {
                (
                    consumer_offsets::group_id.eq(&consumer.group_id),
                    consumer_offsets::topic.eq(&consumer.topic),
                    consumer_offsets::partition.eq(*partition),
                    consumer_offsets::next_offset.eq(*next_offset),
                )
            })
            .collect();
        diesel::insert_into(consumer_offsets::table)
            .values(rows)
            .execute(connection)?;
        Ok(())
    })
}

/// Accepts an incident exactly as it was recorded.
///
/// # Errors
/// Refuses where it is not open any more.
pub fn accept_gap(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: i32,
    incident: &Incident,
) -> Result<(), OperatorError> {
    connection.transaction(|connection| {
        let row = lock_row(connection, consumer, partition)?;
        if open_incident(connection, consumer, partition)?.as_ref() != Some(incident) {
            return refused(format!(
                "incident {} of partition {partition} is not open any more; see `ingestor offsets show`",
                incident.id
            ));
        }
        if incident.resume_incarnation != row.incarnation {
            // These stand for records of the topic as it was.
            diesel::update(row_of!(consumer, partition))
                .set((
                    consumer_offsets::last_offset.eq(None::<i64>),
                    consumer_offsets::last_timestamp.eq(None::<i64>),
                    consumer_offsets::replay_until.eq(None::<i64>),
                ))
                .execute(connection)?;
        }
        diesel::update(row_of!(consumer, partition))
            .set((
                consumer_offsets::next_offset.eq(incident.resume_offset),
                consumer_offsets::incarnation.eq(incident.resume_incarnation),
                consumer_offsets::epoch.eq(row.epoch + 1),
                consumer_offsets::owner.eq(None::<Uuid>),
                consumer_offsets::updated_at.eq(now),
            ))
            .execute(connection)?;
        diesel::update(offset_incidents::table.find(incident.id))
            .set(offset_incidents::resolved_at.eq(now.into_sql::<diesel::sql_types::Timestamptz>().nullable()))
            .execute(connection)?;
        Ok(())
    })
}

/// Sets partitions back, all or none.
///
/// # Errors
/// Refuses to skip records, and a partition with an open incident.
pub fn rewind(
    connection: &mut PgConnection,
    consumer: &Consumer,
    targets: &[(i32, i64)],
) -> Result<(), OperatorError> {
    connection.transaction(|connection| {
        for (partition, target) in targets {
            let row = lock_row(connection, consumer, *partition)?;
            check_rewind(connection, consumer, *partition, row.next_offset, *target)?;
            diesel::update(row_of!(consumer, *partition))
                .set((
                    consumer_offsets::next_offset.eq(*target),
                    consumer_offsets::replay_until.eq(row.replay_until.max(Some(row.next_offset))),
                    consumer_offsets::last_offset.eq(None::<i64>),
                    consumer_offsets::last_timestamp.eq(None::<i64>),
                    consumer_offsets::epoch.eq(row.epoch + 1),
                    consumer_offsets::owner.eq(None::<Uuid>),
                    consumer_offsets::updated_at.eq(now),
                ))
                .execute(connection)?;
        }
        Ok(())
    })
}

/// Whether a partition may be set back to `target`.
///
/// # Errors
/// Refuses to skip records, and a partition with an open incident.
pub fn check_rewind(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: i32,
    next_offset: i64,
    target: i64,
) -> Result<(), OperatorError> {
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

/// Lets halted partitions run again.
///
/// # Errors
/// Fails as the database does.
pub fn resume(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partitions: &[i32],
) -> Result<(), OperatorError> {
    connection.transaction(|connection| {
        for partition in partitions {
            let row = lock_row(connection, consumer, *partition)?;
            diesel::update(row_of!(consumer, *partition))
                .set((
                    consumer_offsets::halted.eq(false),
                    consumer_offsets::consecutive_bad.eq(0),
                    consumer_offsets::epoch.eq(row.epoch + 1),
                    consumer_offsets::owner.eq(None::<Uuid>),
                    consumer_offsets::updated_at.eq(now),
                ))
                .execute(connection)?;
        }
        Ok(())
    })
}
