//! Messages that can never become an order: what is kept of them, and the insert; [`stored`] finds them again, [`replay`]
//! decides on them, [`relay`] publishes them.

pub mod relay;
pub mod replay;
pub mod stored;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use rdkafka::message::Message;
use serde_json::Value;
use shared::db::schema::dead_letters;

use crate::batch::Refusal;
use crate::headers;

/// Most bytes of a payload that are kept.
pub const MAX_PAYLOAD_BYTES: usize = 1024 * 1024;
/// Most characters of a detail that are kept; a hostile order can have thousands of faults.
const MAX_DETAIL_CHARS: usize = 2_000;

/// Rows of one INSERT: 13 columns each stay far below the 65,535 binds of a statement.
const ROWS_PER_INSERT: usize = 1_000;

/// A refused message, detached from Kafka's buffers.
#[derive(Debug)]
pub struct DeadLetter {
    /// Offset in its partition.
    pub offset: i64,
    /// Milliseconds since 1970.
    pub timestamp_ms: Option<i64>,
    /// The key's bytes.
    pub key: Option<Vec<u8>>,
    /// The value's bytes, cut at [`MAX_PAYLOAD_BYTES`].
    pub payload: Option<Vec<u8>>,
    /// The value's whole size in bytes.
    pub payload_size: i64,
    /// See [`headers::to_json`].
    pub headers: Value,
    /// Why it was refused.
    pub refusal: Refusal,
}

impl DeadLetter {
    /// Copies what is kept of a message.
    pub fn new(message: &impl Message, refusal: Refusal) -> Self {
        let payload = message.payload();
        Self {
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis(),
            key: message.key().map(<[u8]>::to_vec),
            payload: payload.map(|bytes| bytes[..bytes.len().min(MAX_PAYLOAD_BYTES)].to_vec()),
            payload_size: payload.map_or(0, |bytes| i64::try_from(bytes.len()).unwrap_or(i64::MAX)),
            headers: headers::to_json(message),
            refusal,
        }
    }

    /// Memory that it takes, about.
    pub fn size_bytes(&self) -> usize {
        let bytes = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        bytes(&self.key)
            + bytes(&self.payload)
            + headers::size_bytes(&self.headers)
            + self.refusal.detail.len()
    }
}

/// Where letters of a batch come from.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Consumer group.
    pub group_id: &'a str,
    /// Topic.
    pub topic: &'a str,
    /// Which topic of that name.
    pub incarnation: i32,
    /// Partition.
    pub partition: i32,
}

#[derive(Insertable)]
#[diesel(table_name = dead_letters)]
struct NewDeadLetter<'a> {
    group_id: &'a str,
    topic: &'a str,
    incarnation: i32,
    partition: i32,
    offset: i64,
    key: Option<&'a [u8]>,
    payload: Option<&'a [u8]>,
    payload_size: i64,
    headers: &'a Value,
    message_timestamp: Option<DateTime<Utc>>,
    reason: &'a str,
    detail: String,
}

/// Writes letters in the caller's transaction; one that is there already, after a rewind, stays as it is.
///
/// # Errors
/// Fails as the database does.
pub fn insert(
    connection: &mut PgConnection,
    source: Source<'_>,
    letters: &[DeadLetter],
) -> QueryResult<()> {
    for chunk in letters.chunks(ROWS_PER_INSERT) {
        let rows: Vec<NewDeadLetter<'_>> =
            chunk.iter().map(|letter| new_row(source, letter)).collect();
        diesel::insert_into(dead_letters::table)
            .values(&rows)
            .on_conflict_do_nothing()
            .execute(connection)?;
    }
    Ok(())
}

fn new_row<'a>(source: Source<'a>, letter: &'a DeadLetter) -> NewDeadLetter<'a> {
    NewDeadLetter {
        group_id: source.group_id,
        topic: source.topic,
        incarnation: source.incarnation,
        partition: source.partition,
        offset: letter.offset,
        key: letter.key.as_deref(),
        payload: letter.payload.as_deref(),
        payload_size: letter.payload_size,
        headers: &letter.headers,
        message_timestamp: letter.timestamp_ms.and_then(storable_time),
        reason: letter.refusal.reason,
        // PostgreSQL's text cannot hold NUL, and a parser's message may quote one.
        detail: letter
            .refusal
            .detail
            .chars()
            .filter(|&c| c != '\0')
            .take(MAX_DETAIL_CHARS)
            .collect(),
    }
}

/// Producers set timestamps as they like; a time that PostgreSQL cannot hold is not kept.
fn storable_time(timestamp_ms: i64) -> Option<DateTime<Utc>> {
    const YEAR_9999_MS: i64 = 253_402_300_799_999;
    if (0..=YEAR_9999_MS).contains(&timestamp_ms) {
        DateTime::from_timestamp_millis(timestamp_ms)
    } else {
        None
    }
}
