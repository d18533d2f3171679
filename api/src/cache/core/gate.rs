//! What the listener's state allows, in one word that is read at every lookup.

use std::sync::atomic::{AtomicU64, Ordering};

/// Whether hits may be served and fills stored, and since which loss of the listener: one word, read at every lookup.
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

/// A [`Gate`] that is read and changed as a whole.
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
        // Never refused: `update` always gives a word.
        self.0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, update)
            .ok();
    }
}
