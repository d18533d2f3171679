//! Counters of what has happened in the cache since the start.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Serialize, Serializer};

/// A number that only rises.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds to the number.
    pub fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    /// Returns the number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.get().serialize(serializer)
    }
}

/// All counters of the core.
#[derive(Debug, Default)]
pub struct Counters {
    /// Lookups by their outcome.
    pub lookups: Lookups,
    /// Loads, and what came of them.
    pub loads: Loads,
    /// Entries that left the cache, by the reason.
    pub evictions: Evictions,
}

/// Counts each lookup once.
#[derive(Debug, Default, Serialize)]
pub struct Lookups {
    /// Lookups answered with a cached order.
    pub hits: Count,
    /// Lookups answered with a cached absence.
    pub negative_hits: Count,
    /// Lookups that waited for a load.
    pub misses: Count,
    /// Lookups that passed the cache: nothing cached may be served, or the reader demanded the database.
    pub bypasses: Count,
}

/// Counts loads, including those of warm-up.
#[derive(Debug, Default, Serialize)]
pub struct Loads {
    /// Loads that began.
    pub started: Count,
    /// Loads that brought an order.
    pub succeeded: Count,
    /// Loads that found no order.
    pub not_found: Count,
    /// Loads that got no answer from the database.
    pub failed: Count,
    /// Misses and demanded reads that joined a load of another reader: the present one or the next one.
    pub coalesced: Count,
    /// Loads whose result was not stored, because an event or a loss of the listener came in between.
    pub discarded: Count,
}

/// Counts entries that left the cache.
#[derive(Debug, Default, Serialize)]
pub struct Evictions {
    /// Room was needed.
    pub capacity: Count,
    /// An event, a write of this process or a read past the cache told that the order has changed.
    pub event: Count,
    /// The listener was lost, every entry was dropped (by an unknown event, or by an operator), or a revalidation found
    /// another version.
    pub resync: Count,
    /// The auditor found that the entry was stale.
    pub audit: Count,
}
