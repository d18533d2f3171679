//! Back-off with full jitter: each wait is random, between zero and a bound that doubles.
//!
//! Without the jitter, all processes that lose a server would come back at the same moment. Source: Marc Brooker,
//! "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

use std::time::Duration;

/// The waits between the attempts at one thing.
#[derive(Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    bound: Duration,
}

impl Backoff {
    /// The first wait is at most `initial`. Later waits are at most `max`.
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self {
            initial,
            max,
            bound: initial,
        }
    }

    /// The waits for a database that is away. They are short at first, because a restart takes a second. They are at most
    /// two seconds, because the topic is filling up meanwhile.
    pub fn for_database() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(2))
    }

    /// The wait before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.bound.mul_f64(fastrand::f64());
        self.bound = (self.bound * 2).min(self.max);
        delay
    }

    /// Starts anew after a success.
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
