//! Who may store what: slots, their owners, epochs and the LRU.
//!
//! A key is in one of four states: absent, cached, known to be missing, or loading. A load owns its slot; an event takes
//! the slot away, and a load that lost it may answer those who already wait for it, but stores nothing and gains no new
//! waiters. Pure by intent: no tokio, no clock, no I/O, so that interleavings can be tested step by step. The caller says
//! whether the listener's proof is fresh; a later revalidation needs only another way to set an entry's epoch.

mod gate;
mod sample;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use super::counters::{Counters, Eviction};
use gate::{AtomicGate, Gate};

/// Most shards; more than cores that could meet on one lock.
const MAX_SHARDS: usize = 16;
/// Fewer entries a shard would make the order of eviction visibly unlike an LRU's.
const MIN_ENTRIES_PER_SHARD: usize = 64;

/// The slots of all keys. `V` is a cached value, cheap to clone; `W` is what a reader waits on while a load runs.
#[derive(Debug)]
pub struct Core<V, W> {
    shards: Box<[Mutex<Shard<V, W>>]>,
    hasher: RandomState,
    capacity: usize,
    /// Cached entries of all shards.
    size: AtomicUsize,
    gate: AtomicGate,
    next_load_id: AtomicU64,
    counters: Counters,
}

#[derive(Debug)]
struct Shard<V, W> {
    entries: LruCache<Box<str>, Entry<V>>,
    missing: LruCache<Box<str>, u64>,
    loading: HashMap<Box<str>, Loading<W>>,
    weight_bytes: usize,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    weight_bytes: usize,
    epoch: u64,
}

#[derive(Debug)]
struct Loading<W> {
    id: u64,
    epoch: u64,
    waiter: W,
}

/// The right to fill a slot, for as long as nobody takes it away.
#[derive(Debug)]
pub struct Ticket {
    uid: Box<str>,
    id: u64,
    epoch: u64,
}

impl Ticket {
    /// The key to load.
    pub fn uid(&self) -> &str {
        &self.uid
    }
}

/// What a reader has to do.
#[derive(Debug)]
pub enum Lookup<V, W, S> {
    /// Answer with this value.
    Hit(V),
    /// Answer that there is no such order.
    Missing,
    /// Wait for the load that runs.
    Join(W),
    /// Start the load; `S` is the other end of what the joiners wait on.
    Load(Ticket, S),
    /// Ask the database; store nothing, share nothing.
    Bypass,
}

/// What a load brought.
#[derive(Debug)]
pub enum Loaded<V> {
    /// The value and its weight in bytes.
    Found(V, usize),
    /// There is no such order.
    NotFound,
    /// The database gave no answer.
    Failed,
}

/// Where a new entry goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// As the most recently used: somebody asked for it.
    Hot,
    /// As the least recently used, and only where there is room: nobody asked yet.
    Cold,
}

impl<V: Clone, W: Clone> Core<V, W> {
    /// Makes an empty, closed cache of at most `capacity` entries.
    pub fn new(capacity: NonZeroUsize) -> Self {
        let capacity = capacity.get();
        let shard_count = (capacity / MIN_ENTRIES_PER_SHARD).clamp(1, MAX_SHARDS);
        // Known absences are few and cheap to learn again: a scan over random uids must push out nothing else.
        let missing_capacity = (capacity / 8).clamp(64, 8192).div_ceil(shard_count);
        let missing_capacity = NonZeroUsize::new(missing_capacity).unwrap_or(NonZeroUsize::MIN);
        let shard = || {
            Mutex::new(Shard {
                entries: LruCache::unbounded(),
                missing: LruCache::new(missing_capacity),
                loading: HashMap::new(),
                weight_bytes: 0,
            })
        };
        Self {
            shards: (0..shard_count).map(|_| shard()).collect(),
            hasher: RandomState::new(),
            capacity,
            size: AtomicUsize::new(0),
            gate: AtomicGate::default(),
            next_load_id: AtomicU64::new(0),
            counters: Counters::default(),
        }
    }

    /// Lets loads store what they bring. Only after LISTEN has committed.
    pub fn open_fills(&self) {
        self.gate.change(|gate| gate.stores = true);
    }

    /// Lets hits be served, or no longer; fills go on.
    pub fn set_serving(&self, serves: bool) {
        self.gate.change(|gate| gate.serves = serves && gate.stores);
    }

    /// The listener's connection is lost: nothing cached may be served again, no load that runs may store.
    pub fn close(&self) {
        self.gate.change(|gate| {
            *gate = Gate {
                epoch: gate.epoch + 1,
                serves: false,
                stores: false,
            };
        });
        self.clear();
    }

    /// How often the listener's connection has been lost.
    pub fn epoch(&self) -> u64 {
        self.gate.read().epoch
    }

    /// Whether loads may store.
    pub fn accepts_fills(&self) -> bool {
        self.gate.read().stores
    }

    /// Says what a reader of `uid` has to do; `is_fresh` is whether the listener's proof is young enough.
    ///
    /// Where a load is to be started its slot is taken here, before the load takes its snapshot of the database.
    pub fn look_up<S>(
        &self,
        uid: &str,
        is_fresh: bool,
        make_waiter: impl FnOnce() -> (W, S),
    ) -> Lookup<V, W, S> {
        if !is_fresh || !self.gate.read().serves {
            self.counters.bypasses.add(1);
            return Lookup::Bypass;
        }
        let mut shard = self.shard(uid);
        // Read under the lock: a loss that happens later sweeps this shard later.
        let gate = self.gate.read();
        if !gate.serves {
            self.counters.bypasses.add(1);
            return Lookup::Bypass;
        }
        if let Some(entry) = shard.entries.get(uid)
            && entry.epoch == gate.epoch
        {
            self.counters.hits.add(1);
            return Lookup::Hit(entry.value.clone());
        }
        if shard.missing.get(uid) == Some(&gate.epoch) {
            self.counters.negative_hits.add(1);
            return Lookup::Missing;
        }
        self.counters.misses.add(1);
        if let Some(loading) = shard.loading.get(uid)
            && loading.epoch == gate.epoch
        {
            self.counters.coalesced.add(1);
            return Lookup::Join(loading.waiter.clone());
        }
        let (ticket, sender) = self.take_slot(&mut shard, uid, gate, make_waiter);
        Lookup::Load(ticket, sender)
    }

    /// Takes the slot of a key that nobody asked for, for warm-up; `None` where it is cached, loading, or closed.
    pub fn begin_warmup<S>(
        &self,
        uid: &str,
        make_waiter: impl FnOnce() -> (W, S),
    ) -> Option<(Ticket, S)> {
        let mut shard = self.shard(uid);
        let gate = self.gate.read();
        let is_cached = shard
            .entries
            .peek(uid)
            .is_some_and(|entry| entry.epoch == gate.epoch);
        let is_loading = shard
            .loading
            .get(uid)
            .is_some_and(|loading| loading.epoch == gate.epoch);
        if !gate.stores || is_cached || is_loading {
            return None;
        }
        Some(self.take_slot(&mut shard, uid, gate, make_waiter))
    }

    fn take_slot<S>(
        &self,
        shard: &mut Shard<V, W>,
        uid: &str,
        gate: Gate,
        make_waiter: impl FnOnce() -> (W, S),
    ) -> (Ticket, S) {
        self.counters.loads_started.add(1);
        let id = self.next_load_id.fetch_add(1, Ordering::Relaxed);
        let (waiter, sender) = make_waiter();
        self.remove_entry(shard, uid);
        shard.missing.pop(uid);
        let loading = Loading {
            id,
            epoch: gate.epoch,
            waiter,
        };
        shard.loading.insert(uid.into(), loading);
        let ticket = Ticket {
            uid: uid.into(),
            id,
            epoch: gate.epoch,
        };
        (ticket, sender)
    }

    /// Ends a load; `true` where its result was stored.
    pub fn complete(&self, ticket: Ticket, loaded: Loaded<V>, placement: Placement) -> bool {
        match &loaded {
            Loaded::Found(..) => self.counters.loads_succeeded.add(1),
            Loaded::NotFound => self.counters.loads_not_found.add(1),
            Loaded::Failed => self.counters.loads_failed.add(1),
        }
        let mut shard = self.shard(&ticket.uid);
        let gate = self.gate.read();
        let is_owner = shard
            .loading
            .get(&ticket.uid)
            .is_some_and(|loading| loading.id == ticket.id);
        if is_owner {
            shard.loading.remove(&ticket.uid);
        }
        let may_store = is_owner && gate.stores && gate.epoch == ticket.epoch;
        match loaded {
            Loaded::Failed => false,
            _ if !may_store => {
                self.counters.discarded.add(1);
                false
            }
            Loaded::NotFound => {
                shard.missing.put(ticket.uid, ticket.epoch);
                true
            }
            Loaded::Found(value, weight_bytes) => {
                let entry = Entry {
                    value,
                    weight_bytes,
                    epoch: ticket.epoch,
                };
                self.store(shard, ticket.uid, entry, placement)
            }
        }
    }

    fn store(
        &self,
        mut shard: MutexGuard<'_, Shard<V, W>>,
        uid: Box<str>,
        entry: Entry<V>,
        placement: Placement,
    ) -> bool {
        if placement == Placement::Cold && self.is_full() {
            return false;
        }
        shard.weight_bytes += entry.weight_bytes;
        if placement == Placement::Cold {
            let key = uid.clone();
            shard.entries.put(uid, entry);
            shard.entries.demote(&key);
        } else {
            shard.entries.put(uid, entry);
        }
        let size = self.size.fetch_add(1, Ordering::Relaxed) + 1;
        if size > self.capacity {
            let in_this_shard = shard.entries.len() > 1;
            if in_this_shard {
                self.evict_oldest(&mut shard);
            }
            drop(shard);
            if !in_this_shard {
                self.evict_oldest_anywhere();
            }
        }
        true
    }

    /// One out of another shard: this one holds only what has just come.
    fn evict_oldest_anywhere(&self) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            if shard.entries.len() > 1 || self.shards.len() == 1 {
                self.evict_oldest(&mut shard);
                return;
            }
        }
    }

    fn evict_oldest(&self, shard: &mut Shard<V, W>) {
        if let Some((_, entry)) = shard.entries.pop_lru() {
            shard.weight_bytes -= entry.weight_bytes;
            self.size.fetch_sub(1, Ordering::Relaxed);
            self.counters.evicted(Eviction::Capacity, 1);
        }
    }

    /// An order may have changed: forgets it, and takes the slot of a load that runs.
    pub fn invalidate(&self, uid: &str) {
        let mut shard = self.shard(uid);
        shard.loading.remove(uid);
        let was_cached = self.remove_entry(&mut shard, uid);
        let was_missing = shard.missing.pop(uid).is_some();
        if was_cached || was_missing {
            self.counters.evicted(Eviction::Event, 1);
        }
    }

    /// Anything may have changed: as [`Self::invalidate`] for every key.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            let entry_count = shard.entries.len();
            let evicted = entry_count + shard.missing.len();
            shard.loading.clear();
            shard.missing.clear();
            shard.entries.clear();
            shard.weight_bytes = 0;
            self.size.fetch_sub(entry_count, Ordering::Relaxed);
            drop(shard);
            self.counters.evicted(Eviction::Resync, evicted as u64);
        }
    }

    fn remove_entry(&self, shard: &mut Shard<V, W>, uid: &str) -> bool {
        let Some(entry) = shard.entries.pop(uid) else {
            return false;
        };
        shard.weight_bytes -= entry.weight_bytes;
        self.size.fetch_sub(1, Ordering::Relaxed);
        true
    }

    /// Whether a value is cached; counts as no lookup.
    pub fn contains(&self, uid: &str) -> bool {
        let shard = self.shard(uid);
        let epoch = self.gate.read().epoch;
        shard
            .entries
            .peek(uid)
            .is_some_and(|entry| entry.epoch == epoch)
    }

    /// Whether another entry would push one out.
    pub fn is_full(&self) -> bool {
        self.size.load(Ordering::Relaxed) >= self.capacity
    }

    /// What has happened since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Most entries.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Cached entries, known absences, and the weight of the entries in bytes.
    pub fn sizes(&self) -> (usize, usize, usize) {
        self.shards
            .iter()
            .fold((0, 0, 0), |(size, missing, weight), shard| {
                let shard = lock(shard);
                (
                    size + shard.entries.len(),
                    missing + shard.missing.len(),
                    weight + shard.weight_bytes,
                )
            })
    }

    fn shard(&self, uid: &str) -> MutexGuard<'_, Shard<V, W>> {
        let hash = self.hasher.hash_one(uid);
        lock(&self.shards[hash as usize % self.shards.len()])
    }
}

/// A panic under the lock can only come from a failed allocation; the maps stay usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
