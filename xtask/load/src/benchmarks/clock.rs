//! Converts moments of this process to the time of day, because the servers note the time of day.

use std::time::Instant;

use chrono::{DateTime, Utc};

/// Both clocks at one moment.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    instant: Instant,
    time: DateTime<Utc>,
}

impl Clock {
    pub(super) fn now() -> Self {
        Self {
            instant: Instant::now(),
            time: Utc::now(),
        }
    }

    /// Returns the time of day of a later moment, in milliseconds since 1970.
    pub(super) fn ms(&self, at: Instant) -> f64 {
        let passed = at.saturating_duration_since(self.instant);
        ms(self.time) + passed.as_secs_f64() * 1e3
    }
}

/// Returns a time of day in milliseconds since 1970.
pub(super) fn ms(time: DateTime<Utc>) -> f64 {
    (time - DateTime::UNIX_EPOCH).as_seconds_f64() * 1e3
}
