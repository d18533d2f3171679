//! The contract between writers and caches: what a NOTIFY on [`CHANNEL`] says.
//!
//! Writers emit in the transaction that changes the orders; for those that do not, by hand in psql for example, the
//! database does (trigger function `emit_foreign_writes`). The payload is a hint: a receiver may only evict and look
//! again, never trust it as a value.

use diesel::sql_types::{Array, Text};
use serde::{Deserialize, Serialize};

/// The channel that writers notify and caches listen to.
pub const CHANNEL: &str = "order_events";

/// Upper bound of a payload in bytes; PostgreSQL refuses 8,000.
pub const MAX_PAYLOAD_BYTES: usize = 7_900;

/// Version of the payload's format.
const FORMAT_VERSION: u32 = 1;

/// What happened to orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// They were inserted or changed.
    Upsert,
    /// They were deleted.
    Delete,
    /// Any order may have changed: a TRUNCATE, or more of them by hand than are worth naming. Only the database emits it;
    /// to a program that does not know it it is an unknown operation, and does the same.
    Flush,
}

/// One notification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderEvent {
    #[serde(rename = "v")]
    format_version: u32,
    /// What happened.
    #[serde(rename = "op")]
    pub operation: Operation,
    /// The orders it happened to.
    pub uids: Vec<String>,
}

/// A payload that this program does not know: whoever meets one drops all it has cached.
#[derive(Debug, thiserror::Error)]
pub enum UnknownEvent {
    /// Not the JSON of an event, or an operation of later days.
    #[error("the payload is no order event: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Written by a later program.
    #[error("the payload has format {0}, this program knows {FORMAT_VERSION}")]
    Version(u32),
}

diesel::define_sql_function! {
    /// PostgreSQL's own; the notification leaves with the COMMIT.
    fn pg_notify(channel: Text, payload: Text);
}

diesel::define_sql_function! {
    /// PostgreSQL's own: a row for each.
    fn unnest(elements: Array<Text>) -> Text;
}

/// What [`notify`] makes.
pub type Notify = diesel::dsl::select<pg_notify<&'static str, unnest<Vec<String>>>>;

/// The statement that tells the caches, to be run in the transaction that changes the orders. Of no orders it tells nothing.
pub fn notify<'a>(operation: Operation, uids: impl IntoIterator<Item = &'a str>) -> Notify {
    diesel::select(pg_notify(CHANNEL, unnest(encode(operation, uids))))
}

/// Packs orders into as few payloads as possible.
pub fn encode<'a>(operation: Operation, uids: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let prefix = match operation {
        Operation::Upsert => r#"{"v":1,"op":"upsert","uids":["#,
        Operation::Delete => r#"{"v":1,"op":"delete","uids":["#,
        Operation::Flush => r#"{"v":1,"op":"flush","uids":["#,
    };
    let mut payloads = Vec::new();
    let mut payload = String::from(prefix);
    for uid in uids {
        // A uid's alphabet needs no JSON escapes: it grows by quotes and a comma; `]}` closes the payload.
        if payload.len() + uid.len() + "\"\",".len() + "]}".len() > MAX_PAYLOAD_BYTES {
            payloads.push(close(std::mem::replace(&mut payload, prefix.to_owned())));
        }
        if payload.len() > prefix.len() {
            payload.push(',');
        }
        payload.push('"');
        payload.push_str(uid);
        payload.push('"');
    }
    if payload.len() > prefix.len() {
        payloads.push(close(payload));
    }
    payloads
}

fn close(mut payload: String) -> String {
    payload.push_str("]}");
    payload
}

/// Reads a payload.
///
/// # Errors
/// [`UnknownEvent`] where the payload is not of this version of the contract.
pub fn parse(payload: &str) -> Result<OrderEvent, UnknownEvent> {
    let event: OrderEvent = serde_json::from_str(payload)?;
    if event.format_version == FORMAT_VERSION {
        Ok(event)
    } else {
        Err(UnknownEvent::Version(event.format_version))
    }
}

#[cfg(test)]
mod tests {
    use diesel::pg::Pg;
    use diesel::query_builder::QueryFragment;

    use super::*;

    #[test]
    fn notifying_is_prepared_once() {
        let notification = notify(Operation::Upsert, ["a"]);
        let may_be_kept = QueryFragment::<Pg>::is_safe_to_cache_prepared(&notification, &Pg);
        assert_eq!(may_be_kept, Ok(true));
    }

    #[test]
    fn payloads_hold_every_uid_once_and_stay_within_the_bound() {
        for count in [0, 1, 2, 115, 116, 117, 118, 1000] {
            let uids: Vec<String> = (0..count).map(|index| format!("{index:064}")).collect();
            let payloads = encode(Operation::Delete, uids.iter().map(String::as_str));
            assert!(
                payloads
                    .iter()
                    .all(|payload| payload.len() <= MAX_PAYLOAD_BYTES)
            );
            let events: Vec<OrderEvent> = payloads
                .iter()
                .map(|payload| parse(payload).unwrap())
                .collect();
            assert!(
                events
                    .iter()
                    .all(|event| event.operation == Operation::Delete)
            );
            assert_eq!(
                events
                    .into_iter()
                    .flat_map(|event| event.uids)
                    .collect::<Vec<_>>(),
                uids
            );
        }
    }

    #[test]
    fn one_upsert_reads_as_the_contract_says() {
        assert_eq!(
            encode(Operation::Upsert, ["a", "b"]),
            [r#"{"v":1,"op":"upsert","uids":["a","b"]}"#]
        );
    }

    #[test]
    fn what_is_unknown_is_refused() {
        for payload in [
            "",
            "a",
            "{}",
            r#"{"v":2,"op":"upsert","uids":[]}"#,
            r#"{"v":1,"op":"rename","uids":[]}"#,
        ] {
            assert!(parse(payload).is_err(), "{payload}");
        }
    }
}
