//! Which entry is evicted when room is needed: a segmented LRU (Karedla, Love and Wherry, "Caching Strategies to Improve Disk
//! System Performance", 1994) that promotes lazily (Yang, Qiu, Zhang, Yue and Rashmi, "FIFO Can Be Better than LRU: the
//! Power of Lazy Promotion and Quick Demotion", 2023).
//!
//! A new entry is on probation. An entry that is asked for again becomes protected. Room is made among the entries on
//! probation. A client that walks once over all orders therefore pushes out nothing that others ask for again and again.
//!
//! A hit only marks its entry. The mark takes effect when it is the entry's turn to be evicted: then the entry is moved. If
//! each hit moved its entry, it would touch the neighbours in the list, too, and in a large cache the processor would wait
//! for each of them.

use compact_str::CompactString;
use lru::LruCache;

/// The largest number of entries that are moved for one eviction. They take a few tenths of a millisecond under the lock.
const MAX_MOVES: usize = 1000;

/// The entries of one shard by uid.
#[derive(Debug)]
pub(super) struct SegmentedLru<T> {
    protected: LruCache<CompactString, Marked<T>>,
    probation: LruCache<CompactString, Marked<T>>,
    max_protected: usize,
}

#[derive(Debug)]
struct Marked<T> {
    entry: T,
    /// Whether a reader asked for the entry since it came to its place in the list.
    is_used: bool,
}

impl<T> Marked<T> {
    fn new(entry: T) -> Self {
        Self {
            entry,
            is_used: false,
        }
    }
}

impl<T> SegmentedLru<T> {
    /// Makes an empty LRU for about `capacity` entries. The caller must keep to the bound.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            protected: LruCache::unbounded(),
            probation: LruCache::unbounded(),
            // Four fifths, the share that Caffeine uses.
            max_protected: (capacity * 4 / 5).max(1),
        }
    }

    /// Gives a reader the entry, and marks it as used.
    pub(super) fn get(&mut self, uid: &str) -> Option<&T> {
        let marked = self.marked(uid)?;
        marked.is_used = true;
        Some(&marked.entry)
    }

    /// Gives the entry without marking it.
    pub(super) fn peek(&self, uid: &str) -> Option<&T> {
        let marked = self.protected.peek(uid);
        let marked = marked.or_else(|| self.probation.peek(uid))?;
        Some(&marked.entry)
    }

    /// Gives the entry to be changed, without marking it.
    pub(super) fn peek_mut(&mut self, uid: &str) -> Option<&mut T> {
        Some(&mut self.marked(uid)?.entry)
    }

    fn marked(&mut self, uid: &str) -> Option<&mut Marked<T>> {
        match self.protected.peek_mut(uid) {
            Some(marked) => Some(marked),
            None => self.probation.peek_mut(uid),
        }
    }

    /// Adds an entry for a new uid, as the newest on probation.
    pub(super) fn insert(&mut self, uid: CompactString, entry: T) {
        self.probation.put(uid, Marked::new(entry));
    }

    /// Adds an entry for a new uid, as the next one to be evicted.
    pub(super) fn insert_oldest(&mut self, uid: CompactString, entry: T) {
        let key = uid.clone();
        self.probation.put(uid, Marked::new(entry));
        self.probation.demote(&key);
    }

    pub(super) fn remove(&mut self, uid: &str) -> Option<T> {
        let marked = self.protected.pop(uid);
        let marked = marked.or_else(|| self.probation.pop(uid))?;
        Some(marked.entry)
    }

    /// Removes the oldest unmarked entry on probation, but not the newest one. If all of them are marked, it removes the entry
    /// that has been protected for longest.
    pub(super) fn remove_oldest(&mut self) -> Option<T> {
        for _ in 1..self.probation.len().min(MAX_MOVES) {
            let (uid, oldest) = self.probation.pop_lru()?;
            if !oldest.is_used {
                return Some(oldest.entry);
            }
            self.protect(uid, oldest.entry);
        }
        let oldest = self.protected.pop_lru();
        let (_, oldest) = oldest.or_else(|| self.probation.pop_lru())?;
        Some(oldest.entry)
    }

    /// Protects an entry. If this is one too many, the oldest protected entry goes back on probation and keeps its mark.
    fn protect(&mut self, uid: CompactString, entry: T) {
        self.protected.put(uid, Marked::new(entry));
        if self.protected.len() > self.max_protected
            && let Some((uid, oldest)) = self.protected.pop_lru()
        {
            self.probation.put(uid, oldest);
        }
    }

    pub(super) fn clear(&mut self) {
        self.protected.clear();
        self.probation.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.protected.len() + self.probation.len()
    }

    /// The entries, in reverse order of their eviction.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&CompactString, &T)> {
        let marked = self.protected.iter().chain(self.probation.iter());
        marked.map(|(uid, marked)| (uid, &marked.entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(capacity: usize) -> SegmentedLru<usize> {
        let mut entries = SegmentedLru::new(capacity);
        for number in 0..capacity {
            entries.insert(number.to_string().into(), number);
        }
        entries
    }

    #[test]
    fn used_entry_survives_its_turn_and_is_evicted_at_the_next_one_if_it_was_not_used_again() {
        let mut entries = filled(5);
        assert_eq!(entries.get("0"), Some(&0));
        assert_eq!(entries.remove_oldest(), Some(1));
        let rest: Vec<_> = (0..4).filter_map(|_| entries.remove_oldest()).collect();
        assert_eq!(rest, [2, 3, 0, 4], "the newest is last");
        assert_eq!(entries.remove_oldest(), None);
    }

    #[test]
    fn if_all_entries_are_used_one_is_evicted_but_not_the_newest() {
        for capacity in [1, 2, 5, 100] {
            let mut entries = filled(capacity);
            for newest in capacity..capacity * 3 {
                for number in 0..newest {
                    entries.get(&number.to_string());
                }
                entries.insert(newest.to_string().into(), newest);
                assert!(entries.remove_oldest().is_some());
                assert_eq!(entries.len(), capacity);
                assert_eq!(entries.peek(&newest.to_string()), Some(&newest));
            }
        }
    }

    #[test]
    fn no_eviction_moves_more_entries_than_the_bound() {
        let mut entries = filled(10 * MAX_MOVES);
        for number in 0..10 * MAX_MOVES {
            entries.get(&number.to_string());
        }
        assert_eq!(entries.remove_oldest(), Some(0));
        assert_eq!(entries.protected.len(), MAX_MOVES - 2);
    }
}
