//! The table `dead_letters`: what is kept of messages that are refused, the insert, and the queries on stored letters
//! ([`stored`]).

pub mod stored;

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use rdkafka::message::Message;
use serde_json::Value;
use shared::db::schema::dead_letters;
use strum::IntoStaticStr;

use crate::record::{Consumer, Incarnation, Offset, Partition, Position, Refusal, headers};
use stored::LetterState;

/// The most bytes of a payload that are kept.
pub const MAX_PAYLOAD_BYTES: usize = 1024 * 1024;
/// The most characters of a detail that are kept. A hostile order can have thousands of faults.
const MAX_DETAIL_CHARS: usize = 2_000;

/// The detail of a letter that names what was erased.
pub const ERASED_DETAIL: &str = "the message names an order or a customer that was erased";

/// Why a letter has no bytes any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Blanking {
    /// It names what was erased.
    Erased,
    /// It is older than `DEAD_LETTER_RETENTION_DAYS`.
    Expired,
}

/// Rows of one INSERT. With 15 columns each they stay far below the 65,535 parameters that a statement may have.
const ROWS_PER_INSERT: usize = 1_000;

/// A refused message, detached from Kafka's buffers.
#[derive(Debug)]
pub struct DeadLetter {
    /// Its place and time.
    pub position: Position,
    /// The key's bytes.
    pub key: Option<Vec<u8>>,
    /// The value's bytes, cut at [`MAX_PAYLOAD_BYTES`].
    pub payload: Option<Vec<u8>>,
    /// The size of the whole value in bytes.
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
            position: Position::of(message),
            key: message.key().map(<[u8]>::to_vec),
            payload: payload.map(|bytes| bytes[..bytes.len().min(MAX_PAYLOAD_BYTES)].to_vec()),
            payload_size: payload.map_or(0, |bytes| i64::try_from(bytes.len()).unwrap_or(i64::MAX)),
            headers: headers::to_json(message),
            refusal,
        }
    }

    /// Estimates the memory that it takes.
    pub fn size_bytes(&self) -> usize {
        let bytes = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        bytes(&self.key)
            + bytes(&self.payload)
            + headers::size_bytes(&self.headers)
            + self.refusal.detail.len()
    }
}

#[derive(Insertable)]
#[diesel(table_name = dead_letters)]
struct NewDeadLetter<'a> {
    group_id: &'a str,
    topic: &'a str,
    incarnation: Incarnation,
    partition: Partition,
    offset: Offset,
    key: Option<&'a [u8]>,
    payload: Option<&'a [u8]>,
    payload_size: i64,
    headers: &'a Value,
    message_timestamp: Option<DateTime<Utc>>,
    reason: &'a str,
    detail: String,
    state: &'static str,
    blanked_at: Option<DateTime<Utc>>,
    blanked_why: Option<&'static str>,
}

/// Inserts letters of one partition in the caller's transaction. A letter that is already there, as after a rewind,
/// stays unchanged. Those at the offsets `erased` are kept without their bytes.
///
/// # Errors
/// Returns the database's error.
pub fn insert(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: Partition,
    incarnation: Incarnation,
    letters: &[DeadLetter],
    erased: &HashSet<Offset>,
) -> QueryResult<()> {
    for chunk in letters.chunks(ROWS_PER_INSERT) {
        let rows = chunk.iter().map(|letter| {
            let is_erased = erased.contains(&letter.position.offset);
            new_row(consumer, partition, incarnation, letter, is_erased)
        });
        diesel::insert_into(dead_letters::table)
            .values(rows.collect::<Vec<_>>())
            .on_conflict_do_nothing()
            .execute(connection)?;
    }
    Ok(())
}

fn new_row<'a>(
    consumer: &'a Consumer,
    partition: Partition,
    incarnation: Incarnation,
    letter: &'a DeadLetter,
    is_erased: bool,
) -> NewDeadLetter<'a> {
    static NO_HEADERS: Value = Value::Array(Vec::new());
    let kept = Some(letter).filter(|_| !is_erased);
    NewDeadLetter {
        group_id: &consumer.group_id,
        topic: &consumer.topic,
        incarnation,
        partition,
        offset: letter.position.offset,
        key: kept.and_then(|letter| letter.key.as_deref()),
        payload: kept.and_then(|letter| letter.payload.as_deref()),
        payload_size: letter.payload_size,
        headers: kept.map_or(&NO_HEADERS, |letter| &letter.headers),
        message_timestamp: letter.position.timestamp_ms.and_then(storable_time),
        reason: letter.refusal.reason.into(),
        detail: kept.map_or_else(
            || ERASED_DETAIL.to_owned(),
            |letter| storable_detail(&letter.refusal.detail),
        ),
        state: LetterState::at_first(letter.refusal.reason).into(),
        blanked_at: is_erased.then(Utc::now),
        blanked_why: is_erased.then_some(Blanking::Erased.into()),
    }
}

/// PostgreSQL's text cannot hold NUL, and a parser's message may quote one.
fn storable_detail(detail: &str) -> String {
    (detail.chars())
        .filter(|&c| c != '\0')
        .take(MAX_DETAIL_CHARS)
        .collect()
}

/// Producers set timestamps as they like. A time that PostgreSQL cannot hold is not kept.
fn storable_time(timestamp_ms: i64) -> Option<DateTime<Utc>> {
    const YEAR_9999_MS: i64 = 253_402_300_799_999;
    (0..=YEAR_9999_MS)
        .contains(&timestamp_ms)
        .then(|| DateTime::from_timestamp_millis(timestamp_ms))
        .flatten()
}
