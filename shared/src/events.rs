//! The contract between writers and caches: what a NOTIFY on [`CHANNEL`] contains.
//!
//! Our writers emit events in the transaction that changes the orders. For all other writers, such as a person in psql, the
//! trigger function `emit_foreign_writes` emits them. The payload is a hint: a receiver only evicts and reads again. It never
//! uses the payload as a value.

use diesel::sql_types::{Array, Text};
use serde::{Deserialize, Serialize};

/// The channel that writers notify and caches listen to.
pub const CHANNEL: &str = "order_events";

/// The largest payload in bytes. PostgreSQL refuses 8,000.
pub const MAX_PAYLOAD_BYTES: usize = 7_900;

/// The version of the payload's format.
const FORMAT_VERSION: u32 = 1;

/// What happened to orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// They were inserted or changed.
    Upsert,
    /// They were deleted.
    Delete,
    /// Any order may have changed: by a TRUNCATE, or by a statement that changed too many orders to name. Only the trigger
    /// emits it. A program that does not know it treats it as unknown, which has the same effect.
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

/// The payload is not known to this program. A cache that receives one drops all of its entries.
#[derive(Debug, thiserror::Error)]
pub enum UnknownEvent {
    /// Not the JSON of an event, or an operation of a later version.
    #[error("the payload is not an order event: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Written by a later version of the program.
    #[error("the payload has format {0}, this program knows {FORMAT_VERSION}")]
    Version(u32),
}

diesel::define_sql_function! {
    /// PostgreSQL's function. The notification is sent when the transaction commits.
    fn pg_notify(channel: Text, payload: Text);
}

diesel::define_sql_function! {
    /// PostgreSQL's function: one row per element.
    fn unnest(elements: Array<Text>) -> Text;
}

/// The statement that [`notify`] returns.
pub type Notify = diesel::dsl::select<pg_notify<&'static str, unnest<Vec<String>>>>;

/// Builds the statement that notifies the caches. Run it in the transaction that changes the orders.
///
/// Without orders it sends nothing.
pub fn notify<'a>(operation: Operation, uids: impl IntoIterator<Item = &'a str>) -> Notify {
    diesel::select(pg_notify(CHANNEL, unnest(encode(operation, uids))))
}

/// Packs the uids into as few payloads as possible.
pub fn encode<'a>(operation: Operation, uids: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let prefix = match operation {
        Operation::Upsert => r#"{"v":1,"op":"upsert","uids":["#,
        Operation::Delete => r#"{"v":1,"op":"delete","uids":["#,
        Operation::Flush => r#"{"v":1,"op":"flush","uids":["#,
    };
    let mut payloads = Vec::new();
    let mut payload = String::from(prefix);
    for uid in uids {
        // No character of a uid needs a JSON escape. Each uid adds quotes and a comma, and `]}` closes the payload.
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
/// Returns [`UnknownEvent`] if the payload is not of this version of the contract.
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
