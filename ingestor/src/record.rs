//! What a record is: its place, who reads it and in which reading, and why it is refused.
//!
//! Everything else builds on this module. It does no I/O.

pub mod headers;
mod numbers;

pub use numbers::{Epoch, Incarnation, Offset, Partition};
use rdkafka::message::Message;
use shared::order::{Decoder, Order, OrderError};
use strum::{IntoStaticStr, VariantArray};
use uuid::Uuid;

/// This process as a reader of its topic.
#[derive(Clone, Debug)]
pub struct Consumer {
    /// Consumer group.
    pub group_id: String,
    /// Topic.
    pub topic: String,
    /// Names this process in `consumer_offsets.owner`.
    pub owner: Uuid,
}

/// Which reading of a partition a batch belongs to. Every claim begins a new generation; records of an older one are
/// dropped, not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reading {
    /// The partition.
    pub partition: Partition,
    /// Rises with every claim of this process.
    pub generation: u64,
}

/// A record's place and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Offset in its partition.
    pub offset: Offset,
    /// Milliseconds since 1970, if the broker knows the time.
    pub timestamp_ms: Option<i64>,
}

impl Position {
    /// The position of a message.
    pub fn of(message: &impl Message) -> Self {
        Self {
            offset: Offset(message.offset()),
            timestamp_ms: message.timestamp().to_millis(),
        }
    }
}

/// Reads the order in a message's value.
///
/// # Errors
/// Returns the reason if there is no value, or if it is not a valid order.
pub fn decode(decoder: Decoder, payload: Option<&[u8]>) -> Result<Order, Refusal> {
    match payload {
        None => Err(Refusal {
            reason: Reason::Tombstone,
            detail: "the message has no value".to_owned(),
        }),
        Some(bytes) => decoder.decode(bytes).map_err(Refusal::from),
    }
}

/// Why a message is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of fault.
    pub reason: Reason,
    /// What exactly is wrong. It quotes no value, because values may be personal data.
    pub detail: String,
}

/// The stable codes in `dead_letters.reason` and in the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Reason {
    /// The value is not one JSON document.
    NotJson,
    /// The value is JSON, but not a valid order.
    InvalidOrder,
    /// The value has too many bytes.
    TooLarge,
    /// There is no value.
    Tombstone,
    /// The order is valid, but a constraint of the database rejects it.
    RefusedByDatabase,
    /// The order is valid, but its message may have been read before, and the stored order may be newer.
    HeldBack,
}

impl From<OrderError> for Refusal {
    fn from(error: OrderError) -> Self {
        let reason = match &error {
            OrderError::TooLarge { .. } => Reason::TooLarge,
            OrderError::NotJson(_) => Reason::NotJson,
            OrderError::Invalid(_) => Reason::InvalidOrder,
        };
        Self {
            reason,
            detail: error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_without_a_value_is_a_tombstone() {
        assert_eq!(
            decode(Decoder::default(), None).unwrap_err().reason,
            Reason::Tombstone
        );
    }

    #[test]
    fn a_fault_of_an_order_has_the_code_that_the_order_gives_it() {
        for bytes in [&b"{"[..], b"{}", &vec![b' '; 300_000]] {
            let error = Order::decode(bytes).unwrap_err();
            let code = error.reason();
            assert_eq!(<&str>::from(Refusal::from(error).reason), code);
        }
    }
}
