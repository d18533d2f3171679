//! Where each partition has been read to: claims, the fence, re-reading; `incidents` and what `operators` may do.
//!
//! The row of a partition in `consumer_offsets` is the truth. Its owner claims it with a new epoch; every batch
//! advances it first, and the database refuses a batch of an older epoch.

use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text, Uuid as SqlUuid};
use shared::db::schema::consumer_offsets;
use uuid::Uuid;

use crate::batch::{Batch, Position};
use crate::config::KafkaSettings;
use incidents::find_gap;
pub use incidents::{Glimpse, Incident, Sighting, Witness, open_incident};
use lock::lock_row;

/// The row of a partition.
macro_rules! row_of {
    ($consumer:expr, $partition:expr) => {
        consumer_offsets::table.find((&$consumer.group_id, &$consumer.topic, $partition))
    };
}

mod incidents;
mod lock;
pub mod operators;

diesel::define_sql_function! {
    /// The migrations' own.
    #[expect(clippy::too_many_arguments, reason = "as the database has it")]
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
    ) -> BigInt;
}

/// Name of the constraint under which `advance_consumer_offset` refuses: diesel hides the SQLSTATE.
const FENCE_CONSTRAINT: &str = "consumer_offsets_fence";

/// Serialises the making of a group's rows over processes.
const INITIALISE_LOCK: i64 = 0x6f66_6673_6574;

/// Whose progress.
#[derive(Clone, Debug)]
pub struct Consumer {
    /// Consumer group.
    pub group_id: String,
    /// Topic.
    pub topic: String,
    /// This process.
    pub owner: Uuid,
}

impl Consumer {
    /// A new owner in this process.
    pub fn of(settings: &KafkaSettings) -> Self {
        Self {
            group_id: settings.group_id.clone(),
            topic: settings.topic.clone(),
            owner: Uuid::new_v4(),
        }
    }
}

/// A partition that is ours until somebody claims it with a higher epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Under which our batches advance.
    pub epoch: i64,
    /// Where to read on.
    pub next_offset: i64,
    /// Which topic of that name.
    pub incarnation: i32,
    /// Dead letters since the last good order.
    pub consecutive_bad: i64,
    /// Records below were read before a rewind: they do not replace what is newer.
    pub replay_until: Option<i64>,
    /// The last record that was read.
    pub last_record: Option<Position>,
}

/// What came of a try to claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// It is ours.
    Claimed(Claim),
    /// What the brokers show does not fit, seen for the first time: look again before it counts.
    Doubtful,
    /// An operator has to decide, as before; says what and how.
    Stopped(String),
    /// An operator has to decide, and nobody knew before; says what and how.
    Incident(String),
}

/// Whether a partition may be claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has no row yet.
    Missing,
    /// An operator has to decide; says what and how.
    Stopped(String),
    /// Compare this with what the brokers show.
    Claimable(Glimpse),
}

#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = consumer_offsets, check_for_backend(diesel::pg::Pg))]
struct OffsetRow {
    next_offset: i64,
    epoch: i64,
    owner: Option<Uuid>,
    incarnation: i32,
    last_offset: Option<i64>,
    last_timestamp: Option<i64>,
    consecutive_bad: i64,
    halted: bool,
    replay_until: Option<i64>,
}

impl OffsetRow {
    fn last_record(&self) -> Option<Position> {
        Some(Position {
            offset: self.last_offset?,
            timestamp_ms: self.last_timestamp,
        })
    }
}

/// Makes the rows of a group that reads a topic for the first time, or of a partition that was added.
///
/// `lows` are the low watermarks of all partitions of the topic. All rows are made at once: a partition whose row is
/// missing beside others is a new one, and a new partition is read from 0.
///
/// # Errors
/// Fails as the database does; `Ok(Some(reason))` where only an operator may decide.
pub fn initialise(
    connection: &mut PgConnection,
    consumer: &Consumer,
    lows: &[(i32, i64)],
) -> QueryResult<Option<String>> {
    connection.transaction(|connection| {
        diesel::sql_query("SELECT pg_advisory_xact_lock($1)")
            .bind::<BigInt, _>(INITIALISE_LOCK)
            .execute(connection)?;
        let known = known_rows(connection, consumer)?;
        if known.only_others() {
            return Ok(Some(another_group_has_read(consumer)));
        }
        let rows: Vec<_> = lows
            .iter()
            .map(|(partition, low)| {
                (
                    consumer_offsets::group_id.eq(&consumer.group_id),
                    consumer_offsets::topic.eq(&consumer.topic),
                    consumer_offsets::partition.eq(*partition),
                    consumer_offsets::next_offset.eq(if known.ours { 0 } else { *low }),
                )
            })
            .collect();
        diesel::insert_into(consumer_offsets::table)
            .values(rows)
            .on_conflict_do_nothing()
            .execute(connection)?;
        Ok(None)
    })
}

/// Who has rows of the topic.
struct KnownRows {
    ours: bool,
    others: bool,
}

impl KnownRows {
    fn only_others(&self) -> bool {
        self.others && !self.ours
    }
}

/// In one statement: between two, another member of our group may make the rows, which would then look like another
/// group's.
fn known_rows(connection: &mut PgConnection, consumer: &Consumer) -> QueryResult<KnownRows> {
    let groups: Vec<String> = consumer_offsets::table
        .filter(consumer_offsets::topic.eq(&consumer.topic))
        .select(consumer_offsets::group_id)
        .distinct()
        .load(connection)?;
    let (ours, others): (Vec<String>, Vec<String>) =
        (groups.into_iter()).partition(|group_id| *group_id == consumer.group_id);
    Ok(KnownRows {
        ours: !ours.is_empty(),
        others: !others.is_empty(),
    })
}

fn another_group_has_read(consumer: &Consumer) -> String {
    format!(
        "another group has read topic {}: a new group would replay all of it over PUTs and DELETEs; use that \
         group's KAFKA_GROUP_ID, or say where to start with `ingestor offsets init`",
        consumer.topic
    )
}

/// Looks whether a partition may be claimed; locks nothing and asks no broker.
///
/// # Errors
/// Fails as the database does.
pub fn standing(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: i32,
) -> QueryResult<Standing> {
    let row = row_of!(consumer, partition)
        .select(OffsetRow::as_select())
        .first(connection)
        .optional()?;
    let Some(row) = row else {
        return Ok(if known_rows(connection, consumer)?.only_others() {
            Standing::Stopped(another_group_has_read(consumer))
        } else {
            Standing::Missing
        });
    };
    if let Some(reason) = stopped(connection, consumer, partition, &row)? {
        return Ok(Standing::Stopped(reason));
    }
    Ok(Standing::Claimable(Glimpse {
        incarnation: row.incarnation,
        next_offset: row.next_offset,
        last_record: row.last_record(),
    }))
}

/// Why an operator has to decide first.
fn stopped(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: i32,
    row: &OffsetRow,
) -> QueryResult<Option<String>> {
    if row.halted {
        return Ok(Some(halted_reason(partition)));
    }
    Ok(open_incident(connection, consumer, partition)?.map(|incident| incident.detail))
}

/// Claims a partition: raises its epoch, so that batches of the owner before are refused.
///
/// `confirmed` says that this is the second look.
///
/// # Errors
/// Fails as the database does.
pub fn claim(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: i32,
    sighting: &Sighting,
    confirmed: bool,
) -> QueryResult<ClaimOutcome> {
    connection.transaction(|connection| {
        let row = lock_row(connection, consumer, partition)?;
        if let Some(reason) = stopped(connection, consumer, partition, &row)? {
            return Ok(ClaimOutcome::Stopped(reason));
        }
        if row.incarnation != sighting.incarnation {
            // An operator has accepted a new topic since we looked.
            return Ok(ClaimOutcome::Doubtful);
        }
        if let Some(gap) = find_gap(&row, sighting) {
            if !gap.certain && !confirmed {
                return Ok(ClaimOutcome::Doubtful);
            }
            return incidents::record(
                connection,
                consumer,
                partition,
                &row,
                sighting.watermarks,
                &gap,
            )
            .map(ClaimOutcome::Incident);
        }
        diesel::update(row_of!(consumer, partition))
            .set((
                consumer_offsets::epoch.eq(row.epoch + 1),
                consumer_offsets::owner.eq(consumer.owner),
                consumer_offsets::updated_at.eq(diesel::dsl::now),
            ))
            .execute(connection)?;
        Ok(ClaimOutcome::Claimed(Claim {
            epoch: row.epoch + 1,
            next_offset: row.next_offset,
            incarnation: row.incarnation,
            consecutive_bad: row.consecutive_bad,
            replay_until: row.replay_until,
            last_record: row.last_record(),
        }))
    })
}

/// What an operator reads of a partition whose breaker has tripped.
pub fn halted_reason(partition: i32) -> String {
    format!(
        "halted: too many bad messages in a row; once the producer is mended, `ingestor offsets resume --partition \
         {partition}`"
    )
}

/// Where the partition stands, if it is still ours under this epoch. Waits for a COMMIT of ours that may still be
/// running on the server.
///
/// # Errors
/// Fails as the database does.
pub fn reread(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: i32,
    epoch: i64,
) -> QueryResult<Option<i64>> {
    connection.transaction(|connection| {
        let row = lock_row(connection, consumer, partition)?;
        let ours = row.epoch == epoch && row.owner == Some(consumer.owner) && !row.halted;
        Ok(ours.then_some(row.next_offset))
    })
}

/// First statement of a batch's transaction: moves the offset, or raises where the partition is not ours any more or
/// not where we believe. `halts` stops the partition behind the batch until an operator resumes it.
///
/// # Errors
/// Fails as the database does; [`is_fence`] knows the refusal.
pub fn advance(
    connection: &mut PgConnection,
    consumer: &Consumer,
    claim: &Claim,
    batch: &Batch,
    halts: bool,
) -> QueryResult<()> {
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
    ))
    .execute(connection)
    .map(|_| ())
}

/// Whether an error is the refusal of [`advance`].
pub fn is_fence(error: &DieselError) -> bool {
    matches!(error, DieselError::DatabaseError(DatabaseErrorKind::Unknown, information)
        if information.constraint_name() == Some(FENCE_CONSTRAINT))
}
