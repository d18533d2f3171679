//! Which reading of each partition counts: written by the poll thread, asked by the writers before every try.
//!
//! A writer that waits for a sick database must notice that its partition was taken away or that the process stops.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::batch::Reading;

/// The current generation of every assigned partition.
#[derive(Debug, Default)]
pub struct Current {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    generations: HashMap<i32, u64>,
    last_generation: u64,
    stopping: bool,
}

impl Current {
    /// Begins a new reading of a partition; all earlier ones cease to count.
    pub fn begin(&self, partition: i32) -> Reading {
        let mut state = self.lock();
        state.last_generation += 1;
        let generation = state.last_generation;
        state.generations.insert(partition, generation);
        self.changed.notify_all();
        Reading {
            partition,
            generation,
        }
    }

    /// Ends the reading of a partition.
    pub fn end(&self, partition: i32) {
        self.lock().generations.remove(&partition);
        self.changed.notify_all();
    }

    /// The process stops: nobody waits any longer.
    pub fn stop(&self) {
        self.lock().stopping = true;
        self.changed.notify_all();
    }

    /// Whether this reading counts.
    pub fn is(&self, reading: Reading) -> bool {
        self.lock().generations.get(&reading.partition) == Some(&reading.generation)
    }

    /// Whether the process stops.
    pub fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// Waits, but not beyond a change of any reading.
    pub fn wait(&self, duration: Duration) {
        let state = self.lock();
        if !state.stopping {
            // Whether time passed or something changed, the caller looks again.
            drop(
                self.changed
                    .wait_timeout(state, duration)
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_reading_of_a_partition_counts() {
        let current = Current::default();
        let first = current.begin(1);
        let other = current.begin(2);
        let second = current.begin(1);
        assert!(!current.is(first) && current.is(second) && current.is(other));
        current.end(1);
        assert!(!current.is(second) && current.is(other));
    }

    #[test]
    fn stopping_ends_every_wait() {
        let current = Current::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                while !current.is_stopping() {
                    current.wait(Duration::from_secs(3600));
                }
            });
            current.stop();
            waiting.join().unwrap();
        });
    }
}
