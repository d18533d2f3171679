//! The table `consumer_offsets`: claims, the fence and re-reading; `incidents` and what [`operators`] may do.
//!
//! A partition's row is the truth about how far the partition is stored. A claim raises the row's epoch. The first
//! statement of every batch advances the row, and the database rejects a batch of an older epoch.

use chrono::{DateTime, Utc};
use diesel::dsl;
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Uuid as SqlUuid};
use shared::db::schema::consumer_offsets;
use uuid::Uuid;

use crate::batch::Batch;
use crate::guard::{Doubt, Guard};
use crate::record::{Consumer, Epoch, Incarnation, Offset, Partition};
use crate::witnesses::Witnesses;
use incidents::find_gap;
pub use incidents::{Glimpse, Incident, Sighting, open_incident};
pub use lock::{
    Holder, LOCK_PATIENCE, LOCK_POLL_INTERVAL, Patience, deal_with_holders, held_reason,
    is_row_held,
};
use lock::{RowLock, lock_row, try_lock_row};

/// Selects the row of a partition.
macro_rules! row_of {
    ($consumer:expr, $partition:expr) => {
        consumer_offsets::table.find((&$consumer.group_id, &$consumer.topic, $partition))
    };
}

pub mod acceptance;
pub mod incidents;
mod lock;
pub mod operators;

diesel::define_sql_function! {
    /// A function of the migrations.
    #[expect(clippy::too_many_arguments, reason = "the database defines the parameters")]
    fn advance_consumer_offset(
        group_id: Text,
        topic: Text,
        partition: Integer,
        epoch: BigInt,
        owner: SqlUuid,
        old_next_offset: BigInt,
        new_next_offset: BigInt,
        last_offset: Nullable<BigInt>,
        last_timestamp: Nullable<BigInt>,
        consecutive_bad: BigInt,
        halted: Bool,
        witnesses: Array<BigInt>,
        max_timestamp: Nullable<BigInt>,
    ) -> BigInt;
}

/// The constraint that `advance_consumer_offset` names in its error. diesel hides the SQLSTATE.
const FENCE_CONSTRAINT: &str = "consumer_offsets_fence";

/// The advisory lock under which processes create a group's rows one after the other.
const INITIALISE_LOCK: i64 = 0x6f66_6673_6574;

/// A partition that is ours until somebody claims it with a higher epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The epoch under which our batches advance.
    pub epoch: Epoch,
    /// The offset to continue from.
    pub next_offset: Offset,
    /// Decides about records that may have been read before.
    pub guard: Guard,
    /// Dead letters since the last good order.
    pub consecutive_bad: i64,
    /// Records that were read.
    pub witnesses: Witnesses,
    /// The partition's end when it was claimed.
    pub end_offset: Offset,
}

/// The outcome of an attempt to claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// The partition is ours.
    Claimed(Claim),
    /// The brokers' offsets do not match the row. This was seen for the first time and must be confirmed.
    Doubtful,
    /// An operator has to decide, as before. The text says what and how.
    Stopped(String),
    /// An operator has to decide about something new. The text says what and how.
    Incident(String),
    /// Another session holds the row.
    Locked,
    /// The row is gone.
    Missing,
}

/// The outcome of re-reading a partition's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reread {
    /// The partition is still ours, at this offset.
    Ours(Offset),
    /// It is not ours any more, it has halted, or its row is gone.
    Lost,
    /// Another session holds the row.
    Locked,
}

/// Whether a partition may be claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has no row yet.
    Missing,
    /// An operator has to decide. The text says what and how.
    Stopped(String),
    /// It may be claimed if this matches what the brokers hold.
    Claimable(Glimpse),
}

/// The row of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = consumer_offsets, check_for_backend(diesel::pg::Pg))]
pub struct OffsetRow {
    /// The partition.
    pub partition: Partition,
    /// The offset to continue from.
    pub next_offset: Offset,
    /// Raised by every claim.
    pub epoch: Epoch,
    /// The process that claimed it last.
    pub owner: Option<Uuid>,
    /// The partition's incarnation.
    pub incarnation: Incarnation,
    /// The offset of the last record that was read.
    pub last_offset: Option<Offset>,
    /// Its timestamp in milliseconds since 1970.
    pub last_timestamp: Option<i64>,
    /// Dead letters since the last good order.
    pub consecutive_bad: i64,
    /// Whether the partition is not read until an operator resumes it.
    pub halted: bool,
    /// Records below this offset were read before a rewind.
    pub replay_until: Option<Offset>,
    /// When the row changed last.
    pub updated_at: DateTime<Utc>,
    /// Records that were read.
    #[diesel(deserialize_as = Vec<i64>)]
    pub witnesses: Witnesses,
    /// The highest timestamp of all records that were read, in milliseconds since 1970.
    pub max_timestamp: Option<i64>,
    /// See [`Guard::log_since`]; none: the present incarnation.
    pub log_since: Option<Incarnation>,
    /// See [`Doubt::until`].
    pub doubt_until: Option<Offset>,
    /// See [`Doubt::timestamp_ms`]; none: there is no doubt.
    pub doubt_timestamp: Option<i64>,
}

impl OffsetRow {
    /// The first incarnation of the same log.
    pub fn log_since(&self) -> Incarnation {
        self.log_since.unwrap_or(self.incarnation)
    }

    /// Which records may have been read in an earlier incarnation.
    pub fn doubt(&self) -> Option<Doubt> {
        self.doubt_timestamp.map(|timestamp_ms| Doubt {
            until: self.doubt_until,
            timestamp_ms,
        })
    }

    /// Says which records may have been read in an earlier incarnation.
    pub fn set_doubt(&mut self, doubt: Doubt) {
        self.doubt_until = doubt.until;
        self.doubt_timestamp = Some(doubt.timestamp_ms);
    }

    /// Decides about records that may have been read before.
    pub fn guard(&self) -> Guard {
        Guard {
            partition: self.partition,
            incarnation: self.incarnation,
            log_since: self.log_since(),
            replay_until: self.replay_until,
            doubt: self.doubt(),
        }
    }

    /// What is compared with the brokers' log.
    pub fn glimpse(&self) -> Glimpse {
        Glimpse {
            incarnation: self.incarnation,
            next_offset: self.next_offset,
            witnesses: self.witnesses.clone(),
        }
    }
}

/// Creates the rows of a group that reads a topic for the first time, or of a partition that was added to the topic.
///
/// `lows` are the low watermarks of all partitions of the topic. All rows are created at once. If only some rows are
/// missing, their partitions are new, and a new partition is read from 0.
///
/// Returns `Ok(Some(reason))` if an operator has to decide instead.
///
/// # Errors
/// Returns the database's error.
pub fn initialise(
    connection: &mut PgConnection,
    consumer: &Consumer,
    lows: &[(Partition, Offset)],
) -> QueryResult<Option<String>> {
    connection.transaction(|connection| {
        diesel::sql_query("SELECT pg_advisory_xact_lock($1)")
            .bind::<BigInt, _>(INITIALISE_LOCK)
            .execute(connection)?;
        let known = known_rows(connection, consumer)?;
        if known == Known::OnlyOthers {
            return Ok(Some(another_group_has_read(consumer)));
        }
        let starts = lows.iter().map(|&(partition, low)| match known {
            Known::Ours => (partition, Offset(0)),
            Known::Nobody | Known::OnlyOthers => (partition, low),
        });
        diesel::insert_into(consumer_offsets::table)
            .values(new_rows(consumer, starts))
            .on_conflict_do_nothing()
            .execute(connection)?;
        Ok(None)
    })
}

type NewRow<'a> = (
    dsl::Eq<consumer_offsets::group_id, &'a String>,
    dsl::Eq<consumer_offsets::topic, &'a String>,
    dsl::Eq<consumer_offsets::partition, Partition>,
    dsl::Eq<consumer_offsets::next_offset, Offset>,
);

fn new_rows(
    consumer: &Consumer,
    starts: impl Iterator<Item = (Partition, Offset)>,
) -> Vec<NewRow<'_>> {
    let row = |(partition, next_offset)| {
        (
            consumer_offsets::group_id.eq(&consumer.group_id),
            consumer_offsets::topic.eq(&consumer.topic),
            consumer_offsets::partition.eq(partition),
            consumer_offsets::next_offset.eq(next_offset),
        )
    };
    starts.map(row).collect()
}

/// Which groups have rows for the topic.
#[derive(PartialEq)]
enum Known {
    Nobody,
    OnlyOthers,
    Ours,
}

/// Reads them in one statement: between two statements another member of our group may create the rows, which would then
/// look like those of another group.
fn known_rows(connection: &mut PgConnection, consumer: &Consumer) -> QueryResult<Known> {
    let groups = operators::groups_of_topic(connection, &consumer.topic)?;
    Ok(if groups.contains(&consumer.group_id) {
        Known::Ours
    } else if groups.is_empty() {
        Known::Nobody
    } else {
        Known::OnlyOthers
    })
}

fn another_group_has_read(consumer: &Consumer) -> String {
    format!(
        "another group has read topic {}, and a new group would replay all of it over PUTs and DELETEs: set \
         KAFKA_GROUP_ID to that group, or set where to start with `ingestor offsets init`",
        consumer.topic
    )
}

/// Returns whether a partition may be claimed. Locks nothing and asks no broker.
///
/// # Errors
/// Returns the database's error.
pub fn standing(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: Partition,
) -> QueryResult<Standing> {
    let Some(row) = operators::find(connection, consumer, partition)? else {
        return Ok(match known_rows(connection, consumer)? {
            Known::OnlyOthers => Standing::Stopped(another_group_has_read(consumer)),
            Known::Nobody | Known::Ours => Standing::Missing,
        });
    };
    if let Some(reason) = stopped(connection, consumer, partition, &row)? {
        return Ok(Standing::Stopped(reason));
    }
    Ok(Standing::Claimable(row.glimpse()))
}

/// Returns why an operator has to decide first, if so.
fn stopped(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: Partition,
    row: &OffsetRow,
) -> QueryResult<Option<String>> {
    if row.halted {
        return Ok(Some(halted_reason(partition)));
    }
    Ok(open_incident(connection, consumer, partition)?.map(|incident| incident.detail))
}

/// Claims a partition: raises its epoch, so that batches of the previous owner are rejected.
///
/// `is_confirmed` says that this is the second look at the brokers' offsets.
///
/// # Errors
/// Returns the database's error.
pub fn claim(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: Partition,
    sighting: &Sighting,
    is_confirmed: bool,
) -> QueryResult<ClaimOutcome> {
    connection.transaction(|connection| {
        let row = match try_lock_row(connection, consumer, partition)? {
            RowLock::Ours(row) => row,
            RowLock::Held => return Ok(ClaimOutcome::Locked),
            RowLock::Missing => return Ok(ClaimOutcome::Missing),
        };
        if let Some(reason) = stopped(connection, consumer, partition, &row)? {
            return Ok(ClaimOutcome::Stopped(reason));
        }
        if row.incarnation != sighting.incarnation {
            // An operator has accepted an incident since we looked.
            return Ok(ClaimOutcome::Doubtful);
        }
        if let Some(gap) = find_gap(row.next_offset, sighting) {
            if !gap.is_certain && !is_confirmed {
                return Ok(ClaimOutcome::Doubtful);
            }
            return incidents::record(connection, consumer, partition, &row, sighting, &gap)
                .map(ClaimOutcome::Incident);
        }
        raise_epoch(connection, consumer, row, sighting.watermarks.high).map(ClaimOutcome::Claimed)
    })
}

/// Claims the row of an import of a file, which no broker knows. Creates the row, at offset 0, if there is none. A session of
/// ours that holds the row for long is ended.
///
/// # Errors
/// Returns the database's error, and `NotFound` if the row is locked for too long.
pub fn claim_import(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: Partition,
) -> QueryResult<Claim> {
    connection.transaction(|connection| {
        diesel::insert_into(consumer_offsets::table)
            .values(new_rows(consumer, [(partition, Offset(0))].into_iter()))
            .on_conflict_do_nothing()
            .execute(connection)?;
        let row = lock_row(connection, consumer, partition, Patience::EndOurs)?;
        let end = row.next_offset;
        raise_epoch(connection, consumer, row, end)
    })
}

/// Makes a row that is locked ours.
fn raise_epoch(
    connection: &mut PgConnection,
    consumer: &Consumer,
    row: OffsetRow,
    end_offset: Offset,
) -> QueryResult<Claim> {
    let epoch = row.epoch.next();
    diesel::update(row_of!(consumer, row.partition))
        .set((
            consumer_offsets::epoch.eq(epoch),
            consumer_offsets::owner.eq(consumer.owner),
            consumer_offsets::updated_at.eq(dsl::now),
        ))
        .execute(connection)?;
    Ok(Claim {
        epoch,
        next_offset: row.next_offset,
        guard: row.guard(),
        consecutive_bad: row.consecutive_bad,
        witnesses: row.witnesses,
        end_offset,
    })
}

/// Tells an operator that a partition's breaker has tripped.
pub fn halted_reason(partition: Partition) -> String {
    format!(
        "halted: too many bad messages in a row; correct the producer, then run `ingestor offsets resume --partition \
         {partition}`"
    )
}

/// Locks the row, and returns the partition's offset if the partition is still ours under this epoch. A COMMIT of ours that
/// still runs on the server holds the row. Nobody's session is ended.
///
/// # Errors
/// Returns the database's error.
pub fn reread(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: Partition,
    epoch: Epoch,
) -> QueryResult<Reread> {
    connection.transaction(|connection| {
        Ok(match try_lock_row(connection, consumer, partition)? {
            RowLock::Held => Reread::Locked,
            RowLock::Ours(row)
                if row.epoch == epoch && row.owner == Some(consumer.owner) && !row.halted =>
            {
                Reread::Ours(row.next_offset)
            }
            RowLock::Ours(_) | RowLock::Missing => Reread::Lost,
        })
    })
}

/// The fence, which is the first statement of a batch's transaction: advances the offset, or raises an error if the
/// partition is not ours any more or not at the batch's start. `halts` stops the partition after the batch until an
/// operator resumes it.
///
/// It does not wait for the row: the same statement locks the row first, or advances nothing.
///
/// # Errors
/// Returns the database's error; [`is_fence`] recognises the fence's. Returns `NotFound` if another session holds the row, or
/// if the row does not exist.
pub fn advance(
    connection: &mut PgConnection,
    consumer: &Consumer,
    claim: &Claim,
    batch: &Batch,
    halts: bool,
) -> QueryResult<()> {
    let witnesses = claim.witnesses.clone().with(batch.witness());
    let row = row_of!(consumer, batch.reading.partition)
        .select(consumer_offsets::partition)
        .for_no_key_update()
        .skip_locked();
    diesel::select(advance_consumer_offset(
        &consumer.group_id,
        &consumer.topic,
        batch.reading.partition,
        claim.epoch,
        consumer.owner,
        batch.old_next_offset,
        batch.new_next_offset,
        batch.last_record.map(|record| record.offset),
        batch.last_record.and_then(|record| record.timestamp_ms),
        batch.bad_run(claim.consecutive_bad).trailing,
        halts,
        witnesses.to_numbers(),
        batch.max_timestamp_ms,
    ))
    .filter(dsl::exists(row))
    .get_result::<i64>(connection)
    .map(|_| ())
}

/// Returns whether an error was raised by the fence, see [`advance`].
pub fn is_fence(error: &DieselError) -> bool {
    matches!(error, DieselError::DatabaseError(DatabaseErrorKind::Unknown, information)
        if information.constraint_name() == Some(FENCE_CONSTRAINT))
}
