//! The memory that all batches together may take, and what happens when it is used up.

use std::time::{Duration, Instant};

use crate::config::MemorySettings;

/// Writers that need longer than this have a database in trouble. Reading is then paused: the group still sees a live
/// member, and nothing is fetched in vain.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the poll thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pressure {
    /// Continue to read.
    None,
    /// Wait for the writers. What was fetched stays in the client's queue.
    Wait,
    /// Poll with everything paused.
    Pause,
}

/// Counts the bytes of all batches.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    settings: MemorySettings,
    used_bytes: usize,
    full_since: Option<Instant>,
    is_paused: bool,
}

impl MemoryBudget {
    pub(super) fn new(settings: MemorySettings) -> Self {
        Self {
            settings,
            used_bytes: 0,
            full_since: None,
            is_paused: false,
        }
    }

    pub(super) fn take(&mut self, bytes: usize) {
        self.used_bytes += bytes;
    }

    pub(super) fn free(&mut self, bytes: usize) {
        self.used_bytes = self.used_bytes.saturating_sub(bytes);
    }

    /// Bytes of all batches.
    pub(super) fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// The size at which a batch closes.
    pub(super) fn batch_bytes(&self) -> usize {
        self.settings.batch_bytes()
    }

    /// Reading stops when the budget is used up, and continues when half of it is free again.
    pub(super) fn pressure(&mut self) -> Pressure {
        let limit = self.settings.batches_bytes();
        let is_full = if self.full_since.is_some() {
            self.used_bytes > limit / 2
        } else {
            self.used_bytes >= limit
        };
        if !is_full {
            self.full_since = None;
            return Pressure::None;
        }
        let since = *self.full_since.get_or_insert_with(Instant::now);
        if since.elapsed() < PATIENCE {
            Pressure::Wait
        } else {
            Pressure::Pause
        }
    }

    /// Notes whether everything is paused. Returns whether that is a change.
    pub(super) fn change_pause(&mut self, is_paused: bool) -> bool {
        std::mem::replace(&mut self.is_paused, is_paused) != is_paused
    }

    /// Whether everything is paused.
    pub(super) fn is_paused(&self) -> bool {
        self.is_paused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_stops_at_the_limit_and_continues_at_half_of_it() {
        let mut budget = MemoryBudget::new(MemorySettings { total_bytes: 400 });
        budget.take(99);
        assert_eq!(budget.pressure(), Pressure::None);
        budget.take(1);
        assert_eq!(budget.pressure(), Pressure::Wait);
        budget.free(49);
        assert_eq!(budget.pressure(), Pressure::Wait);
        budget.free(1);
        assert_eq!(budget.pressure(), Pressure::None);
    }

    #[test]
    fn a_long_wait_becomes_a_pause() {
        let mut budget = MemoryBudget::new(MemorySettings { total_bytes: 400 });
        budget.take(100);
        budget.full_since = Instant::now().checked_sub(PATIENCE);
        assert_eq!(budget.pressure(), Pressure::Pause);
        assert!(
            budget.change_pause(true) && !budget.change_pause(true) && budget.change_pause(false)
        );
    }
}
