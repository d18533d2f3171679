//! Which entry goes when room is needed: a segmented LRU (Karedla, Love and Wherry, "Caching Strategies to Improve Disk
//! System Performance", 1994).
//!
//! A new entry is on probation; one that is asked for again is protected. Room is made among those on probation, so that
//! whoever walks once over all orders pushes out nothing that others ask for again and again.

use compact_str::CompactString;
use lru::LruCache;

/// The entries of one shard by uid.
#[derive(Debug)]
pub(super) struct SegmentedLru<T> {
    protected: LruCache<CompactString, T>,
    probation: LruCache<CompactString, T>,
    max_protected: usize,
}

impl<T: Clone> SegmentedLru<T> {
    /// Makes an empty one for about `capacity` entries; the bound is the caller's to keep.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            protected: LruCache::unbounded(),
            probation: LruCache::unbounded(),
            // Four fifths, as Caffeine has it.
            max_protected: capacity * 4 / 5,
        }
    }

    /// A reader asks for it: it counts as used.
    pub(super) fn get(&mut self, uid: &str) -> Option<T> {
        if let Some(entry) = self.protected.get(uid) {
            return Some(entry.clone());
        }
        if self.max_protected == 0 {
            return self.probation.get(uid).cloned();
        }
        let (uid, entry) = self.probation.pop_entry(uid)?;
        self.protected.put(uid, entry.clone());
        if self.protected.len() > self.max_protected
            && let Some((uid, oldest)) = self.protected.pop_lru()
        {
            self.probation.put(uid, oldest);
        }
        Some(entry)
    }

    /// Looks at it; this is no use of it.
    pub(super) fn peek(&self, uid: &str) -> Option<&T> {
        self.protected
            .peek(uid)
            .or_else(|| self.probation.peek(uid))
    }

    /// As [`Self::peek`].
    pub(super) fn peek_mut(&mut self, uid: &str) -> Option<&mut T> {
        match self.protected.peek_mut(uid) {
            Some(entry) => Some(entry),
            None => self.probation.peek_mut(uid),
        }
    }

    /// Takes in what is not there yet, as the newest on probation.
    pub(super) fn insert(&mut self, uid: CompactString, entry: T) {
        self.probation.put(uid, entry);
    }

    /// Takes in what is not there yet, as the first to go.
    pub(super) fn insert_oldest(&mut self, uid: CompactString, entry: T) {
        let key = uid.clone();
        self.probation.put(uid, entry);
        self.probation.demote(&key);
    }

    pub(super) fn remove(&mut self, uid: &str) -> Option<T> {
        self.protected.pop(uid).or_else(|| self.probation.pop(uid))
    }

    /// Removes the oldest on probation, but not what has just come.
    pub(super) fn remove_oldest(&mut self) -> Option<T> {
        let oldest = match self.probation.len() {
            0 | 1 => self
                .protected
                .pop_lru()
                .or_else(|| self.probation.pop_lru()),
            _ => self.probation.pop_lru(),
        };
        oldest.map(|(_, entry)| entry)
    }

    pub(super) fn clear(&mut self) {
        self.protected.clear();
        self.probation.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.protected.len() + self.probation.len()
    }

    /// The entries, those that go last first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&CompactString, &T)> {
        self.protected.iter().chain(self.probation.iter())
    }
}
