//! How much the cache may hold, and who makes room for a new entry.
//!
//! Both bounds, the number of entries and their weight, hold over all shards together: one order may be larger than a shard's
//! share. The shard of the new entry makes room. Only if it holds nothing else do the others.

use std::num::NonZeroUsize;

use compact_str::CompactString;

use super::{Core, Entry, Placement, Shard, Stored, Versioned};
use crate::cache::sync::{AtomicUsize, MutexGuard, Ordering, sound};

/// The largest number of shards. It exceeds the number of cores that could wait for one lock.
const MAX_SHARDS: usize = 16;
/// With fewer entries per shard, the order of eviction would visibly differ from that of an LRU.
const MIN_ENTRIES_PER_SHARD: usize = 64;
/// The same in bytes: some hundreds of usual orders, or a few of the largest.
const MIN_BYTES_PER_SHARD: usize = 1024 * 1024;

/// How much a cache may hold.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// The largest number of entries.
    pub entries: NonZeroUsize,
    /// The largest weight of all entries together, in bytes; `None` if only their number is bounded.
    pub weight_bytes: Option<NonZeroUsize>,
}

impl Capacity {
    /// Bounds only the number of entries.
    pub fn of_entries(entries: NonZeroUsize) -> Self {
        Self {
            entries,
            weight_bytes: None,
        }
    }

    fn max_bytes(self) -> usize {
        self.weight_bytes.map_or(usize::MAX, NonZeroUsize::get)
    }

    pub(super) fn shard_count(self) -> usize {
        let by_entries = self.entries.get() / MIN_ENTRIES_PER_SHARD;
        let by_bytes = self.max_bytes() / MIN_BYTES_PER_SHARD;
        by_entries.min(by_bytes).clamp(1, MAX_SHARDS)
    }

    /// A shard's share: a number of entries, and bytes.
    pub(super) fn share(self) -> (usize, usize) {
        let shard_count = self.shard_count();
        (
            self.entries.get() / shard_count,
            self.max_bytes() / shard_count,
        )
    }
}

/// What all shards hold together. Each of them changes it under its own lock.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) capacity: Capacity,
    entries: AtomicUsize,
    /// Counted only if it is bounded.
    weight_bytes: AtomicUsize,
}

impl Room {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            entries: AtomicUsize::new(0),
            weight_bytes: AtomicUsize::new(0),
        }
    }

    fn take(&self, weight_bytes: usize) {
        self.entries.fetch_add(1, Ordering::Relaxed);
        if self.capacity.weight_bytes.is_some() {
            self.weight_bytes.fetch_add(weight_bytes, Ordering::Relaxed);
        }
    }

    pub(super) fn give_back(&self, entries: usize, weight_bytes: usize) {
        self.entries.fetch_sub(entries, Ordering::Relaxed);
        if self.capacity.weight_bytes.is_some() {
            self.weight_bytes.fetch_sub(weight_bytes, Ordering::Relaxed);
        }
    }

    /// Whether so many more entries of this weight in all would exceed the capacity.
    fn is_exceeded_by(&self, entries: usize, weight_bytes: usize) -> bool {
        let all_entries = self.entries.load(Ordering::Relaxed) + entries;
        if all_entries > self.capacity.entries.get() {
            return true;
        }
        let max_bytes = self.capacity.weight_bytes.map(NonZeroUsize::get);
        max_bytes.is_some_and(|max| self.weight_bytes.load(Ordering::Relaxed) + weight_bytes > max)
    }

    fn is_exceeded(&self) -> bool {
        self.is_exceeded_by(0, 0)
    }

    /// Whether not even the lightest entry would fit.
    pub(super) fn is_full(&self) -> bool {
        self.is_exceeded_by(1, 1)
    }
}

impl<V: Clone + Versioned, W: Clone, S> Core<V, W, S> {
    /// Stores an entry in its shard, and evicts others if there are too many now or they are too heavy.
    pub(super) fn store(
        &self,
        (number, mut shard): (usize, MutexGuard<'_, Shard<V, W, S>>),
        uid: CompactString,
        (entry, weight_bytes): (Entry<V>, usize),
        placement: Placement,
    ) -> Stored {
        sound!(shard.missing.pop(&uid), AbsenceLeftBehindByAStore, None);
        self.remove_entry(&mut shard, &uid);
        let is_too_heavy = weight_bytes > self.room.capacity.max_bytes();
        if is_too_heavy || placement == Placement::Cold && self.room.is_exceeded_by(1, weight_bytes)
        {
            return Stored::NoRoom;
        }
        // Before the entry is there, because it is the last one that should go.
        while self.room.is_exceeded_by(1, weight_bytes) && self.evict_oldest(&mut shard) {}
        self.room.take(weight_bytes);
        match placement {
            Placement::Hot => shard.entries.insert(uid, entry, weight_bytes),
            Placement::Cold => shard.entries.insert_oldest(uid, entry, weight_bytes),
        }
        drop(shard);
        // Nothing else was left here, or another shard has taken the room at the same time.
        self.evict_elsewhere(number);
        Stored::Yes
    }

    /// Evicts entries of the other shards until the bounds hold. The others give one entry each by turns.
    fn evict_elsewhere(&self, own: usize) {
        let shard_count = self.shards.len();
        let mut has_evicted = true;
        while has_evicted {
            has_evicted = false;
            for offset in 1..shard_count {
                if !self.room.is_exceeded() {
                    return;
                }
                let mut shard = self.shards[(own + offset) % shard_count].lock();
                has_evicted |= self.evict_oldest(&mut shard);
            }
        }
    }

    /// Returns whether there was an entry to evict.
    fn evict_oldest(&self, shard: &mut Shard<V, W, S>) -> bool {
        let Some(weight_bytes) = shard.entries.remove_oldest() else {
            return false;
        };
        self.room.give_back(1, weight_bytes);
        self.counters.evictions.capacity.add(1);
        true
    }

    /// Returns whether no other entry fits without pushing one out.
    pub fn is_full(&self) -> bool {
        self.room.is_full()
    }

    /// Returns how much the cache may hold.
    pub fn capacity(&self) -> Capacity {
        self.room.capacity
    }
}
