//! Prints letters as a table, as a page of text, or as JSON. Whatever a producer has sent, the terminal gets printable text.

use std::fmt::Write;

use anyhow::Context;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use crate::dead_letters::stored::{LetterSummary, StoredLetter};

/// How many characters of a detail the table shows.
const DETAIL_CHARS: usize = 80;

pub(super) fn list(letters: &[LetterSummary], limit: i64, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        for letter in letters {
            println!("{}", summary_json(letter));
        }
        return Ok(());
    }
    println!(
        "{:>10}  {:>4}  {:>12}  {:<20}  {:<10}  {:<20}  {:>8}  {:<9}  DETAIL",
        "ID", "PART", "OFFSET", "REASON", "STATE", "CREATED_AT", "BYTES", "RELAY"
    );
    for letter in letters {
        println!(
            "{:>10}  {:>4}  {:>12}  {:<20}  {:<10}  {:<20}  {:>8}  {:<9}  {}",
            letter.id,
            letter.partition.0,
            letter.offset.0,
            letter.reason,
            letter.state,
            rfc3339(letter.created_at),
            letter.payload_size,
            match (letter.relayed_at, &letter.relay_error) {
                (None, _) => "-",
                (Some(_), None) => "published",
                (Some(_), Some(_)) => "refused",
            },
            printable(&letter.detail.chars().take(DETAIL_CHARS).collect::<String>()),
        );
    }
    if let Some(last) = letters.last()
        && i64::try_from(letters.len()).is_ok_and(|shown| shown == limit)
    {
        println!("for more letters: --before {}", last.id);
    }
    Ok(())
}

pub(super) fn letter(letter: &StoredLetter, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let mut document = summary_json(&letter.summary);
        document["key"] = base64_or_null(letter.key.as_deref());
        document["payload"] = base64_or_null(letter.payload.as_deref());
        document["headers"] = letter.headers.clone();
        let text = serde_json::to_string_pretty(&document).context("cannot print JSON")?;
        println!("{text}");
    } else {
        print!(
            "{}",
            letter_text(letter).context("cannot print the letter")?
        );
    }
    Ok(())
}

fn letter_text(letter: &StoredLetter) -> Result<String, std::fmt::Error> {
    let summary = &letter.summary;
    let mut text = String::new();
    for (name, value) in [
        ("id", summary.id.to_string()),
        (
            "message",
            format!(
                "{}, incarnation {}, partition {}, offset {}",
                summary.topic, summary.incarnation, summary.partition, summary.offset
            ),
        ),
        ("produced at", or_dash(summary.message_timestamp)),
        ("created at", rfc3339(summary.created_at)),
        (
            "state",
            format!("{} since {}", summary.state, rfc3339(summary.updated_at)),
        ),
        ("relay", relay_text(summary)),
        ("reason", summary.reason.clone()),
        ("detail", printable(&summary.detail)),
        ("key", bytes_text(letter.key.as_deref())),
    ] {
        writeln!(text, "{name:<12}{value}")?;
    }
    for header in letter.headers.as_array().into_iter().flatten() {
        let value = header["value"]
            .as_str()
            .and_then(|value| BASE64_STANDARD.decode(value).ok());
        let name = printable(header["key"].as_str().unwrap_or_default());
        writeln!(
            text,
            "{:<12}{name}: {}",
            "header",
            bytes_text(value.as_deref())
        )?;
    }
    let size = summary.payload_size;
    if let Some(why) = summary.blanking() {
        writeln!(text, "{:<12}{size} bytes once; {why}", "payload")?;
        return Ok(text);
    }
    let cut = if letter.is_cut() {
        ", of which only the beginning is kept"
    } else {
        ""
    };
    writeln!(text, "{:<12}{size} bytes{cut}", "payload")?;
    writeln!(text, "{}", bytes_text(letter.payload.as_deref()))?;
    Ok(text)
}

/// Says what has become of the letter in `KAFKA_DLQ_TOPIC`.
fn relay_text(letter: &LetterSummary) -> String {
    match (letter.relayed_at, &letter.relay_error) {
        (None, _) => "-".to_owned(),
        (Some(at), None) => format!("published {}", rfc3339(at)),
        (Some(at), Some(error)) => format!("refused {} by {}", rfc3339(at), printable(error)),
    }
}

/// Returns text as it is, and other bytes in base64.
fn bytes_text(bytes: Option<&[u8]>) -> String {
    let Some(bytes) = bytes else {
        return "-".to_owned();
    };
    match str::from_utf8(bytes) {
        Ok(text)
            if !text
                .chars()
                .any(|c| c.is_control() && !matches!(c, '\n' | '\t')) =>
        {
            text.to_owned()
        }
        _ => format!("base64 {}", BASE64_STANDARD.encode(bytes)),
    }
}

/// Replaces control characters, which could control the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn summary_json(letter: &LetterSummary) -> Value {
    json!({
        "id": letter.id,
        "topic": letter.topic,
        "incarnation": letter.incarnation.0,
        "partition": letter.partition.0,
        "offset": letter.offset.0,
        "payload_size": letter.payload_size,
        "message_timestamp": letter.message_timestamp.map(rfc3339),
        "reason": letter.reason,
        "detail": letter.detail,
        "state": letter.state,
        "created_at": rfc3339(letter.created_at),
        "updated_at": rfc3339(letter.updated_at),
        "relayed_at": letter.relayed_at.map(rfc3339),
        "relay_error": letter.relay_error,
        "blanked_at": letter.blanked_at.map(rfc3339),
        "blanked_why": letter.blanked_why,
    })
}

fn base64_or_null(bytes: Option<&[u8]>) -> Value {
    bytes.map_or(Value::Null, |bytes| BASE64_STANDARD.encode(bytes).into())
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn or_dash(time: Option<DateTime<Utc>>) -> String {
    time.map_or_else(|| "-".to_owned(), rfc3339)
}
