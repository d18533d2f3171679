//! Full-jitter back-off: a random wait between nothing and a bound that doubles.
//!
//! Many processes that lose the same server would otherwise all come back in the same moment. Source: Marc Brooker,
//! "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

use std::time::Duration;

/// The waits between the tries of one thing.
#[derive(Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    bound: Duration,
}

impl Backoff {
    /// Starts with waits of up to `initial`, ends with waits of up to `max`.
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self {
            initial,
            max,
            bound: initial,
        }
    }

    /// For a database that is away: quick at first, because a restart takes a second, and at most two seconds, because
    /// a topic is filling up meanwhile.
    pub fn for_database() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(2))
    }

    /// The wait before the next try.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.bound.mul_f64(fastrand::f64());
        self.bound = (self.bound * 2).min(self.max);
        delay
    }

    /// The thing succeeded: the next failure starts anew.
    pub fn reset(&mut self) {
        self.bound = self.initial;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_below_a_bound_that_doubles_up_to_the_maximum() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        for bound_ms in [100, 200, 350, 350] {
            assert_eq!(backoff.bound, Duration::from_millis(bound_ms));
            assert!(backoff.next_delay() <= Duration::from_millis(bound_ms));
        }
        backoff.reset();
        assert_eq!(backoff.bound, Duration::from_millis(100));
    }
}
