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
/// How many entries lose their protection when another one gains it. A heavy one may take the share of two light ones each
/// time until the share is kept again, and the number of moves stays bounded.
const MAX_DEMOTIONS: usize = 2;

/// The entries of one shard by uid.
#[derive(Debug)]
pub(super) struct SegmentedLru<T> {
    protected: Segment<T>,
    probation: Segment<T>,
    max_protected: usize,
    max_protected_bytes: usize,
}

#[derive(Debug)]
struct Segment<T> {
    entries: LruCache<CompactString, Marked<T>>,
    /// The weight of the entries together.
    weight_bytes: usize,
}

#[derive(Debug)]
struct Marked<T> {
    entry: T,
    weight_bytes: usize,
    /// Whether a reader asked for the entry since it came to its place in the list.
    is_used: bool,
}

impl<T> Segment<T> {
    fn new() -> Self {
        Self {
            entries: LruCache::unbounded(),
            weight_bytes: 0,
        }
    }

    /// Adds an entry for a new uid, as the newest one.
    fn put(&mut self, uid: CompactString, marked: Marked<T>) {
        self.weight_bytes += marked.weight_bytes;
        self.entries.put(uid, marked);
    }

    fn pop(&mut self, uid: &str) -> Option<Marked<T>> {
        let marked = self.entries.pop(uid)?;
        self.weight_bytes -= marked.weight_bytes;
        Some(marked)
    }

    fn pop_oldest(&mut self) -> Option<(CompactString, Marked<T>)> {
        let (uid, marked) = self.entries.pop_lru()?;
        self.weight_bytes -= marked.weight_bytes;
        Some((uid, marked))
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.weight_bytes = 0;
    }
}

impl<T> SegmentedLru<T> {
    /// Makes an empty LRU for about so many entries and bytes. The caller must keep to these bounds.
    pub(super) fn new(capacity: usize, capacity_bytes: usize) -> Self {
        // Four fifths, the share that Caffeine uses. Divided first, because there may be no bound of bytes.
        let share = |all: usize| (all / 5 * 4 + all % 5 * 4 / 5).max(1);
        Self {
            protected: Segment::new(),
            probation: Segment::new(),
            max_protected: share(capacity),
            max_protected_bytes: share(capacity_bytes),
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
        let marked = self.protected.entries.peek(uid);
        let marked = marked.or_else(|| self.probation.entries.peek(uid))?;
        Some(&marked.entry)
    }

    /// Gives the entry to be changed, without marking it.
    pub(super) fn peek_mut(&mut self, uid: &str) -> Option<&mut T> {
        Some(&mut self.marked(uid)?.entry)
    }

    fn marked(&mut self, uid: &str) -> Option<&mut Marked<T>> {
        match self.protected.entries.peek_mut(uid) {
            Some(marked) => Some(marked),
            None => self.probation.entries.peek_mut(uid),
        }
    }

    /// Adds an entry for a new uid, as the newest on probation.
    pub(super) fn insert(&mut self, uid: CompactString, entry: T, weight_bytes: usize) {
        let marked = Marked {
            entry,
            weight_bytes,
            is_used: false,
        };
        self.probation.put(uid, marked);
    }

    /// Adds an entry for a new uid, as the next one to be evicted.
    pub(super) fn insert_oldest(&mut self, uid: CompactString, entry: T, weight_bytes: usize) {
        let key = uid.clone();
        self.insert(uid, entry, weight_bytes);
        self.probation.entries.demote(&key);
    }

    /// Removes an entry, and returns its weight.
    pub(super) fn remove(&mut self, uid: &str) -> Option<usize> {
        let marked = self.protected.pop(uid);
        let marked = marked.or_else(|| self.probation.pop(uid))?;
        Some(marked.weight_bytes)
    }

    /// Removes the oldest unmarked entry on probation. If all of them are marked, it removes the entry that has been protected
    /// for longest. Returns the weight of what was removed.
    pub(super) fn remove_oldest(&mut self) -> Option<usize> {
        for _ in 0..self.probation.entries.len().min(MAX_MOVES) {
            let (uid, oldest) = self.probation.pop_oldest()?;
            if !oldest.is_used {
                return Some(oldest.weight_bytes);
            }
            self.protect(uid, oldest);
        }
        let oldest = self.protected.pop_oldest();
        let (_, oldest) = oldest.or_else(|| self.probation.pop_oldest())?;
        Some(oldest.weight_bytes)
    }

    /// Protects an entry. If too much is protected then, the oldest protected entries go back on probation and keep their
    /// marks.
    fn protect(&mut self, uid: CompactString, mut marked: Marked<T>) {
        marked.is_used = false;
        self.protected.put(uid, marked);
        for _ in 0..MAX_DEMOTIONS {
            if self.protected.entries.len() <= self.max_protected
                && self.protected.weight_bytes <= self.max_protected_bytes
            {
                return;
            }
            if let Some((uid, oldest)) = self.protected.pop_oldest() {
                self.probation.put(uid, oldest);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.protected.clear();
        self.probation.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.protected.entries.len() + self.probation.entries.len()
    }

    /// The weight of all entries together.
    pub(super) fn weight_bytes(&self) -> usize {
        self.protected.weight_bytes + self.probation.weight_bytes
    }

    /// The entries, in reverse order of their eviction.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&CompactString, &T)> {
        let (protected, probation) = (&self.protected.entries, &self.probation.entries);
        let marked = protected.iter().chain(probation.iter());
        marked.map(|(uid, marked)| (uid, &marked.entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The weight of an entry is its number, so that it can be recognised when it is evicted.
    fn filled(capacity: usize) -> SegmentedLru<usize> {
        let mut entries = SegmentedLru::new(capacity, usize::MAX);
        for number in 0..capacity {
            entries.insert(number.to_string().into(), number, number);
        }
        entries
    }

    #[test]
    fn used_entry_survives_its_turn_and_is_evicted_at_the_next_one_if_it_was_not_used_again() {
        let mut entries = filled(5);
        assert_eq!(entries.get("0"), Some(&0));
        assert_eq!(entries.remove_oldest(), Some(1));
        assert_eq!(entries.weight_bytes(), 9);
        let rest: Vec<_> = (0..4).filter_map(|_| entries.remove_oldest()).collect();
        assert_eq!(rest, [2, 3, 4, 0], "what is protected is last");
        assert_eq!(entries.remove_oldest(), None);
    }

    #[test]
    fn if_all_entries_are_used_one_is_evicted() {
        for capacity in [1, 2, 5, 100] {
            let mut entries = filled(capacity);
            for newest in capacity..capacity * 3 {
                for number in 0..newest {
                    entries.get(&number.to_string());
                }
                assert!(entries.remove_oldest().is_some());
                entries.insert(newest.to_string().into(), newest, newest);
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
        assert_eq!(entries.protected.entries.len(), MAX_MOVES - 1);
    }
    #[test]
    fn no_more_than_four_fifths_of_the_bytes_are_protected() {
        let mut entries = SegmentedLru::new(1000, 100);
        for number in 0..10 {
            entries.insert(number.to_string().into(), number, 10);
            entries.get(&number.to_string());
        }
        entries.insert("10".into(), 10, 10);
        entries.remove_oldest();
        assert_eq!(entries.protected.weight_bytes, 80);
        assert_eq!(entries.weight_bytes(), 100);
        entries.clear();
        assert_eq!((entries.len(), entries.weight_bytes()), (0, 0));
    }
}
