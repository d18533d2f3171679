//! Who may store what: slots, epochs, and who goes when room is needed.
//!
//! A key may be cached, known to be missing, or neither; and at most one load of it runs. An event takes the slot away from
//! that load: it answers those who already wait for it, but stores nothing and gains no new waiters. Who comes later waits
//! for the next load, which begins when this one has ended. One load after another also means that no reader is ever
//! answered with an older version than one before: a later snapshot of the primary sees all that an earlier one saw.
//!
//! Losing the listener makes every entry unverified: it stays, but is served again only once its version was compared.
//!
//! Pure by intent: no tokio, no clock, no I/O, so that interleavings can be model-checked (`api/model`). The caller
//! says whether the listener's proof is fresh.

mod contract;
mod gate;
mod sample;
mod segments;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use compact_str::CompactString;
use lru::LruCache;

use super::counters::{Counters, Eviction};
pub use contract::{Completed, Demand, Loaded, Lookup, Placement, Ticket, Versioned};
use gate::{AtomicGate, Gate};
use segments::SegmentedLru;

/// Most shards; more than cores that could meet on one lock.
const MAX_SHARDS: usize = 16;
/// Fewer entries a shard would make the order of eviction visibly unlike an LRU's.
const MIN_ENTRIES_PER_SHARD: usize = 64;

/// The slots of all keys. `V` is a cached value, cheap to clone; `W` is what readers wait on while a load runs, and `S` the
/// load's end of it.
#[derive(Debug)]
pub struct Core<V, W, S> {
    shards: Box<[Mutex<Shard<V, W, S>>]>,
    hasher: RandomState,
    capacity: usize,
    /// Cached entries of all shards.
    size: AtomicUsize,
    gate: AtomicGate,
    counters: Counters,
}

#[derive(Debug)]
struct Shard<V, W, S> {
    entries: SegmentedLru<Entry<V>>,
    missing: LruCache<CompactString, ()>,
    loading: HashMap<CompactString, Loading<W, S>>,
    weight_bytes: usize,
}

#[derive(Clone, Debug)]
struct Entry<V> {
    value: V,
    weight_bytes: usize,
    epoch: u64,
}

/// The load that runs. Only its own end removes it.
#[derive(Debug)]
struct Loading<W, S> {
    epoch: u64,
    /// An event came after its beginning: its snapshot may be older.
    is_taken: bool,
    waiter: W,
    /// The load that is to begin afterwards, where somebody waits for one.
    next: Option<(W, S)>,
}

impl<W, S> Loading<W, S> {
    /// Whether its snapshot is known to hold everything that was proven so far.
    fn is_current(&self, gate: Gate) -> bool {
        !self.is_taken && self.epoch == gate.epoch
    }
}

impl<V: Clone + Versioned, W: Clone, S> Core<V, W, S> {
    /// Makes an empty, closed cache of at most `capacity` entries.
    pub fn new(capacity: NonZeroUsize) -> Self {
        let capacity = capacity.get();
        let shard_count = (capacity / MIN_ENTRIES_PER_SHARD).clamp(1, MAX_SHARDS);
        // Known absences are few and cheap to learn again: a scan over random uids must push out nothing else.
        let missing_capacity = (capacity / 8).clamp(64, 8192).div_ceil(shard_count);
        let missing_capacity = NonZeroUsize::new(missing_capacity).unwrap_or(NonZeroUsize::MIN);
        let shard = || {
            Mutex::new(Shard {
                entries: SegmentedLru::new(capacity / shard_count),
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

    /// The listener's connection is lost: every entry is unverified, no load that runs may store.
    pub fn close(&self) {
        self.gate.change(|gate| {
            *gate = Gate {
                epoch: gate.epoch + 1,
                serves: false,
                stores: false,
            };
        });
        for shard in &self.shards {
            let mut shard = lock(shard);
            let evicted = shard.missing.len();
            shard.missing.clear();
            drop(shard);
            self.counters.evicted(Eviction::Resync, evicted as u64);
        }
    }

    /// The unverified keys, shard by shard, the most recently used first.
    pub fn unverified(&self) -> impl Iterator<Item = Vec<CompactString>> {
        self.shards.iter().map(|shard| {
            let shard = lock(shard);
            let epoch = self.gate.read().epoch;
            let entries = shard.entries.iter();
            let unverified = entries.filter(|(_, entry)| entry.epoch != epoch);
            unverified.map(|(uid, _)| uid.clone()).collect()
        })
    }

    /// Says which version of an unverified key the database holds, asked after LISTEN had committed in this `epoch`.
    ///
    /// The entry is verified for that epoch if it has that version, and dropped otherwise. What has come or gone meanwhile is
    /// left alone.
    pub fn verify(&self, uid: &str, epoch: u64, version: Option<i64>) {
        let mut shard = self.shard(uid);
        match shard.entries.peek_mut(uid) {
            Some(entry) if entry.epoch == epoch => {}
            Some(entry) if Some(entry.value.version()) == version => entry.epoch = epoch,
            Some(_) => {
                self.remove_entry(&mut shard, uid);
                self.counters.evicted(Eviction::Resync, 1);
            }
            None => {}
        }
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
    pub fn look_up(
        &self,
        uid: &str,
        demand: Demand,
        is_fresh: bool,
        make_waiter: impl FnOnce() -> (W, S),
    ) -> Lookup<V, W, S> {
        if !is_fresh || !self.gate.read().serves {
            self.counters.bypasses.add(1);
            return Lookup::Bypass;
        }
        let mut shard = self.shard(uid);
        // Read under the lock: whatever is done to this shard after a loss is done later.
        let gate = self.gate.read();
        if !gate.serves {
            self.counters.bypasses.add(1);
            return Lookup::Bypass;
        }
        if demand == Demand::Database {
            self.counters.bypasses.add(1);
        } else {
            if let Some(entry) = shard.entries.get(uid)
                && entry.epoch == gate.epoch
            {
                self.counters.hits.add(1);
                return Lookup::Hit(entry.value.clone());
            }
            if shard.missing.get(uid).is_some() {
                self.counters.negative_hits.add(1);
                return Lookup::Missing;
            }
            self.counters.misses.add(1);
        }
        let Some(loading) = shard.loading.get_mut(uid) else {
            let (waiter, sender) = make_waiter();
            return Lookup::Load(self.begin(&mut shard, uid.into(), gate, waiter), sender);
        };
        if demand == Demand::Proven && loading.is_current(gate) {
            self.counters.coalesced.add(1);
            return Lookup::Join(loading.waiter.clone());
        }
        if let Some((waiter, _)) = &loading.next {
            self.counters.coalesced.add(1);
            return Lookup::Join(waiter.clone());
        }
        let next = make_waiter();
        let waiter = next.0.clone();
        loading.next = Some(next);
        Lookup::Next(waiter)
    }

    /// Takes the slot of a key that nobody asked for, for warm-up; `None` where it is cached, loading, or closed.
    pub fn begin_warmup(
        &self,
        uid: &str,
        make_waiter: impl FnOnce() -> (W, S),
    ) -> Option<(Ticket, S)> {
        let mut shard = self.shard(uid);
        let gate = self.gate.read();
        let entry = shard.entries.peek(uid);
        let is_cached = entry.is_some_and(|entry| entry.epoch == gate.epoch);
        if !gate.stores || is_cached || shard.loading.contains_key(uid) {
            return None;
        }
        let (waiter, sender) = make_waiter();
        Some((self.begin(&mut shard, uid.into(), gate, waiter), sender))
    }

    fn begin(
        &self,
        shard: &mut Shard<V, W, S>,
        uid: CompactString,
        gate: Gate,
        waiter: W,
    ) -> Ticket {
        self.counters.loads_started.add(1);
        let loading = Loading {
            epoch: gate.epoch,
            // While nobody listens its snapshot may miss what is committed before LISTEN, and no event will tell.
            is_taken: !gate.stores,
            waiter,
            next: None,
        };
        shard.loading.insert(uid.clone(), loading);
        Ticket(uid)
    }

    /// Ends a load.
    pub fn complete(
        &self,
        Ticket(uid): Ticket,
        loaded: Loaded<V>,
        placement: Placement,
    ) -> Completed<S> {
        match &loaded {
            Loaded::Found(..) => self.counters.loads_succeeded.add(1),
            Loaded::NotFound => self.counters.loads_not_found.add(1),
            Loaded::Failed => self.counters.loads_failed.add(1),
        }
        let mut shard = self.shard(&uid);
        let gate = self.gate.read();
        let ended = shard.loading.remove(&uid);
        let may_store = ended.as_ref().is_some_and(|load| load.is_current(gate));
        let next = ended.and_then(|load| load.next).map(|(waiter, sender)| {
            let ticket = self.begin(&mut shard, uid.clone(), gate, waiter);
            (ticket, sender)
        });
        let is_stored = match loaded {
            Loaded::Failed => false,
            Loaded::Found(..) | Loaded::NotFound if !may_store => {
                self.counters.discarded.add(1);
                self.drop_older(&mut shard, &uid, loaded.version());
                false
            }
            Loaded::NotFound => {
                self.remove_entry(&mut shard, &uid);
                shard.missing.put(uid, ());
                true
            }
            Loaded::Found(value, weight_bytes) => {
                let entry = Entry {
                    value,
                    weight_bytes,
                    epoch: gate.epoch,
                };
                self.store(shard, uid, entry, placement)
            }
        };
        Completed { is_stored, next }
    }

    fn store(
        &self,
        mut shard: MutexGuard<'_, Shard<V, W, S>>,
        uid: CompactString,
        entry: Entry<V>,
        placement: Placement,
    ) -> bool {
        shard.missing.pop(&uid);
        self.remove_entry(&mut shard, &uid);
        if placement == Placement::Cold && self.is_full() {
            return false;
        }
        shard.weight_bytes += entry.weight_bytes;
        match placement {
            Placement::Hot => shard.entries.insert(uid, entry),
            Placement::Cold => shard.entries.insert_oldest(uid, entry),
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

    fn evict_oldest(&self, shard: &mut Shard<V, W, S>) {
        if let Some(entry) = shard.entries.remove_oldest() {
            shard.weight_bytes -= entry.weight_bytes;
            self.size.fetch_sub(1, Ordering::Relaxed);
            self.counters.evicted(Eviction::Capacity, 1);
        }
    }

    /// An order may have changed: forgets it, and takes the slot of a load that runs.
    pub fn invalidate(&self, uid: &str) {
        let mut shard = self.shard(uid);
        if let Some(loading) = shard.loading.get_mut(uid) {
            loading.is_taken = true;
        }
        let was_cached = self.remove_entry(&mut shard, uid);
        let was_missing = shard.missing.pop(uid).is_some();
        if was_cached || was_missing {
            self.counters.evicted(Eviction::Event, 1);
        }
    }

    /// A reader is to be shown this version past the slots, or that there is no order: nobody may be shown an older one
    /// later, although the event may still be on its way.
    pub fn supersede(&self, uid: &str, version: Option<i64>) {
        let mut shard = self.shard(uid);
        if let Some(loading) = shard.loading.get_mut(uid) {
            loading.is_taken = true;
        }
        self.drop_older(&mut shard, uid, version);
    }

    /// Drops what is cached if it is older than this version, or all if there is no order.
    fn drop_older(&self, shard: &mut Shard<V, W, S>, uid: &str, version: Option<i64>) {
        let entry = shard.entries.peek(uid);
        let is_older = entry.is_some_and(|entry| Some(entry.value.version()) < version);
        let is_gone = version.is_none();
        let was_cached = (is_older || is_gone) && self.remove_entry(shard, uid);
        let was_missing = !is_gone && shard.missing.pop(uid).is_some();
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
            shard
                .loading
                .values_mut()
                .for_each(|loading| loading.is_taken = true);
            shard.missing.clear();
            shard.entries.clear();
            shard.weight_bytes = 0;
            self.size.fetch_sub(entry_count, Ordering::Relaxed);
            drop(shard);
            self.counters.evicted(Eviction::Resync, evicted as u64);
        }
    }

    fn remove_entry(&self, shard: &mut Shard<V, W, S>, uid: &str) -> bool {
        let Some(entry) = shard.entries.remove(uid) else {
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

    fn shard(&self, uid: &str) -> MutexGuard<'_, Shard<V, W, S>> {
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
