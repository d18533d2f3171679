//! Limits reports of something that keeps failing: the first one is made at once, later ones only now and then.

use std::time::{Duration, Instant};

/// Often enough for somebody who watches the log, and seldom enough for a log that is kept.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Decides whether a repeated report is due.
#[derive(Debug)]
pub struct Throttle {
    interval: Duration,
    last_report_at: Option<Instant>,
}

impl Throttle {
    /// Allows one report per `interval`, and the first one at once.
    pub fn every(interval: Duration) -> Self {
        Self {
            interval,
            last_report_at: None,
        }
    }

    /// Allows one report per ten seconds, as all reports of trouble do.
    pub fn for_reports() -> Self {
        Self::every(REPORT_INTERVAL)
    }

    /// Returns whether a report is due. If it is, the caller makes it now.
    pub fn is_due(&mut self) -> bool {
        let is_due = self
            .last_report_at
            .is_none_or(|at| at.elapsed() >= self.interval);
        if is_due {
            self.last_report_at = Some(Instant::now());
        }
        is_due
    }

    /// Returns whether anything was reported since the last [`Self::reset`].
    pub fn has_reported(&self) -> bool {
        self.last_report_at.is_some()
    }

    /// Makes the next report due at once, because the trouble before it has ended.
    pub fn reset(&mut self) {
        self.last_report_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_report_is_due_and_the_next_only_after_the_interval_or_a_reset() {
        let mut throttle = Throttle::every(Duration::from_secs(3600));
        assert!(!throttle.has_reported());
        assert!(throttle.is_due());
        assert!(!throttle.is_due());
        assert!(throttle.has_reported());
        throttle.reset();
        assert!(!throttle.has_reported());
        assert!(throttle.is_due());
    }

    #[test]
    fn a_report_is_due_again_when_its_interval_has_passed() {
        let mut throttle = Throttle::every(Duration::ZERO);
        assert!(throttle.is_due());
        assert!(throttle.is_due());
    }
}
