//! What the listener's state allows, in one word that is read at every lookup.

use crate::cache::sync::{AtomicU64, Ordering};

/// Whether hits may be served, whether loads may store, and how often the listener has been lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gate {
    pub(super) epoch: u64,
    pub(super) serves: bool,
    pub(super) stores: bool,
}

impl Gate {
    fn unpack(word: u64) -> Self {
        Self {
            epoch: word >> 2,
            serves: word & 2 != 0,
            stores: word & 1 != 0,
        }
    }

    fn pack(self) -> u64 {
        self.epoch << 2 | u64::from(self.serves) << 1 | u64::from(self.stores)
    }
}

/// A [`Gate`] that is read and changed in one step.
#[derive(Debug, Default)]
pub(super) struct AtomicGate(AtomicU64);

impl AtomicGate {
    pub(super) fn read(&self) -> Gate {
        Gate::unpack(self.0.load(Ordering::SeqCst))
    }

    pub(super) fn change(&self, change: impl Fn(&mut Gate)) {
        let update = |word| {
            let mut gate = Gate::unpack(word);
            change(&mut gate);
            Some(gate.pack())
        };
        // This cannot fail, because `update` always returns a word.
        self.0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, update)
            .ok();
    }
}
