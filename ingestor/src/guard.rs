//! The guard: whether a message that may have been read before may write its order. It does no I/O.
//!
//! A message is read again after a rewind, after an accepted incident, and when its dead letter is replayed. Something newer
//! may have been stored meanwhile: a later message, or a write through the api. The guard compares the message with what wrote
//! the stored order. `tests/suite/guard_model.rs` checks its rules in random histories.

use shared::db::models::Source;

use crate::record::{Incarnation, Offset, Partition, Position};

/// Which records may have been read in an earlier incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// Only records below this offset. None: all of them.
    pub until: Option<Offset>,
    /// Only records that are not newer than this, in milliseconds since 1970. No record that was read before is newer.
    pub timestamp_ms: i64,
}

impl Doubt {
    /// Everything may have been read before.
    pub const ALL: Self = Self {
        until: None,
        timestamp_ms: i64::MAX,
    };

    fn covers(&self, record: Position) -> bool {
        let is_below = self.until.is_none_or(|until| record.offset < until);
        is_below
            && (record.timestamp_ms).is_none_or(|timestamp_ms| timestamp_ms <= self.timestamp_ms)
    }

    /// What may have been read before according to either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            until: self
                .until
                .zip(other.until)
                .map(|(left, right)| left.max(right)),
            timestamp_ms: self.timestamp_ms.max(other.timestamp_ms),
        }
    }
}

/// What is known of the records of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The partition.
    pub partition: Partition,
    /// The incarnation in which its records are read.
    pub incarnation: Incarnation,
    /// The first incarnation of the same log. A log that was cut is the same log: its records keep their order. A topic that
    /// was made anew is another log.
    pub log_since: Incarnation,
    /// Records below this offset were read before in this incarnation.
    pub replay_until: Option<Offset>,
    /// Records that may have been read in an earlier incarnation.
    pub doubt: Option<Doubt>,
}

/// What the guard decides about a message and the stored order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The message is newer than what is stored.
    Write,
    /// A later message of the same log wrote what is stored.
    Superseded,
    /// What is stored may be newer: the message is not stored.
    HeldBack,
}

impl Guard {
    /// Returns whether a record was read before, or may have been.
    pub fn is_replay(&self, record: Position) -> bool {
        self.was_read(record.offset) || self.is_doubtful(record)
    }

    /// The record at an offset, as the source of an order.
    pub fn source_at(&self, offset: Offset) -> Source {
        Source {
            partition: self.partition.0,
            incarnation: self.incarnation.0,
            offset: offset.0,
        }
    }

    fn was_read(&self, offset: Offset) -> bool {
        self.replay_until.is_some_and(|until| offset < until)
    }

    fn is_doubtful(&self, record: Position) -> bool {
        self.doubt.is_some_and(|doubt| doubt.covers(record))
    }

    /// Decides whether a record that is a replay replaces the stored order. `written_by` is the message that wrote the stored
    /// order, and none after a write by the api.
    pub fn judge_replay(&self, record: Position, written_by: Option<Source>) -> Verdict {
        let Some(row) = written_by.filter(|row| row.partition == self.partition.0) else {
            return Verdict::HeldBack;
        };
        let is_lower = row.offset < record.offset.0;
        if row.incarnation == self.incarnation.0 {
            return if is_lower {
                Verdict::Write
            } else {
                Verdict::Superseded
            };
        }
        let is_earlier = row.incarnation < self.incarnation.0;
        // A record that cannot have been read before is newer than everything of an earlier incarnation. Of other records only
        // those of the same log can be compared.
        let is_newer =
            !self.is_doubtful(record) || (is_lower && row.incarnation >= self.log_since.0);
        if is_earlier && is_newer {
            Verdict::Write
        } else {
            Verdict::HeldBack
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The log was cut after incarnation 4, which began with a new topic.
    const GUARD: Guard = Guard {
        partition: Partition(0),
        incarnation: Incarnation(5),
        log_since: Incarnation(4),
        replay_until: Some(Offset(10)),
        doubt: Some(Doubt {
            until: Some(Offset(20)),
            timestamp_ms: 1_000,
        }),
    };

    fn at(offset: i64, timestamp_ms: i64) -> Position {
        Position {
            offset: Offset(offset),
            timestamp_ms: Some(timestamp_ms),
        }
    }

    fn by(partition: i32, incarnation: i32, offset: i64) -> Option<Source> {
        Some(Source {
            partition,
            incarnation,
            offset,
        })
    }

    #[test]
    fn a_record_may_have_been_read_before_below_an_offset_and_up_to_a_time() {
        let unknown_time = Position {
            timestamp_ms: None,
            ..at(19, 0)
        };
        for (record, is_replay) in [
            (at(9, 2_000), true),
            (at(10, 2_000), false),
            (at(19, 1_000), true),
            (at(20, 1_000), false),
            (unknown_time, true),
        ] {
            assert_eq!(GUARD.is_replay(record), is_replay, "{record:?}");
        }
    }

    #[test]
    fn a_replay_replaces_only_what_is_certainly_older() {
        use Verdict::{HeldBack, Superseded, Write};
        let (doubtful, certain) = (at(15, 1_000), at(5, 2_000));
        for (record, written_by, verdict) in [
            (doubtful, by(0, 5, 14), Write),
            (doubtful, by(0, 5, 15), Superseded),
            (doubtful, by(0, 5, 16), Superseded),
            (doubtful, by(0, 4, 14), Write),
            (doubtful, by(0, 4, 15), HeldBack),
            (doubtful, by(0, 4, 90), HeldBack),
            (doubtful, by(0, 3, 14), HeldBack),
            (doubtful, by(0, 6, 14), HeldBack),
            (doubtful, by(1, 5, 14), HeldBack),
            (doubtful, None, HeldBack),
            (certain, by(0, 4, 90), Write),
            (certain, by(0, 3, 90), Write),
            (certain, by(0, 5, 90), Superseded),
            (certain, None, HeldBack),
        ] {
            assert_eq!(
                GUARD.judge_replay(record, written_by),
                verdict,
                "{record:?} {written_by:?}"
            );
        }
    }

    #[test]
    fn two_doubts_cover_what_either_covers() {
        let bounded = |until, timestamp_ms| Doubt {
            until: Some(Offset(until)),
            timestamp_ms,
        };
        assert_eq!(bounded(5, 9).or(bounded(7, 3)), bounded(7, 9));
        assert_eq!(bounded(5, 9).or(Doubt::ALL), Doubt::ALL);
    }
}
