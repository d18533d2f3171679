//! The rules of the cache: who may store what, and which entry goes when room is needed.
//!
//! A key is cached, or known to be missing, or neither. At most one load of it runs at a time: the load owns the key's
//! in-flight slot. An event takes the slot away from the load. The load then answers the readers who already wait for it, but
//! stores nothing and gains no new waiters. Readers who come later wait for the next load, which begins when this one has
//! ended. Because loads of a key run one after another, no reader is answered with an older version than a reader before:
//! a later snapshot of the primary contains everything that an earlier one contains.
//!
//! When the listener is lost, every entry becomes unverified. It stays in the cache, but is served again only after its
//! version was compared with the database.
//!
//! This module has no tokio, no clock and no I/O, so that `api/model` can check its interleavings. The caller says whether
//! the listener's proof is fresh. Each `sound!` is a decision on which the promise rests; the model checker finds the mistake
//! that stands beside it.

mod contract;
mod gate;
mod room;
mod sample;
mod segments;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;

use compact_str::CompactString;
use lru::LruCache;

use super::counters::Counters;
use super::sync::{AtomicU64, Mutex, MutexGuard, Ordering, sound};
pub use contract::{Completed, Demand, Loaded, Lookup, Placement, Stored, Ticket, Versioned};
use gate::{AtomicGate, Gate};
pub use room::Capacity;
use room::Room;
pub use sample::{Sampled, differs};
use segments::SegmentedLru;

/// The entries and in-flight slots of all keys.
///
/// `V` is a cached value, which must be cheap to clone. `W` is what readers wait on while a load runs, and `S` is the load's
/// end of it.
#[derive(Debug)]
pub struct Core<V, W, S> {
    shards: Box<[Mutex<Shard<V, W, S>>]>,
    hasher: RandomState,
    room: Room,
    gate: AtomicGate,
    /// The history that the listener hears of, or has heard of last. It is set before the gate opens.
    history: AtomicU64,
    counters: Counters,
}

#[derive(Debug)]
struct Shard<V, W, S> {
    entries: SegmentedLru<Entry<V>>,
    /// The known absences with their numbers.
    missing: LruCache<CompactString, u64>,
    /// The number of the newest absence.
    last_absence: u64,
    loading: HashMap<CompactString, Loading<W, S>>,
}

#[derive(Clone, Debug)]
struct Entry<V> {
    value: V,
    epoch: u64,
}

/// A load that runs. Only its own end removes it.
#[derive(Debug)]
struct Loading<W, S> {
    epoch: u64,
    /// Whether the load has lost its slot: an event came after the load began, so its snapshot may be older.
    is_taken: bool,
    waiter: W,
    /// What readers of the next load wait on, if there are any.
    next: Option<(W, S)>,
}

impl<W, S> Loading<W, S> {
    /// Whether the load's snapshot is known to contain everything that was proven so far.
    fn is_current(&self, gate: Gate) -> bool {
        !self.is_taken && sound!(self.is_of(gate), LoadWithoutEpoch, true)
    }

    /// Whether the listener was not lost since the load began.
    fn is_of(&self, gate: Gate) -> bool {
        self.epoch == gate.epoch
    }
}

impl<V: Clone + Versioned, W: Clone, S> Core<V, W, S> {
    /// Makes an empty, closed cache.
    pub fn new(capacity: Capacity) -> Self {
        let shard_count = capacity.shard_count();
        let (share_entries, share_bytes) = capacity.share();
        // Few absences are kept, because they are cheap to learn again. A scan over random uids pushes out only them.
        let missing_capacity = (capacity.entries.get() / 8).clamp(64, 8192);
        let missing_capacity = missing_capacity.div_ceil(shard_count);
        let missing_capacity = NonZeroUsize::new(missing_capacity).unwrap_or(NonZeroUsize::MIN);
        let shard = || {
            Mutex::new(Shard {
                entries: SegmentedLru::new(share_entries, share_bytes),
                missing: LruCache::new(missing_capacity),
                last_absence: 0,
                loading: HashMap::new(),
            })
        };
        Self {
            shards: (0..shard_count).map(|_| shard()).collect(),
            hasher: RandomState::new(),
            room: Room::new(capacity),
            gate: AtomicGate::default(),
            history: AtomicU64::new(0),
            counters: Counters::default(),
        }
    }

    /// Lets loads store what they bring from the database with this history. Must only be called after LISTEN has committed
    /// there.
    pub fn open_fills(&self, history: u64) {
        self.history.store(history, Ordering::SeqCst);
        self.gate.change(|gate| gate.stores = true);
    }

    /// Lets hits be served, or stops them. Loads store as before.
    pub fn set_serving(&self, serves: bool) {
        self.gate.change(|gate| gate.serves = serves && gate.stores);
    }

    /// Must be called when the listener's connection is lost. Every entry becomes unverified, every absence is dropped, and
    /// running loads may no longer store.
    pub fn close(&self) {
        self.gate.change(|gate| {
            *gate = Gate {
                epoch: sound!(gate.epoch + 1, LossKeepsTheEpoch, gate.epoch),
                serves: false,
                stores: false,
            };
        });
        for shard in &self.shards {
            let mut shard = shard.lock();
            let evicted = shard.missing.len();
            sound!(shard.missing.clear(), AbsenceSurvivesALoss, ());
            drop(shard);
            self.counters.evictions.resync.add(evicted as u64);
        }
    }

    /// Returns the unverified keys, shard by shard. In each shard the entries that would be evicted last come first.
    pub fn unverified(&self) -> impl Iterator<Item = Vec<CompactString>> {
        self.shards.iter().map(|shard| {
            let shard = shard.lock();
            let epoch = self.gate.read().epoch;
            let entries = shard.entries.iter();
            let unverified = entries.filter(|(_, entry)| entry.epoch != epoch);
            unverified.map(|(uid, _)| uid.clone()).collect()
        })
    }

    /// Compares an unverified entry with the version that the database holds, or with `None` if the order does not exist. The
    /// database must have been asked after LISTEN had committed in this `epoch`.
    ///
    /// The entry becomes verified for that epoch if it has that version, and is dropped otherwise. An entry that was stored
    /// or verified in that epoch already is left alone, and so is every entry if the answer is of another `history`.
    pub fn verify(&self, uid: &str, epoch: u64, history: u64, version: Option<i64>) {
        let mut shard = self.shard(uid);
        if sound!(self.history() != history, VerifyInAnyHistory, false) {
            return;
        }
        let entry = shard.entries.peek_mut(uid);
        let Some(entry) = entry.filter(|entry| entry.epoch != epoch) else {
            return;
        };
        let cached = Some(entry.value.version());
        if sound!(cached == version, VerifyAnyVersion, version.is_some()) {
            entry.epoch = epoch;
        } else {
            self.remove_entry(&mut shard, uid);
            self.counters.evictions.resync.add(1);
        }
    }

    /// Returns how often the listener's connection has been lost.
    pub fn epoch(&self) -> u64 {
        self.gate.read().epoch
    }

    /// Returns the history that the listener hears of, or has heard of last.
    pub fn history(&self) -> u64 {
        self.history.load(Ordering::SeqCst)
    }

    /// Returns whether loads may store.
    pub fn accepts_fills(&self) -> bool {
        self.gate.read().stores
    }

    /// Returns what a reader of `uid` has to do. `is_fresh` says whether the listener's proof is younger than the lease.
    ///
    /// If the reader has to begin a load, the slot is taken here, before the load takes its snapshot of the database.
    pub fn look_up(
        &self,
        uid: &str,
        demand: Demand,
        is_fresh: bool,
        make_waiter: impl FnOnce() -> (W, S),
    ) -> Lookup<V, W, S> {
        if !is_fresh || !self.gate.read().serves {
            self.counters.lookups.bypasses.add(1);
            return Lookup::Bypass;
        }
        let mut shard = self.shard(uid);
        // Read under the lock: `close` changes the gate before it changes any shard, so a reader that still sees the old gate
        // comes before the change of this shard.
        let gate = self.gate.read();
        if !gate.serves {
            self.counters.lookups.bypasses.add(1);
            return Lookup::Bypass;
        }
        if demand == Demand::Database {
            self.counters.lookups.bypasses.add(1);
        } else {
            if let Some(entry) = shard.entries.get(uid)
                && sound!(entry.epoch == gate.epoch, HitWithoutEpoch, true)
            {
                self.counters.lookups.hits.add(1);
                return Lookup::Hit(entry.value.clone());
            }
            if shard.missing.get(uid).is_some() {
                self.counters.lookups.negative_hits.add(1);
                return Lookup::Missing;
            }
            self.counters.lookups.misses.add(1);
        }
        let Some(load) = shard.loading.get_mut(uid) else {
            let (waiter, sender) = make_waiter();
            return Lookup::Load(self.begin(&mut shard, uid.into(), gate, waiter), sender);
        };
        if sound!(demand == Demand::Proven, DemandJoinsOlderLoad, true)
            && sound!(load.is_current(gate), JoinAfterEvent, load.is_of(gate))
        {
            self.counters.loads.coalesced.add(1);
            return Lookup::Join(load.waiter.clone());
        }
        if let Some((waiter, _)) = &load.next {
            self.counters.loads.coalesced.add(1);
            return Lookup::Join(waiter.clone());
        }
        let next = make_waiter();
        let waiter = next.0.clone();
        load.next = Some(next);
        Lookup::Next(waiter)
    }

    /// Takes the slot of a key for warm-up, before anybody asks for it. Returns `None` if the key is cached or loading, or if
    /// loads may not store.
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
        self.counters.loads.started.add(1);
        let loading = Loading {
            epoch: gate.epoch,
            // While nobody listens, the snapshot may lack a commit that happens before LISTEN, and no event will tell of it.
            is_taken: sound!(!gate.stores, LoadFromBeforeListen, false),
            waiter,
            next: None,
        };
        shard.loading.insert(uid.clone(), loading);
        Ticket(uid)
    }

    /// Ends a load: frees the slot, stores what the load brought from the database with this `history` if that is allowed, and
    /// begins the next load if readers wait for one.
    pub fn complete(
        &self,
        Ticket(uid): Ticket,
        loaded: Loaded<V>,
        history: u64,
        placement: Placement,
    ) -> Completed<S> {
        match &loaded {
            Loaded::Found(..) => self.counters.loads.succeeded.add(1),
            Loaded::NotFound => self.counters.loads.not_found.add(1),
            Loaded::Failed => self.counters.loads.failed.add(1),
        }
        let number = self.shard_number(&uid);
        let mut shard = self.shards[number].lock();
        let gate = self.gate.read();
        let ended = shard.loading.remove(&uid);
        let is_heard = sound!(history == self.history(), StoreOfAnyHistory, true);
        let may_store = is_heard
            && (ended.as_ref()).is_some_and(|load| {
                sound!(load.is_current(gate), StoreWithoutSlot, load.is_of(gate))
            });
        let waiting = sound!(ended.and_then(|load| load.next), NextLoadForgotten, None);
        let next = waiting.map(|(waiter, sender)| {
            let ticket = self.begin(&mut shard, uid.clone(), gate, waiter);
            (ticket, sender)
        });
        let stored = match loaded {
            Loaded::Failed => Stored::Discarded,
            Loaded::Found(..) | Loaded::NotFound if !may_store => {
                self.counters.loads.discarded.add(1);
                if sound!(true, OlderEntryAfterADiscardedLoad, false) {
                    self.drop_other(&mut shard, &uid, loaded.version());
                }
                Stored::Discarded
            }
            Loaded::NotFound => {
                self.remove_entry(&mut shard, &uid);
                shard.last_absence += 1;
                let absence = shard.last_absence;
                shard.missing.put(uid, absence);
                Stored::Yes
            }
            Loaded::Found(value, weight_bytes) => {
                let entry = Entry {
                    value,
                    epoch: gate.epoch,
                };
                self.store((number, shard), uid, (entry, weight_bytes), placement)
            }
        };
        Completed { stored, next }
    }

    /// Forgets an order that may have changed, and takes the slot away from a load that runs.
    pub fn invalidate(&self, uid: &str) {
        let mut shard = self.shard(uid);
        if let Some(loading) = shard.loading.get_mut(uid) {
            loading.is_taken = true;
        }
        let was_cached = self.remove_entry(&mut shard, uid);
        let was_missing = shard.missing.pop(uid).is_some();
        if was_cached || was_missing {
            self.counters.evictions.event.add(1);
        }
    }

    /// Must be called before a reader is shown this version past the cache, or (`None`) learns that there is no order. From then
    /// on nobody is shown another version that is older, although the event may still be on its way.
    pub fn supersede(&self, uid: &str, version: Option<i64>) {
        let mut shard = self.shard(uid);
        if let Some(loading) = shard.loading.get_mut(uid) {
            loading.is_taken = true;
        }
        self.drop_other(&mut shard, uid, version);
    }

    /// Drops an entry that has another version than this one, or any entry if there is no order (`None`). Drops a known absence
    /// if there is an order.
    ///
    /// Versions are not compared by size: an order that was deleted and inserted again may have a lower one, and so may an
    /// order of another history.
    fn drop_other(&self, shard: &mut Shard<V, W, S>, uid: &str, version: Option<i64>) {
        let entry = shard.entries.peek(uid);
        let has_other = entry.is_some_and(|entry| {
            let cached = Some(entry.value.version());
            sound!(
                cached != version,
                OtherVersionsByTheirSize,
                cached < version
            )
        });
        let is_other = sound!(has_other, OlderEntryAfterABlindRead, false);
        let is_gone = version.is_none();
        let was_cached = (is_other || is_gone) && self.remove_entry(shard, uid);
        let was_missing = !is_gone && shard.missing.pop(uid).is_some();
        if was_cached || was_missing {
            self.counters.evictions.event.add(1);
        }
    }

    /// Does what [`Self::invalidate`] does, for every key.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let entry_count = shard.entries.len();
            let evicted = entry_count + shard.missing.len();
            for loading in shard.loading.values_mut() {
                loading.is_taken = true;
            }
            shard.missing.clear();
            self.room
                .give_back(entry_count, shard.entries.weight_bytes());
            shard.entries.clear();
            drop(shard);
            self.counters.evictions.resync.add(evicted as u64);
        }
    }

    fn remove_entry(&self, shard: &mut Shard<V, W, S>, uid: &str) -> bool {
        let Some(weight_bytes) = shard.entries.remove(uid) else {
            return false;
        };
        self.room.give_back(1, weight_bytes);
        true
    }

    /// Returns whether a verified value is cached. This does not count as a lookup.
    pub fn contains(&self, uid: &str) -> bool {
        let shard = self.shard(uid);
        let epoch = self.gate.read().epoch;
        shard
            .entries
            .peek(uid)
            .is_some_and(|entry| entry.epoch == epoch)
    }

    /// Returns what has happened since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Returns the number of entries, the number of known absences, and the weight of the entries in bytes.
    pub fn sizes(&self) -> (usize, usize, usize) {
        let (mut size, mut missing, mut weight_bytes) = (0, 0, 0);
        for shard in &self.shards {
            let shard = shard.lock();
            size += shard.entries.len();
            missing += shard.missing.len();
            weight_bytes += shard.entries.weight_bytes();
        }
        (size, missing, weight_bytes)
    }

    fn shard(&self, uid: &str) -> MutexGuard<'_, Shard<V, W, S>> {
        self.shards[self.shard_number(uid)].lock()
    }

    fn shard_number(&self, uid: &str) -> usize {
        self.hasher.hash_one(uid) as usize % self.shards.len()
    }
}
