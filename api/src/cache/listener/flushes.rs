//! Whole flushes, at most one per second.
//!
//! Anybody who may connect to the database may NOTIFY on any channel, and so can make every cache drop everything. A flush per
//! second is harm enough. A flush that comes sooner after another one is delayed, and no proof is renewed until it has run:
//! what it has to drop is then served for no longer than the lease allows.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::cache::OrderCache;

/// The shortest time between two flushes.
const INTERVAL: Duration = Duration::from_secs(1);

/// When the last flush was, and whether another one waits.
#[derive(Debug, Default)]
pub(super) struct Flushes(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    is_delayed: bool,
}

impl Flushes {
    /// Drops every entry now, or at the next [`Self::run_delayed`].
    pub(super) fn request(&self, cache: &OrderCache) {
        let mut state = self.0.lock();
        state.is_delayed = true;
        state.run(cache);
    }

    /// Runs a delayed flush, if there is one and it is due.
    pub(super) fn run_delayed(&self, cache: &OrderCache) {
        self.0.lock().run(cache);
    }

    pub(super) fn is_delayed(&self) -> bool {
        self.0.lock().is_delayed
    }
}

impl State {
    fn run(&mut self, cache: &OrderCache) {
        let is_due = self.last.is_none_or(|last| last.elapsed() >= INTERVAL);
        if self.is_delayed && is_due {
            cache.core.clear();
            cache.feed.resync();
            cache.listener.flushes.add(1);
            *self = Self {
                last: Some(Instant::now()),
                is_delayed: false,
            };
        }
    }
}
