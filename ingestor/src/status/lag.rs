//! How far behind a partition is, in records and in seconds. No I/O, no clock of its own.

/// What must be remembered of a partition to tell its lag in seconds.
#[derive(Clone, Debug, Default)]
pub(super) struct LagClock {
    /// Time of the last record stored; never in the future, where producers' clocks may be.
    last_timestamp_ms: Option<i64>,
    /// Where the partition ended when the brokers told last.
    end_offset: Option<i64>,
    /// When everything was last seen stored; else when the first record was seen waiting.
    caught_up_at_ms: Option<i64>,
}

impl LagClock {
    /// A record is stored.
    pub(super) fn set_last_timestamp(&mut self, timestamp_ms: Option<i64>, now_ms: i64) {
        let not_in_future = timestamp_ms.map(|timestamp_ms| timestamp_ms.min(now_ms));
        self.last_timestamp_ms = not_in_future.or(self.last_timestamp_ms);
    }

    /// The database tells of a record that was stored before.
    pub(super) fn set_last_timestamp_if_unknown(&mut self, timestamp_ms: Option<i64>, now_ms: i64) {
        if self.last_timestamp_ms.is_none() {
            self.set_last_timestamp(timestamp_ms, now_ms);
        }
    }

    /// Records that wait, and how many seconds the oldest of them has waited at most. Nothing where the end was never
    /// known.
    ///
    /// No record that waits is older than the last one stored, and none was there when everything was stored. While the
    /// brokers do not tell the end (`end_offset` is none) the last one counts, so that the time goes on.
    pub(super) fn measure(
        &mut self,
        next_offset: i64,
        end_offset: Option<i64>,
        now_ms: i64,
    ) -> Option<(i64, f64)> {
        self.end_offset = end_offset.or(self.end_offset);
        let records = (self.end_offset? - next_offset).max(0);
        if records == 0 {
            if end_offset.is_some() {
                self.caught_up_at_ms = Some(now_ms);
            }
            return Some((0, 0.0));
        }
        let since_ms = match self.last_timestamp_ms.max(self.caught_up_at_ms) {
            Some(since_ms) => since_ms,
            // Nothing is known of records before: it counts from now on.
            None => *self.caught_up_at_ms.insert(now_ms),
        };
        Some((records, (now_ms - since_ms).max(0) as f64 / 1000.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(last_timestamp_ms: i64) -> LagClock {
        LagClock {
            last_timestamp_ms: Some(last_timestamp_ms),
            ..LagClock::default()
        }
    }

    #[test]
    fn a_partition_at_its_end_has_no_lag_however_old_its_last_record() {
        assert_eq!(after(0).measure(5, Some(5), 9_000), Some((0, 0.0)));
    }

    #[test]
    fn lag_in_seconds_counts_from_the_last_record_stored_and_grows() {
        let mut clock = after(1_000);
        assert_eq!(clock.measure(5, Some(7), 9_000), Some((2, 8.0)));
        assert_eq!(clock.measure(5, Some(7), 14_000), Some((2, 13.0)));
        // No broker answers.
        assert_eq!(clock.measure(5, None, 19_000), Some((2, 18.0)));
    }

    #[test]
    fn the_first_record_after_a_quiet_day_has_not_waited_a_day() {
        let mut clock = after(0);
        assert_eq!(clock.measure(5, Some(5), 86_400_000), Some((0, 0.0)));
        assert_eq!(clock.measure(5, Some(6), 86_405_000), Some((1, 5.0)));
        // Nobody knows whether the partition was still empty while no broker answered.
        let mut clock = after(0);
        assert_eq!(clock.measure(5, Some(5), 1_000), Some((0, 0.0)));
        assert_eq!(clock.measure(5, None, 6_000), Some((0, 0.0)));
        assert_eq!(clock.measure(5, Some(6), 11_000), Some((1, 10.0)));
    }

    #[test]
    fn lag_without_any_record_stored_counts_from_the_first_look() {
        let mut clock = LagClock::default();
        assert_eq!(clock.measure(0, None, 0), None);
        assert_eq!(clock.measure(0, Some(3), 50_000), Some((3, 0.0)));
        assert_eq!(clock.measure(0, Some(3), 55_000), Some((3, 5.0)));
    }

    #[test]
    fn a_producers_clock_that_is_ahead_counts_as_now() {
        let mut clock = LagClock::default();
        clock.set_last_timestamp_if_unknown(Some(9_000), 2_000);
        assert_eq!(clock.measure(0, Some(1), 5_000), Some((1, 3.0)));
        clock.set_last_timestamp_if_unknown(Some(4_000), 5_000);
        assert_eq!(clock.measure(0, Some(1), 5_000), Some((1, 3.0)));
        clock.set_last_timestamp(Some(4_000), 5_000);
        assert_eq!(clock.measure(0, Some(1), 5_000), Some((1, 1.0)));
    }
}
