//! Letters that are kept, found again.

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;
use serde_json::Value;
use shared::db::schema::dead_letters;

use crate::offsets::Consumer;

/// The states of a letter. Only a new one changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LetterState {
    /// Nobody has decided yet.
    New,
    /// Its order was stored later on.
    Replayed,
    /// It was replayed, and something newer stood there.
    Superseded,
    /// It was given up.
    Dropped,
}

impl LetterState {
    /// As it stands in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Replayed => "replayed",
            Self::Superseded => "superseded",
            Self::Dropped => "dropped",
        }
    }
}

/// Which letters of a group and topic; what is not given does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Stable code.
    pub reason: Option<String>,
    /// State.
    pub state: Option<LetterState>,
    /// Partition.
    pub partition: Option<i32>,
    /// Lowest offset.
    pub from_offset: Option<i64>,
    /// Highest offset.
    pub to_offset: Option<i64>,
    /// Kept at this time or later.
    pub since: Option<DateTime<Utc>>,
    /// Kept before this time.
    pub until: Option<DateTime<Utc>>,
}

/// A letter without its bytes, of which there may be a mebibyte.
#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = dead_letters, check_for_backend(Pg))]
pub struct LetterSummary {
    /// Its number.
    pub id: i64,
    /// The topic it came from.
    pub topic: String,
    /// Which topic of that name.
    pub incarnation: i32,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Bytes of the whole message; 0 for a tombstone.
    pub payload_size: i64,
    /// When it was produced.
    pub message_timestamp: Option<DateTime<Utc>>,
    /// Stable code.
    pub reason: String,
    /// What exactly was wrong.
    pub detail: String,
    /// See [`LetterState`].
    pub state: String,
    /// When it was kept.
    pub created_at: DateTime<Utc>,
    /// When its state changed.
    pub updated_at: DateTime<Utc>,
    /// When it was published to `KAFKA_DLQ_TOPIC`.
    pub relayed_at: Option<DateTime<Utc>>,
}

/// A whole letter.
#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = dead_letters, check_for_backend(Pg))]
pub struct StoredLetter {
    /// All but the bytes.
    #[diesel(embed)]
    pub summary: LetterSummary,
    /// The key's bytes.
    pub key: Option<Vec<u8>>,
    /// The value's bytes; none for a tombstone.
    pub payload: Option<Vec<u8>>,
    /// `[{"key", "value"}]`, values in base64.
    pub headers: Value,
}

impl StoredLetter {
    /// Whether the message was larger than what is kept of it.
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
        query = query.filter(dead_letters::state.eq(state.as_str()));
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

/// A page of letters, newest first; `before` is the number of the last one of the page before.
///
/// # Errors
/// Fails as the database does.
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

/// The numbers of all letters that match, oldest first: in the order in which they would have been stored.
///
/// # Errors
/// Fails as the database does.
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

/// One letter of the group and topic.
///
/// # Errors
/// Fails as the database does.
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
