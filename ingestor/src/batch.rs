//! Records into batches: what one transaction stores of one partition. No I/O.

use std::collections::BTreeMap;
use std::time::Instant;

use shared::order::{Order, OrderError};

use crate::dead_letters::DeadLetter;

/// Memory that a record takes beyond the bytes of its message: the order's structs and some forty texts of their own.
const RECORD_OVERHEAD_BYTES: usize = 4096;

/// Which reading of a partition a batch belongs to. Every claim begins a new generation; what an older one has read is
/// dropped, not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reading {
    /// The partition.
    pub partition: i32,
    /// Rises with every claim of this process.
    pub generation: u64,
}

/// A record's place and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Offset in its partition.
    pub offset: i64,
    /// Milliseconds since 1970, where the broker told.
    pub timestamp_ms: Option<i64>,
}

/// A valid order and where it stood.
#[derive(Debug)]
pub struct IncomingOrder {
    /// The order.
    pub order: Order,
    /// Offset of its message.
    pub offset: i64,
}

/// Everything between two offsets of a partition.
#[derive(Debug)]
pub struct Batch {
    /// What it belongs to.
    pub reading: Reading,
    /// The offset at which it starts: what the database must still be at.
    pub old_next_offset: i64,
    /// The offset behind it: where the database goes.
    pub new_next_offset: i64,
    /// Its last record; none where only the end of the partition was reached.
    pub last_record: Option<Position>,
    /// Valid orders by offset, repeated ones included.
    pub orders: Vec<IncomingOrder>,
    /// Refused messages by offset.
    pub dead_letters: Vec<DeadLetter>,
    /// Refused messages behind the last valid order.
    pub trailing_dead_letters: i64,
    /// Memory it takes, about.
    pub size_bytes: usize,
    opened_at: Instant,
}

impl Batch {
    /// Starts a batch at the offset at which the one before ended.
    pub fn open(reading: Reading, next_offset: i64) -> Self {
        Self {
            reading,
            old_next_offset: next_offset,
            new_next_offset: next_offset,
            last_record: None,
            orders: Vec::new(),
            dead_letters: Vec::new(),
            trailing_dead_letters: 0,
            size_bytes: 0,
            opened_at: Instant::now(),
        }
    }

    /// Whether a record is new. One below the batch's end was here before and changes nothing; one above it is a gap,
    /// which transaction markers and compaction leave.
    pub fn is_new(&self, offset: i64) -> bool {
        offset >= self.new_next_offset
    }

    /// Takes a valid order.
    pub fn push_order(&mut self, position: Position, payload_bytes: usize, order: Order) {
        self.go_to(position.offset + 1);
        self.orders.push(IncomingOrder {
            order,
            offset: position.offset,
        });
        self.trailing_dead_letters = 0;
        self.last_record = Some(position);
        self.size_bytes += payload_bytes + RECORD_OVERHEAD_BYTES;
    }

    /// Takes a refused message.
    pub fn push_dead_letter(&mut self, position: Position, letter: DeadLetter) {
        self.go_to(position.offset + 1);
        self.size_bytes += letter.size_bytes() + RECORD_OVERHEAD_BYTES;
        self.dead_letters.push(letter);
        self.trailing_dead_letters += 1;
        self.last_record = Some(position);
    }

    /// Moves the batch's end to the consumer's position at the end of the partition.
    pub fn reach(&mut self, position: i64) {
        if position > self.new_next_offset {
            self.go_to(position);
        }
    }

    fn go_to(&mut self, next_offset: i64) {
        if self.is_empty() {
            self.opened_at = Instant::now();
        }
        self.new_next_offset = next_offset;
    }

    /// Nothing to write, not even an offset.
    pub fn is_empty(&self) -> bool {
        self.new_next_offset == self.old_next_offset
    }

    /// Records in it, repeated orders and refused messages included.
    pub fn records(&self) -> usize {
        self.orders.len() + self.dead_letters.len()
    }

    /// When its first record came.
    pub fn opened_at(&self) -> Instant {
        self.opened_at
    }

    /// The last message of each order, sorted by uid: what the writer stores, in the order in which it locks.
    pub fn folded(&self) -> Vec<&IncomingOrder> {
        let latest: BTreeMap<&str, &IncomingOrder> = self
            .orders
            .iter()
            .map(|incoming| (incoming.order.order_uid.as_str(), incoming))
            .collect();
        latest.into_values().collect()
    }
}

/// Reads one message.
pub fn decode(payload: Option<&[u8]>) -> Result<Order, Refusal> {
    match payload {
        None => Err(Refusal {
            reason: "tombstone",
            detail: "the message has no value".to_owned(),
        }),
        Some(bytes) => Order::decode(bytes).map_err(Refusal::from),
    }
}

/// Why a message is no order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Stable code, see `dead_letters.reason`.
    pub reason: &'static str,
    /// What exactly is wrong; quotes no value.
    pub detail: String,
}

impl From<OrderError> for Refusal {
    fn from(error: OrderError) -> Self {
        Self {
            reason: error.reason(),
            detail: error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use shared::testing::OrderGenerator;

    use super::*;

    const READING: Reading = Reading {
        partition: 3,
        generation: 1,
    };

    fn push_order(batch: &mut Batch, offset: i64, order: Order) {
        batch.push_order(
            Position {
                offset,
                timestamp_ms: Some(offset),
            },
            100,
            order,
        );
    }

    fn push_dead(batch: &mut Batch, offset: i64) {
        let letter = DeadLetter {
            offset,
            timestamp_ms: None,
            key: None,
            payload: None,
            payload_size: 0,
            headers: serde_json::json!([]),
            refusal: Refusal {
                reason: "not_json",
                detail: String::new(),
            },
        };
        batch.push_dead_letter(
            Position {
                offset,
                timestamp_ms: None,
            },
            letter,
        );
    }

    #[test]
    fn the_last_message_of_an_order_wins_and_uids_are_sorted() {
        let mut generator = OrderGenerator::new(1, Utc::now());
        let mut batch = Batch::open(READING, 10);
        for (offset, uid) in [(10, "b"), (11, "a"), (12, "b"), (15, "c")] {
            push_order(&mut batch, offset, generator.order_with_uid(uid));
        }
        let folded: Vec<(&str, i64)> = batch
            .folded()
            .iter()
            .map(|incoming| (incoming.order.order_uid.as_str(), incoming.offset))
            .collect();
        assert_eq!(folded, [("a", 11), ("b", 12), ("c", 15)]);
        assert_eq!(
            (
                batch.old_next_offset,
                batch.new_next_offset,
                batch.records()
            ),
            (10, 16, 4)
        );
    }

    #[test]
    fn records_below_the_end_are_not_new() {
        let mut batch = Batch::open(READING, 10);
        assert!(!batch.is_new(9) && batch.is_new(10) && batch.is_new(12));
        push_dead(&mut batch, 12);
        assert!(!batch.is_new(12) && batch.is_new(13));
    }

    #[test]
    fn dead_letters_in_a_row_are_counted_from_the_last_good_order() {
        let mut generator = OrderGenerator::new(3, Utc::now());
        let mut batch = Batch::open(READING, 0);
        push_dead(&mut batch, 0);
        push_order(&mut batch, 1, generator.next_order());
        push_dead(&mut batch, 2);
        push_dead(&mut batch, 3);
        assert_eq!(
            (batch.trailing_dead_letters, batch.dead_letters.len()),
            (2, 3)
        );
    }

    #[test]
    fn the_end_of_a_partition_moves_the_offset_forward_only() {
        let mut batch = Batch::open(READING, 10);
        batch.reach(9);
        assert!(batch.is_empty());
        batch.reach(12);
        assert_eq!(
            (batch.new_next_offset, batch.records(), batch.last_record),
            (12, 0, None)
        );
    }

    #[test]
    fn a_message_without_a_value_is_a_tombstone() {
        assert_eq!(decode(None).unwrap_err().reason, "tombstone");
    }
}
