//! Witnesses: records that were read, by which a log that was cut is distinguished from a topic that was made anew.

use rdkafka::message::Message;
use sha2::{Digest, Sha256};

use crate::record::{Offset, Position};

/// So many of the newest witnesses are kept, one for each batch.
const NEWEST_KEPT: usize = 16;
/// A record without a timestamp has this one in the database, as it has in Kafka's protocol.
const NO_TIMESTAMP: i64 = -1;
/// A witness takes so many numbers in the database: offset, timestamp, hash.
const NUMBERS: usize = 3;
/// The bytes of a payload that are hashed. A dead letter keeps no more.
const MAX_HASHED_BYTES: usize = crate::dead_letters::MAX_PAYLOAD_BYTES;

/// A record that was read. If another record has its offset now, the log is not the one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Witness {
    /// Its place and time.
    pub position: Position,
    /// See [`payload_hash`].
    pub payload_hash: i64,
}

impl Witness {
    /// What is kept of a message.
    pub fn of(message: &impl Message) -> Self {
        Self {
            position: Position::of(message),
            payload_hash: payload_hash(message.payload()),
        }
    }

    /// Its offset.
    pub fn offset(&self) -> Offset {
        self.position.offset
    }
}

/// The first eight bytes of the SHA-256 of a payload's first mebibyte, as a big-endian number. A missing payload counts as an
/// empty one.
pub fn payload_hash(payload: Option<&[u8]>) -> i64 {
    let payload = payload.unwrap_or_default();
    let digest = Sha256::digest(&payload[..payload.len().min(MAX_HASHED_BYTES)]);
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(first)
}

/// The witnesses of a partition, by rising offset: those of the last batches, and fewer and fewer of the records before them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Witnesses(Vec<Witness>);

impl Witnesses {
    /// Adds a record that was read. A witness at the same offset stays: if it is another record, the log has changed.
    ///
    /// The 16 with the highest offsets are kept. Of the others one is kept in each range of distances from the newest: 1..2,
    /// 2..4, 4..8 and so on. It is the one with the lowest offset, so that the oldest witness is always kept.
    pub fn push(&mut self, witness: Witness) {
        if let Err(index) = self
            .0
            .binary_search_by_key(&witness.offset(), Witness::offset)
        {
            self.0.insert(index, witness);
        }
        let Some(newest) = self.0.last().map(Witness::offset) else {
            return;
        };
        let range = |witness: &Witness| {
            (newest.0 - witness.offset().0)
                .unsigned_abs()
                .checked_ilog2()
        };
        let first_newest = self.0.len().saturating_sub(NEWEST_KEPT);
        let newest_kept = self.0.split_off(first_newest);
        self.0.dedup_by_key(|witness| range(witness));
        self.0.extend(newest_kept);
    }

    /// Adds the witness of a batch, if it has one.
    #[must_use]
    pub fn with(mut self, witness: Option<Witness>) -> Self {
        if let Some(witness) = witness {
            self.push(witness);
        }
        self
    }

    /// All of them, by rising offset.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Witness> {
        self.0.iter()
    }

    /// Those by which a change is noticed cheaply: the newest, and the oldest of the last batches.
    pub fn first_looks(&self) -> impl Iterator<Item = &Witness> {
        let oldest_of_last = self.0.iter().rev().take(NEWEST_KEPT).skip(1).last();
        self.0.last().into_iter().chain(oldest_of_last)
    }

    /// The one whose turn it is, after this many others.
    pub fn in_turn(&self, turns: usize) -> Option<&Witness> {
        self.0.get(turns.checked_rem(self.0.len())?)
    }

    /// The one with the highest offset.
    pub fn newest(&self) -> Option<&Witness> {
        self.0.last()
    }

    /// Forgets those at `end` and after it.
    pub fn truncate(&mut self, end: Offset) {
        self.0.retain(|witness| witness.offset() < end);
    }

    /// As the database keeps them: offset, timestamp and hash of each, one after the other.
    pub fn to_numbers(&self) -> Vec<i64> {
        let numbers = |witness: &Witness| {
            let timestamp_ms = witness.position.timestamp_ms.unwrap_or(NO_TIMESTAMP);
            [witness.offset().0, timestamp_ms, witness.payload_hash]
        };
        self.0.iter().flat_map(numbers).collect()
    }
}

impl From<Vec<i64>> for Witnesses {
    /// Reads what [`Witnesses::to_numbers`] wrote. The table's constraint admits whole triples only.
    fn from(numbers: Vec<i64>) -> Self {
        let witness = |numbers: &[i64]| match *numbers {
            [offset, timestamp_ms, payload_hash] => Some(Witness {
                position: Position {
                    offset: Offset(offset),
                    timestamp_ms: Some(timestamp_ms).filter(|ms| *ms != NO_TIMESTAMP),
                },
                payload_hash,
            }),
            _ => None,
        };
        Self(numbers.chunks(NUMBERS).filter_map(witness).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn witness(offset: i64) -> Witness {
        Witness {
            position: Position {
                offset: Offset(offset),
                timestamp_ms: Some(offset * 10),
            },
            payload_hash: -offset,
        }
    }

    fn offsets(witnesses: &Witnesses) -> Vec<i64> {
        witnesses.iter().map(|witness| witness.offset().0).collect()
    }

    fn pushed(offsets: impl IntoIterator<Item = i64>) -> Witnesses {
        let mut witnesses = Witnesses::default();
        offsets
            .into_iter()
            .for_each(|offset| witnesses.push(witness(offset)));
        witnesses
    }

    #[test]
    fn the_last_batches_are_kept_and_fewer_of_those_before() {
        assert_eq!(offsets(&pushed(0..16)), (0..16).collect::<Vec<_>>());
        for end in [100, 1_000, 100_000] {
            let kept = offsets(&pushed(0..end));
            assert_eq!(kept[kept.len() - 16..], (end - 16..end).collect::<Vec<_>>());
            assert_eq!(kept[0], 0, "the oldest is kept");
            assert!(kept.len() <= 16 + 17, "{}", kept.len());
            // Going back, the next witness is at most four times as far away.
            for pair in kept[..kept.len() - 15].windows(2) {
                let (far, near) = (end - pair[0], end - pair[1]);
                assert!(far <= 4 * near, "{kept:?}");
            }
        }
    }

    #[test]
    fn a_record_that_is_read_again_is_one_witness() {
        let mut witnesses = pushed([1, 5, 9]);
        let other = Witness {
            payload_hash: 7,
            ..witness(5)
        };
        witnesses.push(other);
        assert_eq!(offsets(&witnesses), [1, 5, 9]);
        assert_eq!(witnesses.iter().nth(1), Some(&witness(5)));
        witnesses.truncate(Offset(9));
        assert_eq!(offsets(&witnesses), [1, 5]);
    }

    #[test]
    fn the_database_gives_back_what_it_was_given() {
        let mut witnesses = pushed(0..40);
        witnesses.push(Witness {
            position: Position {
                offset: Offset(50),
                timestamp_ms: None,
            },
            payload_hash: i64::MIN,
        });
        assert_eq!(Witnesses::from(witnesses.to_numbers()), witnesses);
    }

    #[test]
    fn the_newest_and_the_oldest_of_the_last_batches_are_looked_at_first() {
        let looks = |witnesses: &Witnesses| {
            let looks = witnesses.first_looks().map(|witness| witness.offset().0);
            looks.collect::<Vec<_>>()
        };
        assert_eq!(looks(&pushed([])), [] as [i64; 0]);
        assert_eq!(looks(&pushed([3])), [3]);
        assert_eq!(looks(&pushed([3, 4])), [4, 3]);
        assert_eq!(looks(&pushed(0..40)), [39, 24]);
    }

    #[test]
    fn another_payload_has_another_hash() {
        let empty = i64::from_be_bytes([0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14]);
        assert_eq!(
            (payload_hash(None), payload_hash(Some(b""))),
            (empty, empty)
        );
        assert_ne!(payload_hash(Some(b"{}")), payload_hash(Some(b"{ }")));
    }
}
