//! Records into batches: what one transaction stores of one partition. No I/O.

use std::cell::OnceCell;
use std::time::{Instant, SystemTime};

use rdkafka::message::{Message, OwnedMessage};
use shared::db::models::Source;
use shared::order::Order;
use shared::traces::{MAX_LINKS, SpanContext};

use crate::dead_letters::DeadLetter;
use crate::guard::Guard;
use crate::record::{Offset, Position, Reading, Refusal, headers};
use crate::witnesses::{self, Witness};

/// The memory that a record takes in addition to the bytes of its message: the order's structs, and its row while it is
/// written.
const RECORD_OVERHEAD_BYTES: usize = 2048;
/// The memory of an item in addition to its bytes, of which an item of a hostile order has only 60. The overhead of a
/// record covers the first few items.
const ITEM_OVERHEAD_BYTES: usize = 256;
const ITEMS_IN_OVERHEAD: usize = 4;
/// The memory of a [`TracedMessage`], with the state that its sender may have added.
const TRACED_BYTES: usize = 1024;

/// A valid order.
#[derive(Debug)]
pub struct IncomingOrder {
    /// The order.
    pub order: Box<Order>,
    /// The message that brought it. It is kept for the dead letter that it becomes if the database rejects the order.
    pub message: OwnedMessage,
}

impl IncomingOrder {
    /// The offset of its message.
    pub fn offset(&self) -> Offset {
        Offset(self.message.offset())
    }
}

/// A message whose sender is traced.
#[derive(Clone, Debug)]
pub struct TracedMessage {
    /// Its offset.
    pub offset: Offset,
    /// The span of its sender.
    pub sender: SpanContext,
    /// When it was read.
    pub read_at: SystemTime,
}

/// An order and its message.
#[derive(Clone, Copy, Debug)]
pub struct SourcedOrder<'a> {
    /// The order.
    pub order: &'a Order,
    /// The message's place in the batch's partition, and its time.
    pub position: Position,
    /// Whether the message was read before, or may have been.
    pub is_replay: bool,
    /// The message that counts as the order's writer; none after an operator's decision, and in an import.
    pub source: Option<Source>,
    /// Whether an order that exists stays as it is.
    pub keeps_existing: bool,
}

impl<'a> SourcedOrder<'a> {
    /// The order's id.
    pub fn uid(&self) -> &'a str {
        self.order.order_uid.as_str()
    }

    /// The message's offset.
    pub fn offset(&self) -> Offset {
        self.position.offset
    }
}

/// Where the orders of a batch come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Messages. The last message of an order wins, and counts as the order's writer.
    Topic,
    /// A file. No message counts as the writer of its orders.
    File {
        /// Whether its orders replace those that exist. If so, the last order of a uid wins, and otherwise the first one.
        replaces: bool,
    },
}

/// Everything between two offsets of a partition.
#[derive(Debug)]
pub struct Batch {
    /// Where its orders come from.
    pub origin: Origin,
    /// The reading that it belongs to.
    pub reading: Reading,
    /// The offset at which it starts. The database must be at this offset when the batch is stored.
    pub old_next_offset: Offset,
    /// The offset after its end, to which the database advances.
    pub new_next_offset: Offset,
    /// Its last record; none if only the end of the partition was reached.
    pub last_record: Option<Position>,
    /// The highest timestamp of its records, in milliseconds since 1970.
    pub max_timestamp_ms: Option<i64>,
    /// Valid orders by offset, including repeated ones.
    pub orders: Vec<IncomingOrder>,
    /// Refused messages by offset.
    pub dead_letters: Vec<DeadLetter>,
    /// Those of its messages whose senders are traced, by offset; at most as many as a span may have links.
    pub traced: Vec<TracedMessage>,
    /// The number of valid orders that are left out, because they would bring back what was deleted or erased.
    pub left_out: usize,
    /// An estimate of the memory that it takes.
    pub size_bytes: usize,
    opened_at: Instant,
    /// See [`Self::witness`], once it was asked for.
    witness: OnceCell<Option<Witness>>,
}

impl Batch {
    /// Starts a batch at the offset at which the previous one ended.
    pub fn open(reading: Reading, next_offset: Offset) -> Self {
        Self {
            origin: Origin::Topic,
            reading,
            old_next_offset: next_offset,
            new_next_offset: next_offset,
            last_record: None,
            max_timestamp_ms: None,
            orders: Vec::new(),
            dead_letters: Vec::new(),
            traced: Vec::new(),
            left_out: 0,
            size_bytes: 0,
            opened_at: Instant::now(),
            witness: OnceCell::new(),
        }
    }

    /// The same for orders of a file. `replaces`: see [`Origin::File`].
    pub fn of_file(reading: Reading, next_offset: Offset, replaces: bool) -> Self {
        let mut batch = Self::open(reading, next_offset);
        batch.origin = Origin::File { replaces };
        batch
    }

    /// Returns whether a record is new. A record below the batch's end was read before and changes nothing. A record
    /// above it means a gap, which transaction markers and compaction leave.
    pub fn is_new(&self, offset: Offset) -> bool {
        offset >= self.new_next_offset
    }

    /// Adds a valid order.
    pub fn push_order(&mut self, order: Order, message: OwnedMessage) {
        self.pass(Position::of(&message));
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

    /// Adds a refused message.
    pub fn push_dead_letter(&mut self, letter: DeadLetter) {
        self.pass(letter.position);
        self.size_bytes += letter.size_bytes() + RECORD_OVERHEAD_BYTES;
        self.dead_letters.push(letter);
    }

    /// Notes that the sender of a message is traced.
    pub fn push_traced(&mut self, message: TracedMessage) {
        if self.traced.len() < MAX_LINKS {
            self.size_bytes += TRACED_BYTES;
            self.traced.push(message);
        }
    }

    fn pass(&mut self, record: Position) {
        self.advance_to(record.offset.next());
        self.last_record = Some(record);
        self.witness.take();
        self.max_timestamp_ms = self.max_timestamp_ms.max(record.timestamp_ms);
    }

    /// The message of the order at an offset.
    pub fn message_at(&self, offset: Offset) -> Option<&OwnedMessage> {
        let index = self
            .orders
            .binary_search_by_key(&offset, IncomingOrder::offset)
            .ok()?;
        Some(&self.orders[index].message)
    }

    /// What is kept of the last record, to recognise the log. It is hashed once, and stays when the record is left out later.
    pub fn witness(&self) -> Option<Witness> {
        *self.witness.get_or_init(|| self.hash_last_record())
    }

    fn hash_last_record(&self) -> Option<Witness> {
        let position = self.last_record?;
        let payload = if let Some(message) = self.message_at(position.offset) {
            message.payload()
        } else {
            let letter = self.dead_letters.last();
            let letter = letter.filter(|letter| letter.position.offset == position.offset)?;
            letter.payload.as_deref()
        };
        Some(Witness {
            position,
            payload_hash: witnesses::payload_hash(payload),
        })
    }

    /// Turns orders that the database rejects into dead letters. `refused` are offsets and reasons, by rising offset.
    pub fn refuse(&mut self, refused: Vec<(Offset, Refusal)>) {
        for (offset, refusal) in refused {
            if let Ok(index) = self
                .orders
                .binary_search_by_key(&offset, IncomingOrder::offset)
            {
                let incoming = self.orders.remove(index);
                self.dead_letters
                    .push(DeadLetter::new(&incoming.message, refusal));
            }
        }
        self.dead_letters
            .sort_by_key(|letter| letter.position.offset);
    }

    /// Leaves out orders that would bring back what was deleted or erased. An earlier message of such an order may count
    /// again: it is judged by itself.
    pub fn leave_out(&mut self, offsets: &[Offset]) {
        let before = self.orders.len();
        self.orders
            .retain(|incoming| !offsets.contains(&incoming.offset()));
        self.left_out += before - self.orders.len();
    }

    /// Moves the batch's end to the consumer's position at the end of the partition.
    pub fn reach(&mut self, position: Offset) {
        if position > self.new_next_offset {
            self.advance_to(position);
        }
    }

    fn advance_to(&mut self, next_offset: Offset) {
        if self.is_empty() {
            self.opened_at = Instant::now();
        }
        self.new_next_offset = next_offset;
    }

    /// Returns whether there is nothing to write, not even an offset.
    pub fn is_empty(&self) -> bool {
        self.new_next_offset == self.old_next_offset
    }

    /// The number of records, including repeated orders, refused messages, and orders that are left out.
    pub fn records(&self) -> usize {
        self.orders.len() + self.dead_letters.len() + self.left_out
    }

    /// When its first record was added.
    pub fn opened_at(&self) -> Instant {
        self.opened_at
    }

    /// The message of each order that wins, sorted by uid: what the writer stores, in the order in which it locks. The last one
    /// wins, unless existing orders are kept.
    ///
    /// It is a replay only if all messages of the order are, according to the guard. A message that follows a new one in the
    /// log is newer than what the new one may replace.
    pub fn folded(&self, guard: &Guard) -> Vec<SourcedOrder<'_>> {
        self.folded_without(&[], guard)
    }

    /// The same, as if the messages at the offsets `left_out` did not exist. These offsets must rise.
    pub fn folded_without(&self, left_out: &[Offset], guard: &Guard) -> Vec<SourcedOrder<'_>> {
        let keeps_existing = self.origin == Origin::File { replaces: false };
        let mut latest: Vec<SourcedOrder<'_>> = (self.orders.iter())
            .map(|incoming| {
                let position = Position::of(&incoming.message);
                SourcedOrder {
                    order: &incoming.order,
                    position,
                    is_replay: guard.is_replay(position),
                    source: (self.origin == Origin::Topic)
                        .then(|| guard.source_at(position.offset)),
                    keeps_existing,
                }
            })
            .filter(|sourced| left_out.binary_search(&sourced.offset()).is_err())
            .collect();
        latest.sort_unstable_by(|left, right| {
            (&left.order.order_uid, left.offset()).cmp(&(&right.order.order_uid, right.offset()))
        });
        latest.dedup_by(|later, earlier| {
            let is_same = later.order.order_uid == earlier.order.order_uid;
            if is_same && !keeps_existing {
                later.is_replay &= earlier.is_replay;
                *earlier = *later;
            }
            is_same
        });
        latest
    }

    /// Counts the bad messages in a row, of which `carried` precede the batch.
    pub fn bad_run(&self, carried: i64) -> BadRun {
        let mut run = BadRun {
            longest: 0,
            trailing: carried,
        };
        let mut good = self.orders.iter().map(IncomingOrder::offset);
        let mut next_good = good.next();
        for letter in &self.dead_letters {
            while next_good.is_some_and(|offset| offset < letter.position.offset) {
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

/// Numbers of bad messages in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadRun {
    /// The longest run that a message of the batch belongs to. The messages before the batch count only if it continues
    /// their run: a bound that was lowered since must not halt the partition at a good order.
    pub longest: i64,
    /// The run that the next batch may continue.
    pub trailing: i64,
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use rdkafka::Timestamp;
    use shared::testing::OrderGenerator;

    use super::*;
    use crate::record::{Incarnation, Partition, Reason};

    const READING: Reading = Reading {
        partition: Partition(3),
        generation: 1,
    };

    /// Records below offset 12 were read before.
    const GUARD: Guard = Guard {
        partition: READING.partition,
        incarnation: Incarnation(1),
        log_since: Incarnation(1),
        replay_until: Some(Offset(12)),
        doubt: None,
    };

    fn message(offset: i64, payload: &[u8]) -> OwnedMessage {
        OwnedMessage::new(
            Some(payload.to_vec()),
            Some(b"key".to_vec()),
            "orders".to_owned(),
            Timestamp::CreateTime(offset),
            READING.partition.0,
            offset,
            None,
        )
    }

    fn push_order(batch: &mut Batch, offset: i64, order: Order) {
        batch.push_order(order, message(offset, b"payload"));
    }

    fn refusal() -> Refusal {
        Refusal {
            reason: Reason::NotJson,
            detail: String::new(),
        }
    }

    fn push_dead(batch: &mut Batch, offset: i64) {
        batch.push_dead_letter(DeadLetter::new(&message(offset, b"{"), refusal()));
    }

    fn places(orders: &[SourcedOrder<'_>]) -> Vec<(String, i64)> {
        let place =
            |sourced: &SourcedOrder<'_>| (sourced.order.order_uid.to_string(), sourced.offset().0);
        orders.iter().map(place).collect()
    }

    #[test]
    fn of_a_file_that_keeps_what_exists_the_first_order_of_a_uid_wins_and_none_has_a_source() {
        for (replaces, winner) in [(false, 10), (true, 11)] {
            let mut batch = Batch::of_file(READING, Offset(10), replaces);
            let order = OrderGenerator::new(1, Utc::now()).next_order();
            push_order(&mut batch, 10, order.clone());
            push_order(&mut batch, 11, order);
            let folded = batch.folded(&GUARD);
            let [only] = folded[..] else {
                panic!("{folded:?}");
            };
            assert_eq!(
                (only.offset(), only.source, only.keeps_existing),
                (Offset(winner), None, !replaces)
            );
        }
    }

    #[test]
    fn the_last_message_of_an_order_wins_and_uids_are_sorted() {
        let mut generator = OrderGenerator::new(1, Utc::now());
        let mut batch = Batch::open(READING, Offset(10));
        for (offset, uid) in [(10, "b"), (11, "a"), (12, "b"), (15, "c")] {
            push_order(&mut batch, offset, generator.order_with_uid(uid));
        }
        let expected =
            [("a", 11), ("b", 12), ("c", 15)].map(|(uid, offset)| (uid.to_owned(), offset));
        assert_eq!(places(&batch.folded(&GUARD)), expected);
        let replays = batch
            .folded(&GUARD)
            .into_iter()
            .map(|sourced| sourced.is_replay);
        assert_eq!(replays.collect::<Vec<_>>(), [true, false, false]);
        assert_eq!(
            (
                batch.old_next_offset,
                batch.new_next_offset,
                batch.records()
            ),
            (Offset(10), Offset(16), 4)
        );
    }

    #[test]
    fn the_last_record_is_the_witness_whether_it_was_an_order_or_not() {
        let mut generator = OrderGenerator::new(4, Utc::now());
        let mut batch = Batch::open(READING, Offset(0));
        assert_eq!(batch.witness(), None);
        push_order(&mut batch, 7, generator.next_order());
        let witness = |offset, payload: &[u8]| Some(Witness::of(&message(offset, payload)));
        assert_eq!(batch.witness(), witness(7, b"payload"));
        push_dead(&mut batch, 8);
        batch.reach(Offset(20));
        assert_eq!(batch.witness(), witness(8, b"{"));
        push_order(&mut batch, 30, generator.next_order());
        batch.refuse(vec![(Offset(30), refusal())]);
        assert_eq!(batch.witness(), witness(30, b"payload"));
        assert_eq!(batch.max_timestamp_ms, Some(30));
    }

    #[test]
    fn a_witness_is_never_the_hash_of_another_record() {
        let mut generator = OrderGenerator::new(5, Utc::now());
        let [mut asked, mut not_asked] = [(); 2].map(|()| {
            let mut batch = Batch::open(READING, Offset(0));
            push_dead(&mut batch, 0);
            push_order(&mut batch, 1, generator.next_order());
            batch
        });
        let witness = Some(Witness::of(&message(1, b"payload")));
        assert_eq!(asked.witness(), witness);
        for batch in [&mut asked, &mut not_asked] {
            batch.leave_out(&[Offset(1)]);
        }
        assert_eq!((asked.witness(), not_asked.witness()), (witness, None));
    }

    #[test]
    fn records_below_the_end_are_not_new() {
        let mut batch = Batch::open(READING, Offset(10));
        let is_new = |batch: &Batch, offset| batch.is_new(Offset(offset));
        assert!(!is_new(&batch, 9) && is_new(&batch, 10) && is_new(&batch, 12));
        push_dead(&mut batch, 12);
        assert!(!is_new(&batch, 12) && is_new(&batch, 13));
    }

    #[test]
    fn a_message_that_was_folded_away_comes_back_when_the_later_one_is_refused() {
        let mut generator = OrderGenerator::new(2, Utc::now());
        let mut batch = Batch::open(READING, Offset(0));
        for (offset, uid) in [(0, "a"), (1, "b"), (2, "a"), (3, "a")] {
            push_order(&mut batch, offset, generator.order_with_uid(uid));
        }
        assert_eq!(places(&batch.folded_without(&[Offset(3)], &GUARD))[0].1, 2);
        batch.refuse(vec![(Offset(2), refusal()), (Offset(3), refusal())]);
        let expected = [("a", 0), ("b", 1)].map(|(uid, offset)| (uid.to_owned(), offset));
        assert_eq!(places(&batch.folded(&GUARD)), expected);
        let letters: Vec<(i64, Option<&[u8]>)> = (batch.dead_letters.iter())
            .map(|letter| (letter.position.offset.0, letter.payload.as_deref()))
            .collect();
        assert_eq!(letters, [(2, Some(&b"payload"[..])), (3, Some(b"payload"))]);
        assert_eq!((batch.records(), batch.new_next_offset), (4, Offset(4)));
    }

    #[test]
    fn bad_messages_in_a_row_are_counted_over_batches_and_between_good_ones() {
        let mut generator = OrderGenerator::new(3, Utc::now());
        let run = |longest, trailing| BadRun { longest, trailing };
        let mut batch = Batch::open(READING, Offset(0));
        assert_eq!(batch.bad_run(4), run(0, 4));
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
    fn a_batch_without_a_bad_message_has_no_run_whatever_precedes_it() {
        let mut generator = OrderGenerator::new(4, Utc::now());
        let run = |longest, trailing| BadRun { longest, trailing };
        let mut batch = Batch::open(READING, Offset(0));
        batch.reach(Offset(3));
        assert_eq!(batch.bad_run(50), run(0, 50));
        push_order(&mut batch, 3, generator.next_order());
        assert_eq!(batch.bad_run(50), run(0, 0));
        push_dead(&mut batch, 4);
        assert_eq!(batch.bad_run(50), run(1, 1));
    }

    #[test]
    fn the_end_of_a_partition_moves_the_offset_forward_only() {
        let mut batch = Batch::open(READING, Offset(10));
        batch.reach(Offset(9));
        assert!(batch.is_empty());
        batch.reach(Offset(12));
        assert_eq!(
            (batch.new_next_offset, batch.records(), batch.last_record),
            (Offset(12), 0, None)
        );
    }
}
