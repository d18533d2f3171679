//! Letters that are stored: their states, and the queries that find and change them.

use chrono::{DateTime, SecondsFormat, Utc};
use diesel::dsl::{now, sql};
use diesel::expression::SqlLiteral;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use serde_json::Value;
use shared::db::schema::dead_letters;

use super::{Blanking, ERASED_DETAIL};
use crate::record::{Consumer, Incarnation, Offset, Partition, Position, Reason};

/// The most letters whose bytes are read at once.
const LETTERS_PER_PAGE: i64 = 500;

/// The states of a letter, in the table in lower case. Only new and superseded letters change their states.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, strum::IntoStaticStr, strum::VariantArray,
)]
#[strum(serialize_all = "snake_case")]
pub enum LetterState {
    /// Nobody has decided on it yet.
    New,
    /// Its order was stored by a replay.
    Replayed,
    /// The stored order was newer, or may have been. It can still be replayed by its number.
    Superseded,
    /// It was given up.
    Dropped,
}

impl LetterState {
    /// The state of a letter that was just written. One that the guard held back waits for nobody's decision.
    pub fn at_first(reason: Reason) -> Self {
        match reason {
            Reason::HeldBack => Self::Superseded,
            _ => Self::New,
        }
    }
}

/// Selects letters of a group and topic. A field that is `None` or false selects nothing away.
#[derive(clap::Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only those with this reason, as the list shows it
    #[arg(long)]
    pub reason: Option<String>,
    /// The state, which commands that decide on letters do not let the user choose.
    #[arg(skip)]
    pub state: Option<LetterState>,
    /// Only those that `KAFKA_DLQ_TOPIC` has refused. Commands that decide on letters do not let the user choose it.
    #[arg(skip)]
    pub is_relay_refused: bool,
    /// Only those of this partition
    #[arg(long, value_parser = Partition::parser())]
    pub partition: Option<Partition>,
    /// Only those at this offset or after it
    #[arg(long, value_name = "OFFSET")]
    pub from_offset: Option<Offset>,
    /// Only those at this offset or before it
    #[arg(long, value_name = "OFFSET")]
    pub to_offset: Option<Offset>,
    /// Only those created at this time or later, RFC 3339
    #[arg(long, value_name = "TIME")]
    pub since: Option<DateTime<Utc>>,
    /// Only those created before this time, RFC 3339
    #[arg(long, value_name = "TIME")]
    pub until: Option<DateTime<Utc>>,
}

/// A letter without its bytes, which may be a mebibyte.
#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = dead_letters, check_for_backend(Pg))]
pub struct LetterSummary {
    /// Its number.
    pub id: i64,
    /// The topic of the message.
    pub topic: String,
    /// The incarnation of the partition.
    pub incarnation: Incarnation,
    /// The partition of the message.
    pub partition: Partition,
    /// The offset of the message.
    pub offset: Offset,
    /// The size of the whole value in bytes; 0 for a tombstone.
    pub payload_size: i64,
    /// When the message was produced.
    pub message_timestamp: Option<DateTime<Utc>>,
    /// The reason's stable code.
    pub reason: String,
    /// What exactly was wrong.
    pub detail: String,
    /// See [`LetterState`].
    pub state: String,
    /// When the letter was written.
    pub created_at: DateTime<Utc>,
    /// When its state changed.
    pub updated_at: DateTime<Utc>,
    /// When it was published to `KAFKA_DLQ_TOPIC`, or refused if there is a `relay_error`.
    pub relayed_at: Option<DateTime<Utc>>,
    /// Which topic has refused it, and why. Written by the relay, and removed by [`relay_again`].
    pub relay_error: Option<String>,
    /// When its key, payload and headers were removed.
    pub blanked_at: Option<DateTime<Utc>>,
    /// Why they were removed, see [`Blanking`].
    pub blanked_why: Option<String>,
}

impl LetterSummary {
    /// Says when the letter's bytes were removed and why, if they were.
    pub fn blanking(&self) -> Option<String> {
        let at = self.blanked_at?.to_rfc3339_opts(SecondsFormat::Secs, true);
        let is_erased = self.blanked_why.as_deref() == Some(Blanking::Erased.into());
        Some(if is_erased {
            format!(
                "its bytes were erased at {at}, because it names an order or a customer that was erased"
            )
        } else {
            format!(
                "its bytes were removed at {at}, because it was older than DEAD_LETTER_RETENTION_DAYS"
            )
        })
    }

    /// The message's place and time.
    pub fn position(&self) -> Position {
        Position {
            offset: self.offset,
            timestamp_ms: self.message_timestamp.map(|time| time.timestamp_millis()),
        }
    }
}

/// A whole letter.
#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = dead_letters, check_for_backend(Pg))]
pub struct StoredLetter {
    /// Everything but the bytes.
    #[diesel(embed)]
    pub summary: LetterSummary,
    /// The key's bytes.
    pub key: Option<Vec<u8>>,
    /// The value's bytes; none for a tombstone.
    pub payload: Option<Vec<u8>>,
    /// `[{"key", "value"}]`, with values in base64.
    pub headers: Value,
}

impl StoredLetter {
    /// Returns whether the message's value was larger than what is kept of it.
    pub fn is_cut(&self) -> bool {
        let kept = self.payload.as_ref().map_or(0, Vec::len);
        i64::try_from(kept).is_ok_and(|kept| kept < self.summary.payload_size)
    }
}

/// The letters of a group and topic.
fn of<'a>(consumer: &'a Consumer) -> dead_letters::BoxedQuery<'a, Pg> {
    dead_letters::table
        .filter(dead_letters::group_id.eq(&consumer.group_id))
        .filter(dead_letters::topic.eq(&consumer.topic))
        .into_boxed()
}

fn matching<'a>(consumer: &'a Consumer, filter: &'a Filter) -> dead_letters::BoxedQuery<'a, Pg> {
    let mut query = of(consumer);
    if let Some(reason) = &filter.reason {
        query = query.filter(dead_letters::reason.eq(reason));
    }
    if let Some(state) = filter.state {
        query = query.filter(dead_letters::state.eq(<&str>::from(state)));
    }
    if filter.is_relay_refused {
        query = query.filter(dead_letters::relay_error.is_not_null());
    }
    if let Some(partition) = filter.partition {
        query = query.filter(dead_letters::partition.eq(partition));
    }
    if let Some(offset) = filter.from_offset {
        query = query.filter(dead_letters::offset.ge(offset));
    }
    if let Some(offset) = filter.to_offset {
        query = query.filter(dead_letters::offset.le(offset));
    }
    if let Some(time) = filter.since {
        query = query.filter(dead_letters::created_at.ge(time));
    }
    if let Some(time) = filter.until {
        query = query.filter(dead_letters::created_at.lt(time));
    }
    query
}

/// Returns a page of letters, newest first. `before` is the number of the last letter on the previous page.
///
/// # Errors
/// Returns the database's error.
pub fn list(
    connection: &mut PgConnection,
    consumer: &Consumer,
    filter: &Filter,
    before: Option<i64>,
    limit: i64,
) -> QueryResult<Vec<LetterSummary>> {
    let mut query = matching(consumer, filter);
    if let Some(id) = before {
        query = query.filter(dead_letters::id.lt(id));
    }
    query
        .select(LetterSummary::as_select())
        .order(dead_letters::id.desc())
        .limit(limit)
        .load(connection)
}

/// Returns the numbers of all letters that match, oldest first: the order in which their messages were read.
///
/// # Errors
/// Returns the database's error.
pub fn ids(
    connection: &mut PgConnection,
    consumer: &Consumer,
    filter: &Filter,
) -> QueryResult<Vec<i64>> {
    matching(consumer, filter)
        .select(dead_letters::id)
        .order(dead_letters::id)
        .load(connection)
}

/// Returns one letter of the group and topic.
///
/// # Errors
/// Returns the database's error.
pub fn find(
    connection: &mut PgConnection,
    consumer: &Consumer,
    id: i64,
) -> QueryResult<Option<StoredLetter>> {
    of(consumer)
        .filter(dead_letters::id.eq(id))
        .select(StoredLetter::as_select())
        .first(connection)
        .optional()
}

/// Takes a letter out of the state `from` and returns it; `None` if it is not in that state. Of two callers at once, the
/// second waits for the first one's transaction and then gets `None`.
///
/// # Errors
/// Returns the database's error.
pub fn take(
    connection: &mut PgConnection,
    consumer: &Consumer,
    id: i64,
    from: LetterState,
    state: LetterState,
) -> QueryResult<Option<StoredLetter>> {
    let letter = dead_letters::table
        .find(id)
        .filter(dead_letters::group_id.eq(&consumer.group_id))
        .filter(dead_letters::topic.eq(&consumer.topic))
        .filter(dead_letters::state.eq(<&str>::from(from)));
    diesel::update(letter)
        .set((
            dead_letters::state.eq(<&str>::from(state)),
            dead_letters::updated_at.eq(now),
        ))
        .returning(StoredLetter::as_returning())
        .get_result(connection)
        .optional()
}

/// Sets the state of a letter that the caller's transaction has taken.
///
/// # Errors
/// Returns the database's error.
pub fn set_state(connection: &mut PgConnection, id: i64, state: LetterState) -> QueryResult<()> {
    diesel::update(dead_letters::table.find(id))
        .set(dead_letters::state.eq(<&str>::from(state)))
        .execute(connection)
        .map(drop)
}

/// Locks the oldest letters that are not relayed yet and that no other process has locked: at most `max_letters`, and
/// about `max_bytes` of them, but at least one letter if there is one.
///
/// # Errors
/// Returns the database's error.
pub fn lock_unrelayed(
    connection: &mut PgConnection,
    consumer: &Consumer,
    max_letters: i64,
    max_bytes: i64,
) -> QueryResult<Vec<StoredLetter>> {
    let sizes: Vec<(i64, i64)> = dead_letters::table
        .filter(dead_letters::group_id.eq(&consumer.group_id))
        .filter(dead_letters::topic.eq(&consumer.topic))
        .filter(dead_letters::relayed_at.is_null())
        // What has no bytes any more is never published.
        .filter(dead_letters::blanked_at.is_null())
        .select((dead_letters::id, kept_size()))
        .order(dead_letters::id)
        .limit(max_letters)
        .for_update()
        .skip_locked()
        .load(connection)?;
    dead_letters::table
        .filter(dead_letters::id.eq_any(fitting(&sizes, max_bytes)))
        .select(StoredLetter::as_select())
        .order(dead_letters::id)
        .load(connection)
}

/// Notes that these letters were relayed.
///
/// # Errors
/// Returns the database's error.
pub fn mark_relayed(connection: &mut PgConnection, ids: &[i64]) -> QueryResult<()> {
    diesel::update(dead_letters::table.filter(dead_letters::id.eq_any(ids)))
        .set(dead_letters::relayed_at.eq(now))
        .execute(connection)
        .map(drop)
}

/// Notes that `KAFKA_DLQ_TOPIC` has refused this letter. The relay passes it over from now on.
///
/// # Errors
/// Returns the database's error.
pub fn mark_refused(connection: &mut PgConnection, id: i64, error: &str) -> QueryResult<()> {
    diesel::update(dead_letters::table.find(id))
        .set((
            dead_letters::relayed_at.eq(now),
            dead_letters::relay_error.eq(error),
        ))
        .execute(connection)
        .map(drop)
}

/// Lets the relay try refused letters again, all of them or those with the given numbers. Returns how many they are.
///
/// # Errors
/// Returns the database's error.
pub fn relay_again(
    connection: &mut PgConnection,
    consumer: &Consumer,
    ids_opt: Option<&[i64]>,
) -> QueryResult<usize> {
    let filter = Filter {
        is_relay_refused: true,
        ..Filter::default()
    };
    let mut refused = ids(connection, consumer, &filter)?;
    if let Some(ids) = ids_opt {
        refused.retain(|id| ids.contains(id));
    }
    diesel::update(dead_letters::table.filter(dead_letters::id.eq_any(refused)))
        .set((
            dead_letters::relayed_at.eq(None::<DateTime<Utc>>),
            dead_letters::relay_error.eq(None::<String>),
        ))
        .execute(connection)
}

/// The bytes that are kept of a letter, of whatever group and topic.
#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = dead_letters, check_for_backend(Pg))]
pub struct KeptBytes {
    /// The letter's number.
    pub id: i64,
    /// The key's bytes.
    pub key: Option<Vec<u8>>,
    /// The value's bytes.
    pub payload: Option<Vec<u8>>,
}

/// Returns the next letters after a number that still have their bytes, by number: about `max_bytes` of them, but at least one
/// letter if there is one.
///
/// # Errors
/// Returns the database's error.
pub fn bytes_after(
    connection: &mut PgConnection,
    after: i64,
    max_bytes: i64,
) -> QueryResult<Vec<KeptBytes>> {
    let sizes: Vec<(i64, i64)> = dead_letters::table
        .filter(dead_letters::id.gt(after))
        .filter(dead_letters::blanked_at.is_null())
        .select((dead_letters::id, kept_size()))
        .order(dead_letters::id)
        .limit(LETTERS_PER_PAGE)
        .load(connection)?;
    dead_letters::table
        .filter(dead_letters::id.eq_any(fitting(&sizes, max_bytes)))
        .select(KeptBytes::as_select())
        .order(dead_letters::id)
        .load(connection)
}

/// The bytes that are kept of a letter. A key, a payload and the headers may each have as much as a message may.
fn kept_size() -> SqlLiteral<BigInt> {
    sql::<BigInt>(
        "coalesce(octet_length(key), 0)::bigint + coalesce(octet_length(payload), 0) + octet_length(headers::text)",
    )
}

/// Returns the first letters that have about `max_bytes` together, and at least one.
fn fitting(sizes: &[(i64, i64)], max_bytes: i64) -> Vec<i64> {
    let mut bytes = 0;
    let mut page = Vec::new();
    for (id, size) in sizes {
        bytes += size;
        if !page.is_empty() && bytes > max_bytes {
            break;
        }
        page.push(*id);
    }
    page
}

/// Removes key, payload and headers of letters for ever. Returns how many letters had them until now.
///
/// The detail quotes no values. What was erased leaves it no doubt: then the detail goes as well.
///
/// # Errors
/// Returns the database's error.
pub fn blank(connection: &mut PgConnection, ids: &[i64], why: Blanking) -> QueryResult<usize> {
    let letters = dead_letters::table
        .filter(dead_letters::id.eq_any(ids))
        .filter(dead_letters::blanked_at.is_null());
    let blanks = (
        dead_letters::key.eq(None::<Vec<u8>>),
        dead_letters::payload.eq(None::<Vec<u8>>),
        dead_letters::headers.eq(Value::Array(Vec::new())),
        dead_letters::blanked_at.eq(now),
        dead_letters::blanked_why.eq(<&str>::from(why)),
    );
    let update = diesel::update(letters);
    match why {
        Blanking::Erased => update
            .set((blanks, dead_letters::detail.eq(ERASED_DETAIL)))
            .execute(connection),
        Blanking::Expired => update.set(blanks).execute(connection),
    }
}

/// Removes key, payload and headers of the oldest letters that were written before a time: at most `limit`, and none that
/// another session has locked. Returns their states.
///
/// # Errors
/// Returns the database's error.
pub fn blank_expired(
    connection: &mut PgConnection,
    before: DateTime<Utc>,
    limit: i64,
) -> QueryResult<Vec<String>> {
    connection.transaction(|connection| {
        let letters: Vec<(i64, String)> = dead_letters::table
            .filter(dead_letters::blanked_at.is_null())
            .filter(dead_letters::created_at.lt(before))
            .select((dead_letters::id, dead_letters::state))
            .order(dead_letters::created_at)
            .limit(limit)
            .for_update()
            .skip_locked()
            .load(connection)?;
        let (ids, states): (Vec<i64>, Vec<String>) = letters.into_iter().unzip();
        blank(connection, &ids, Blanking::Expired)?;
        Ok(states)
    })
}
