//! The lag of a partition, in records and in seconds. It does no I/O and has no clock of its own.

use crate::kafka::LogRange;
use crate::record::Offset;

/// How far a partition is behind the end of its log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lag {
    /// The number of records that are not stored yet.
    pub records: i64,
    /// The number of those that cannot be read before an open transaction ends.
    pub unstable_records: i64,
    /// The longest time that the oldest record not stored yet may have waited.
    pub seconds: f64,
}

/// What must be remembered of a partition to know its lag in seconds.
#[derive(Clone, Debug, Default)]
pub(super) struct LagClock {
    /// Time of the last stored record. It is never in the future, although producers' clocks may be.
    last_timestamp_ms: Option<i64>,
    /// The log when the brokers last told its range.
    log: Option<LogRange>,
    /// When everything was last seen stored, or, if it never was, when the first record was seen waiting.
    caught_up_at_ms: Option<i64>,
}

impl LagClock {
    /// A record is stored.
    pub(super) fn set_last_timestamp(&mut self, timestamp_ms: Option<i64>, now_ms: i64) {
        let not_in_future = timestamp_ms.map(|timestamp_ms| timestamp_ms.min(now_ms));
        self.last_timestamp_ms = not_in_future.or(self.last_timestamp_ms);
    }

    /// The database has told the time of a record that was stored before.
    pub(super) fn set_last_timestamp_if_unknown(&mut self, timestamp_ms: Option<i64>, now_ms: i64) {
        if self.last_timestamp_ms.is_none() {
            self.set_last_timestamp(timestamp_ms, now_ms);
        }
    }

    /// Returns the lag; `None` if the end of the log was never known.
    ///
    /// No waiting record is older than the last stored one, and none existed when everything was stored. While the brokers
    /// do not tell the end (`log` is none), the last known end counts, so that the time keeps rising.
    pub(super) fn measure(
        &mut self,
        next_offset: Offset,
        log: Option<LogRange>,
        now_ms: i64,
    ) -> Option<Lag> {
        self.log = log.or(self.log);
        let known = self.log?;
        let mut lag = Lag {
            records: known.lag_records(next_offset),
            unstable_records: known.unstable_records(next_offset),
            seconds: 0.0,
        };
        if lag.records == 0 {
            if log.is_some() {
                self.caught_up_at_ms = Some(now_ms);
            }
            return Some(lag);
        }
        let since_ms = match self.last_timestamp_ms.max(self.caught_up_at_ms) {
            Some(since_ms) => since_ms,
            // Nothing is known of earlier records: the time counts from now.
            None => *self.caught_up_at_ms.insert(now_ms),
        };
        lag.seconds = (now_ms - since_ms).max(0) as f64 / 1000.0;
        Some(lag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(
        clock: &mut LagClock,
        next_offset: i64,
        end_offset: Option<i64>,
        now_ms: i64,
    ) -> Option<(i64, f64)> {
        let log = end_offset.map(|end_offset| log(end_offset, end_offset));
        let lag = clock.measure(Offset(next_offset), log, now_ms)?;
        Some((lag.records, lag.seconds))
    }

    fn log(last_stable: i64, high: i64) -> LogRange {
        LogRange {
            low: Offset(0),
            last_stable: Offset(last_stable),
            high: Offset(high),
        }
    }

    fn after(last_timestamp_ms: i64) -> LagClock {
        LagClock {
            last_timestamp_ms: Some(last_timestamp_ms),
            ..LagClock::default()
        }
    }

    #[test]
    fn a_partition_at_its_end_has_no_lag_however_old_its_last_record() {
        assert_eq!(measure(&mut after(0), 5, Some(5), 9_000), Some((0, 0.0)));
    }

    #[test]
    fn lag_in_seconds_counts_from_the_last_record_stored_and_grows() {
        let mut clock = after(1_000);
        assert_eq!(measure(&mut clock, 5, Some(7), 9_000), Some((2, 8.0)));
        assert_eq!(measure(&mut clock, 5, Some(7), 14_000), Some((2, 13.0)));
        // No broker answers.
        assert_eq!(measure(&mut clock, 5, None, 19_000), Some((2, 18.0)));
    }

    #[test]
    fn the_first_record_after_a_quiet_day_has_not_waited_a_day() {
        let mut clock = after(0);
        assert_eq!(measure(&mut clock, 5, Some(5), 86_400_000), Some((0, 0.0)));
        assert_eq!(measure(&mut clock, 5, Some(6), 86_405_000), Some((1, 5.0)));
        // Nobody knows whether the partition was still empty while no broker answered.
        let mut clock = after(0);
        assert_eq!(measure(&mut clock, 5, Some(5), 1_000), Some((0, 0.0)));
        assert_eq!(measure(&mut clock, 5, None, 6_000), Some((0, 0.0)));
        assert_eq!(measure(&mut clock, 5, Some(6), 11_000), Some((1, 10.0)));
    }

    #[test]
    fn lag_without_any_record_stored_counts_from_the_first_look() {
        let mut clock = LagClock::default();
        assert_eq!(measure(&mut clock, 0, None, 0), None);
        assert_eq!(measure(&mut clock, 0, Some(3), 50_000), Some((3, 0.0)));
        assert_eq!(measure(&mut clock, 0, Some(3), 55_000), Some((3, 5.0)));
    }

    #[test]
    fn records_behind_an_open_transaction_wait_too() {
        let mut clock = after(1_000);
        let mut measure = |next_offset, log, now_ms| {
            let lag = clock.measure(Offset(next_offset), log, now_ms).unwrap();
            (lag.records, lag.unstable_records, lag.seconds)
        };
        assert_eq!(measure(5, Some(log(7, 10)), 2_000), (5, 3, 1.0));
        assert_eq!(measure(7, Some(log(7, 10)), 3_000), (3, 3, 2.0));
        // The brokers have not told yet that the transaction has ended.
        assert_eq!(measure(9, None, 4_000), (1, 1, 3.0));
        assert_eq!(measure(9, Some(log(10, 10)), 5_000), (1, 0, 4.0));
    }

    #[test]
    fn a_producers_clock_that_is_ahead_counts_as_now() {
        let mut clock = LagClock::default();
        clock.set_last_timestamp_if_unknown(Some(9_000), 2_000);
        assert_eq!(measure(&mut clock, 0, Some(1), 5_000), Some((1, 3.0)));
        clock.set_last_timestamp_if_unknown(Some(4_000), 5_000);
        assert_eq!(measure(&mut clock, 0, Some(1), 5_000), Some((1, 3.0)));
        clock.set_last_timestamp(Some(4_000), 5_000);
        assert_eq!(measure(&mut clock, 0, Some(1), 5_000), Some((1, 1.0)));
    }
}
