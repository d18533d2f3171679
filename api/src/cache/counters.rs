//! What happened in the cache since the start: counters that only rise.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only rises.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Raises it.
    pub fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    /// Reads it.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why an entry left the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// It was the least recently used and room was needed.
    Capacity,
    /// A writer said that the order changed.
    Event,
    /// Everything was dropped: listener lost, event not understood, or an operator's wish.
    Resync,
    /// The auditor found that it was stale.
    Audit,
}

/// Every counter; each lookup counts as exactly one of `hits`, `negative_hits`, `misses` and `bypasses`.
#[derive(Debug, Default)]
pub struct Counters {
    /// Lookups answered with a cached order.
    pub hits: Count,
    /// Lookups answered with a cached absence.
    pub negative_hits: Count,
    /// Lookups that waited for a load.
    pub misses: Count,
    /// Lookups past what is cached: nothing of it may be served, or the reader demanded the database.
    pub bypasses: Count,
    /// Loads begun, those of warm-up included.
    pub loads_started: Count,
    /// Loads that brought an order.
    pub loads_succeeded: Count,
    /// Loads that found no order.
    pub loads_not_found: Count,
    /// Loads that got no answer from the database.
    pub loads_failed: Count,
    /// Misses and demanded reads that joined a load of others, one that runs or the next one.
    pub coalesced: Count,
    /// Loads whose result was not stored, because an event or a loss came in between.
    pub discarded: Count,
    evictions_capacity: Count,
    evictions_event: Count,
    evictions_resync: Count,
    evictions_audit: Count,
}

impl Counters {
    /// Counts entries that left.
    pub fn evicted(&self, reason: Eviction, number: u64) {
        self.eviction_count(reason).add(number);
    }

    /// Entries that left for a reason.
    pub fn evictions(&self, reason: Eviction) -> u64 {
        self.eviction_count(reason).get()
    }

    fn eviction_count(&self, reason: Eviction) -> &Count {
        match reason {
            Eviction::Capacity => &self.evictions_capacity,
            Eviction::Event => &self.evictions_event,
            Eviction::Resync => &self.evictions_resync,
            Eviction::Audit => &self.evictions_audit,
        }
    }
}
