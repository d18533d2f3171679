//! Records into batches: what one transaction stores of one partition. No I/O.

use std::time::Instant;

use rdkafka::message::{Message, OwnedMessage};
use shared::order::{Order, OrderError};

use crate::dead_letters::DeadLetter;
use crate::headers;

/// Memory that a record takes beyond the bytes of its message: the order's structs, and its rows while it is written.
const RECORD_OVERHEAD_BYTES: usize = 2048;
/// Memory of an item beyond its bytes, of which an item of a hostile order has but 60. A few are part of the above.
const ITEM_OVERHEAD_BYTES: usize = 256;
const ITEMS_IN_OVERHEAD: usize = 4;

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

/// A valid order.
#[derive(Debug)]
pub struct IncomingOrder {
    /// The order.
    pub order: Box<Order>,
    /// The message that brought it, kept for the dead letter that it becomes where the database refuses the order.
    pub message: OwnedMessage,
}

/// An order and the offset of its message.
#[derive(Clone, Copy, Debug)]
pub struct SourcedOrder<'a> {
    /// The order.
    pub order: &'a Order,
    /// Offset in the batch's partition.
    pub offset: i64,
}

impl<'a> SourcedOrder<'a> {
    /// The order's id.
    pub fn uid(&self) -> &'a str {
        self.order.order_uid.as_str()
    }
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
    pub fn push_order(&mut self, order: Order, message: OwnedMessage) {
        self.pass(Position {
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis(),
        });
        self.size_bytes += message.payload().map_or(0, <[u8]>::len)
            + message.key().map_or(0, <[u8]>::len)
            + headers::copied_bytes(&message)
            + RECORD_OVERHEAD_BYTES
            + order.items.len().saturating_sub(ITEMS_IN_OVERHEAD) * ITEM_OVERHEAD_BYTES;
        self.orders.push(IncomingOrder {
            order: Box::new(order),
            message,
        });
    }

    /// Takes a refused message.
    pub fn push_dead_letter(&mut self, letter: DeadLetter) {
        self.pass(Position {
            offset: letter.offset,
            timestamp_ms: letter.timestamp_ms,
        });
        self.size_bytes += letter.size_bytes() + RECORD_OVERHEAD_BYTES;
        self.dead_letters.push(letter);
    }

    fn pass(&mut self, record: Position) {
        self.go_to(record.offset + 1);
        self.last_record = Some(record);
    }

    /// Makes dead letters of orders that the database refuses; `refused` are offsets and reasons, rising.
    pub fn refuse(&mut self, refused: Vec<(i64, Refusal)>) {
        for (offset, refusal) in refused {
            let found =
                (self.orders).binary_search_by_key(&offset, |incoming| incoming.message.offset());
            if let Ok(index) = found {
                let incoming = self.orders.remove(index);
                self.dead_letters
                    .push(DeadLetter::new(&incoming.message, refusal));
            }
        }
        self.dead_letters.sort_by_key(|letter| letter.offset);
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
    pub fn folded(&self) -> Vec<SourcedOrder<'_>> {
        self.folded_without(&[])
    }

    /// The same, as if the messages at these offsets, rising, had not been there.
    pub fn folded_without(&self, left_out: &[i64]) -> Vec<SourcedOrder<'_>> {
        let mut latest: Vec<SourcedOrder<'_>> = (self.orders.iter())
            .map(|incoming| SourcedOrder {
                order: &incoming.order,
                offset: incoming.message.offset(),
            })
            .filter(|sourced| left_out.binary_search(&sourced.offset).is_err())
            .collect();
        latest.sort_unstable_by(|left, right| {
            (&left.order.order_uid, left.offset).cmp(&(&right.order.order_uid, right.offset))
        });
        latest.dedup_by(|later, earlier| {
            let same = later.order.order_uid == earlier.order.order_uid;
            if same {
                *earlier = *later;
            }
            same
        });
        latest
    }

    /// How many bad messages stand in a row, `carried` of them before the batch.
    pub fn bad_run(&self, carried: i64) -> BadRun {
        let mut run = BadRun {
            longest: carried,
            trailing: carried,
        };
        let mut good = self.orders.iter().map(|incoming| incoming.message.offset());
        let mut next_good = good.next();
        for letter in &self.dead_letters {
            while next_good.is_some_and(|offset| offset < letter.offset) {
                run.trailing = 0;
                next_good = good.next();
            }
            run.trailing += 1;
            run.longest = run.longest.max(run.trailing);
        }
        if next_good.is_some() {
            run.trailing = 0;
        }
        run
    }
}

/// Bad messages in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadRun {
    /// The longest row that the batch has part in.
    pub longest: i64,
    /// The row that goes on behind the batch.
    pub trailing: i64,
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

/// The stable code of an order that only a constraint of the database refuses.
pub const REFUSED_BY_DATABASE: &str = "refused_by_database";

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
    use rdkafka::Timestamp;
    use shared::testing::OrderGenerator;

    use super::*;

    const READING: Reading = Reading {
        partition: 3,
        generation: 1,
    };

    fn message(offset: i64, payload: &[u8]) -> OwnedMessage {
        OwnedMessage::new(
            Some(payload.to_vec()),
            Some(b"key".to_vec()),
            "orders".to_owned(),
            Timestamp::CreateTime(offset),
            READING.partition,
            offset,
            None,
        )
    }

    fn push_order(batch: &mut Batch, offset: i64, order: Order) {
        batch.push_order(order, message(offset, b"payload"));
    }

    fn refusal() -> Refusal {
        Refusal {
            reason: "not_json",
            detail: String::new(),
        }
    }

    fn push_dead(batch: &mut Batch, offset: i64) {
        batch.push_dead_letter(DeadLetter::new(&message(offset, b"{"), refusal()));
    }

    fn places(orders: &[SourcedOrder<'_>]) -> Vec<(String, i64)> {
        let place =
            |sourced: &SourcedOrder<'_>| (sourced.order.order_uid.to_string(), sourced.offset);
        orders.iter().map(place).collect()
    }

    #[test]
    fn the_last_message_of_an_order_wins_and_uids_are_sorted() {
        let mut generator = OrderGenerator::new(1, Utc::now());
        let mut batch = Batch::open(READING, 10);
        for (offset, uid) in [(10, "b"), (11, "a"), (12, "b"), (15, "c")] {
            push_order(&mut batch, offset, generator.order_with_uid(uid));
        }
        let expected =
            [("a", 11), ("b", 12), ("c", 15)].map(|(uid, offset)| (uid.to_owned(), offset));
        assert_eq!(places(&batch.folded()), expected);
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
    fn a_message_that_was_folded_away_comes_back_when_the_later_one_is_refused() {
        let mut generator = OrderGenerator::new(2, Utc::now());
        let mut batch = Batch::open(READING, 0);
        for (offset, uid) in [(0, "a"), (1, "b"), (2, "a"), (3, "a")] {
            push_order(&mut batch, offset, generator.order_with_uid(uid));
        }
        assert_eq!(places(&batch.folded_without(&[3]))[0].1, 2);
        batch.refuse(vec![(2, refusal()), (3, refusal())]);
        let expected = [("a", 0), ("b", 1)].map(|(uid, offset)| (uid.to_owned(), offset));
        assert_eq!(places(&batch.folded()), expected);
        let letters: Vec<(i64, Option<&[u8]>)> = (batch.dead_letters.iter())
            .map(|letter| (letter.offset, letter.payload.as_deref()))
            .collect();
        assert_eq!(letters, [(2, Some(&b"payload"[..])), (3, Some(b"payload"))]);
        assert_eq!((batch.records(), batch.new_next_offset), (4, 4));
    }

    #[test]
    fn bad_messages_in_a_row_are_counted_over_batches_and_between_good_ones() {
        let mut generator = OrderGenerator::new(3, Utc::now());
        let run = |longest, trailing| BadRun { longest, trailing };
        let mut batch = Batch::open(READING, 0);
        assert_eq!(batch.bad_run(4), run(4, 4));
        push_dead(&mut batch, 0);
        assert_eq!(batch.bad_run(4), run(5, 5));
        push_order(&mut batch, 1, generator.next_order());
        assert_eq!(batch.bad_run(4), run(5, 0));
        push_dead(&mut batch, 2);
        push_dead(&mut batch, 3);
        assert_eq!((batch.bad_run(0), batch.bad_run(4)), (run(2, 2), run(5, 2)));
        push_order(&mut batch, 4, generator.next_order());
        assert_eq!(batch.bad_run(0), run(2, 0));
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
