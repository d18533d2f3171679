//! Where each partition has been read to: claims, the fence, re-reading, incidents.
//!
//! The row of a partition in `consumer_offsets` is the truth. Its owner claims it with a new epoch; every batch
//! advances it first, and the database refuses a batch of an older epoch.

use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text, Uuid as SqlUuid};
use shared::db::schema::{consumer_offsets, offset_incidents};
use tracing::warn;
use uuid::Uuid;

use crate::batch::{BadRun, Batch};
use crate::consumer::Watermarks;

/// How long a claim waits for another process's transaction before it ends that process's session. A process that was
/// frozen inside a transaction holds the row for ever: no time-out of the server ends a session stopped inside COPY.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How long it then waits for the lock to come free.
const TERMINATION_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at a locked row.
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(20);

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
    /// Bad messages in a row beyond which a partition halts.
    pub max_consecutive_bad: i64,
}

impl Consumer {
    /// Whether the breaker trips: a producer gone bad must not empty the topic.
    pub fn is_broken_by(&self, run: BadRun) -> bool {
        run.longest > self.max_consecutive_bad
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
}

/// What came of a try to claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// It is ours.
    Claimed(Claim),
    /// The broker does not hold `next_offset`, seen for the first time: look again before it counts.
    Doubtful,
    /// An operator has to decide; says what and how.
    Stopped(String),
}

/// The row of a partition.
macro_rules! row_of {
    ($consumer:expr, $partition:expr) => {
        consumer_offsets::table.find((&$consumer.group_id, &$consumer.topic, $partition))
    };
}

#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = consumer_offsets, check_for_backend(diesel::pg::Pg))]
struct OffsetRow {
    next_offset: i64,
    epoch: i64,
    owner: Option<Uuid>,
    incarnation: i32,
    consecutive_bad: i64,
    halted: bool,
    replay_until: Option<i64>,
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
        diesel::sql_query("SELECT pg_advisory_xact_lock($1)").bind::<BigInt, _>(INITIALISE_LOCK).execute(connection)?;
        let of_topic = consumer_offsets::table.filter(consumer_offsets::topic.eq(&consumer.topic));
        let ours = of_topic.filter(consumer_offsets::group_id.eq(&consumer.group_id)).count().get_result::<i64>(connection)?;
        let all = of_topic.count().get_result::<i64>(connection)?;
        if ours == 0 && all > 0 {
            return Ok(Some(format!(
                "another group has read topic {}: a new group would replay all of it over PUTs and DELETEs; use that \
                 group's KAFKA_GROUP_ID, or say where to start with `ingestor offsets init`",
                consumer.topic
            )));
        }
        let rows: Vec<_> = lows
            .iter()
            .map(|(partition, low)| {
                (
                    consumer_offsets::group_id.eq(&consumer.group_id),
                    consumer_offsets::topic.eq(&consumer.topic),
                    consumer_offsets::partition.eq(*partition),
                    consumer_offsets::next_offset.eq(if ours == 0 { *low } else { 0 }),
                )
            })
            .collect();
        diesel::insert_into(consumer_offsets::table).values(rows).on_conflict_do_nothing().execute(connection)?;
        Ok(None)
    })
}

/// Whether the partition has a row.
///
/// # Errors
/// Fails as the database does.
pub fn exists(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: i32,
) -> QueryResult<bool> {
    diesel::select(diesel::dsl::exists(row_of!(consumer, partition))).get_result(connection)
}

/// Claims a partition: raises its epoch, so that batches of the owner before are refused.
///
/// `confirmed` says that `watermarks` were looked at twice: the broker's answer may lag behind right after it elected a
/// new leader.
///
/// # Errors
/// Fails as the database does.
pub fn claim(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: i32,
    watermarks: Watermarks,
    confirmed: bool,
) -> QueryResult<ClaimOutcome> {
    connection.transaction(|connection| {
        let row = lock_row(connection, consumer, partition)?;
        if row.halted {
            return Ok(ClaimOutcome::Stopped(halted_reason(consumer, partition)));
        }
        if let Some(incident) = open_incident(connection, consumer, partition)? {
            return Ok(ClaimOutcome::Stopped(incident));
        }
        if !(watermarks.low..=watermarks.high).contains(&row.next_offset) {
            if !confirmed {
                return Ok(ClaimOutcome::Doubtful);
            }
            return record_incident(connection, consumer, partition, &row, watermarks)
                .map(ClaimOutcome::Stopped);
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
        }))
    })
}

/// What an operator reads of a partition whose breaker has tripped.
pub fn halted_reason(consumer: &Consumer, partition: i32) -> String {
    format!(
        "halted: more than {} bad messages in a row; when their producer is mended, go on with `ingestor offsets resume \
         --partition {partition}`",
        consumer.max_consecutive_bad
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
/// not where we believe.
///
/// # Errors
/// Fails as the database does; [`is_fence`] knows the refusal.
pub fn advance(
    connection: &mut PgConnection,
    consumer: &Consumer,
    claim: &Claim,
    batch: &Batch,
) -> QueryResult<()> {
    let bad_run = batch.bad_run(claim.consecutive_bad);
    diesel::sql_query(
        "SELECT advance_consumer_offset($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind::<Text, _>(&consumer.group_id)
    .bind::<Text, _>(&consumer.topic)
    .bind::<Integer, _>(batch.reading.partition)
    .bind::<BigInt, _>(claim.epoch)
    .bind::<SqlUuid, _>(consumer.owner)
    .bind::<BigInt, _>(batch.old_next_offset)
    .bind::<BigInt, _>(batch.new_next_offset)
    .bind::<Nullable<BigInt>, _>(batch.last_record.map(|record| record.offset))
    .bind::<Nullable<BigInt>, _>(batch.last_record.and_then(|record| record.timestamp_ms))
    .bind::<BigInt, _>(bad_run.trailing)
    .bind::<Bool, _>(consumer.is_broken_by(bad_run))
    .execute(connection)
    .map(|_| ())
}

/// Whether an error is the refusal of [`advance`].
pub fn is_fence(error: &DieselError) -> bool {
    matches!(error, DieselError::DatabaseError(DatabaseErrorKind::Unknown, information)
        if information.constraint_name() == Some(FENCE_CONSTRAINT))
}

/// Locks the partition's row. A holder that does not let go is taken for frozen, and its session is ended.
fn lock_row(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: i32,
) -> QueryResult<OffsetRow> {
    let started_at = Instant::now();
    let mut terminated = false;
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
        if !terminated && started_at.elapsed() > LOCK_PATIENCE {
            terminated = true;
            for holder in terminate_holder(connection, consumer, partition)? {
                warn!(
                    kafka.partition = partition,
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

/// Ends the session whose transaction has locked or changed the row: the row's `xmax` is that transaction, and
/// `pg_locks` knows the session of every transaction.
fn terminate_holder(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: i32,
) -> QueryResult<Vec<i32>> {
    #[derive(QueryableByName)]
    struct Holder {
        #[diesel(sql_type = Integer)]
        pid: i32,
    }
    let holders: Vec<Holder> = diesel::sql_query(
        // Materialized: as a mere condition, the planner would end the session of every lock that it looks at.
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

fn open_incident(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: i32,
) -> QueryResult<Option<String>> {
    offset_incidents::table
        .filter(offset_incidents::group_id.eq(&consumer.group_id))
        .filter(offset_incidents::topic.eq(&consumer.topic))
        .filter(offset_incidents::partition.eq(partition))
        .filter(offset_incidents::resolved_at.is_null())
        .select(offset_incidents::detail)
        .first(connection)
        .optional()
}

fn record_incident(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: i32,
    row: &OffsetRow,
    watermarks: Watermarks,
) -> QueryResult<String> {
    let Watermarks { low, high } = watermarks;
    let next_offset = row.next_offset;
    let (kind, resume_offset, what) = if next_offset < low {
        (
            "retention",
            low,
            format!("records {next_offset}..{low} were deleted before they were read"),
        )
    } else {
        (
            "truncated",
            high,
            format!("the topic ends at {high}, before {next_offset}, to which it had been read"),
        )
    };
    let detail = format!("{what}; the partition waits for an operator to accept it");
    diesel::insert_into(offset_incidents::table)
        .values((
            offset_incidents::group_id.eq(&consumer.group_id),
            offset_incidents::topic.eq(&consumer.topic),
            offset_incidents::partition.eq(partition),
            offset_incidents::incarnation.eq(row.incarnation),
            offset_incidents::kind.eq(kind),
            offset_incidents::next_offset.eq(next_offset),
            offset_incidents::low_watermark.eq(low),
            offset_incidents::high_watermark.eq(high),
            offset_incidents::resume_offset.eq(resume_offset),
            offset_incidents::resume_incarnation.eq(row.incarnation),
            offset_incidents::detail.eq(&detail),
        ))
        .on_conflict_do_nothing()
        .execute(connection)?;
    Ok(detail)
}
