//! What the auditor needs: a random sample of entries and of known absences, and a way to drop what is wrong.

use compact_str::CompactString;

use super::{Core, Shard, Versioned};
use crate::cache::sync::{Mutex, sound};

/// What is cached for a key, for the auditor to look at.
#[derive(Clone, Debug)]
pub struct Sampled<V> {
    /// The key.
    pub uid: CompactString,
    /// The value, or `None` if it is known that there is no such order.
    pub value: Option<V>,
    /// The epoch of an entry, or the number of a known absence.
    mark: u64,
}

/// Whether what is cached for a key differs from what the database holds; `None` stands for no order.
///
/// A writer that skips the triggers draws no version, so equal versions prove nothing.
pub fn differs<V: Versioned + PartialEq>(cached: Option<&V>, stored: Option<&V>) -> bool {
    match (cached, stored) {
        (Some(cached), Some(stored)) => sound!(
            cached != stored,
            AuditOfVersionsOnly,
            cached.version() != stored.version()
        ),
        (cached, stored) => cached.is_some() || stored.is_some(),
    }
}

impl<V: Clone + Versioned, W: Clone, S> Core<V, W, S> {
    /// Returns at most `count` verified entries. They are neighbours at a random place of a random shard. If this shard has too
    /// few entries, the shards after it add theirs.
    ///
    /// `random` picks the shard and the place. Uids are spread over the shards by their hash, so in a large cache all entries
    /// are about equally likely. Of a small cache, most entries are taken every time. The list is walked to the place under
    /// the shard's lock, from the nearer end.
    pub fn sample(&self, count: usize, random: u64) -> Vec<Sampled<V>> {
        let (shards, place) = self.shards_from(random);
        let mut sample = Vec::with_capacity(count);
        for (offset, shard) in shards.enumerate() {
            let shard = shard.lock();
            let epoch = self.gate.read().epoch;
            let length = shard.entries.len();
            let start = match place.checked_rem(length as u64) {
                Some(start) if offset == 0 => start as usize,
                _ => 0,
            };
            let mut forwards = shard.entries.iter().skip(start);
            let mut backwards = shard
                .entries
                .iter()
                .rev()
                .skip(length.saturating_sub(start + 1));
            let entries: &mut dyn Iterator<Item = _> = if start <= length / 2 {
                &mut forwards
            } else {
                &mut backwards
            };
            let missing = count - sample.len();
            sample.extend(
                entries
                    .take(missing)
                    .filter(|(_, entry)| entry.epoch == epoch)
                    .map(|(uid, entry)| Sampled {
                        uid: uid.clone(),
                        value: Some(entry.value.clone()),
                        mark: epoch,
                    }),
            );
            if sample.len() == count {
                break;
            }
        }
        sample
    }

    /// Returns at most `count` known absences. They are neighbours at a random place.
    pub fn sample_absences(&self, count: usize, random: u64) -> Vec<Sampled<V>> {
        let (shards, place) = self.shards_from(random);
        let mut sample = Vec::with_capacity(count);
        for shard in shards {
            let shard = shard.lock();
            let length = shard.missing.len() as u64;
            let start = place.checked_rem(length).unwrap_or_default() as usize;
            let absences = shard.missing.iter().cycle().skip(start);
            let room = sound!(count - sample.len(), AuditWithoutAbsences, 0);
            let wanted = room.min(shard.missing.len());
            sample.extend(absences.take(wanted).map(|(uid, number)| Sampled {
                uid: uid.clone(),
                value: None,
                mark: *number,
            }));
        }
        sample
    }

    /// Returns all shards, beginning with a random one, and a random place in it.
    fn shards_from(&self, random: u64) -> (impl Iterator<Item = &Mutex<Shard<V, W, S>>>, u64) {
        let shard_count = self.shards.len();
        let first = (random % shard_count as u64) as usize;
        let (before, from_first) = self.shards.split_at(first);
        let shards = from_first.iter().chain(before);
        (shards, random / shard_count as u64)
    }

    /// Drops what was found to be wrong, if it has been served ever since it was sampled. Returns whether something was dropped.
    ///
    /// What was stored or verified later is another answer, although it may look the same. An event for it may be on its way.
    pub fn evict_wrong(&self, sampled: &Sampled<V>) -> bool {
        let Sampled { uid, value, mark } = sampled;
        let mut shard = self.shard(uid);
        let epoch = self.gate.read().epoch;
        let was_wrong = match value {
            Some(value) => {
                let entry = shard.entries.peek(uid);
                let is_cached = entry.is_some_and(|entry| entry.value.version() == value.version());
                is_cached
                    && sound!(epoch == *mark, AuditOfAnUnverifiedEntry, true)
                    && self.remove_entry(&mut shard, uid)
            }
            None => {
                let number = shard.missing.peek(uid);
                number.is_some_and(|number| sound!(number == mark, AuditOfALaterAbsence, true))
                    && shard.missing.pop(uid).is_some()
            }
        };
        if was_wrong {
            self.counters.evictions.audit.add(1);
        }
        was_wrong
    }
}
