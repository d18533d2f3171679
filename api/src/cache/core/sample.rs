//! What the auditor needs: a few entries by chance, and a way to drop one that it proved wrong.

use compact_str::CompactString;

use super::{Core, Versioned, lock};
use crate::cache::counters::Eviction;

impl<V: Clone + Versioned, W: Clone, S> Core<V, W, S> {
    /// At most `count` entries that lie side by side at a random place of a random shard, and, where that has too few, in
    /// the shards after it.
    ///
    /// `random` picks both. Uids are spread over the shards by their hash, so that in a large cache every entry is about
    /// as likely as any other; of a small one most are taken every time. The way to the place is walked under the
    /// shard's lock, from the nearer end.
    pub fn sample(&self, count: usize, random: u64) -> Vec<(CompactString, V)> {
        let shard_count = self.shards.len();
        let first = (random % shard_count as u64) as usize;
        let place = random / shard_count as u64;
        let mut sample = Vec::with_capacity(count);
        for offset in 0..shard_count {
            let shard = lock(&self.shards[(first + offset) % shard_count]);
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
                    .map(|(uid, entry)| (uid.clone(), entry.value.clone())),
            );
            if sample.len() == count {
                break;
            }
        }
        sample
    }

    /// Drops an entry if it still has this version, which is wrong; `true` where it had.
    pub fn evict_wrong(&self, uid: &str, version: i64) -> bool {
        let mut shard = self.shard(uid);
        let entry = shard.entries.peek(uid);
        if entry.is_none_or(|entry| entry.value.version() != version) {
            return false;
        }
        self.remove_entry(&mut shard, uid);
        self.counters.evicted(Eviction::Audit, 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::num::NonZeroUsize;

    use crate::cache::core::{Core, Demand, Loaded, Lookup, Placement};

    #[test]
    fn sample_reaches_every_entry_and_only_a_wrong_one_is_evicted() {
        let core = Core::<i64, (), ()>::new(NonZeroUsize::new(1000).unwrap());
        assert!(core.sample(3, 7).is_empty());
        core.open_fills();
        core.set_serving(true);
        for number in 0..500 {
            let Lookup::Load(ticket, ()) =
                core.look_up(&number.to_string(), Demand::Proven, true, || ((), ()))
            else {
                panic!("not cached yet");
            };
            core.complete(ticket, Loaded::Found(number, 1), Placement::Hot);
        }
        let mut random = fastrand::Rng::with_seed(1);
        let seen: HashSet<i64> = (0..20_000)
            .flat_map(|_| core.sample(3, random.u64(..)))
            .map(|(uid, value)| {
                assert_eq!(*uid, *value.to_string());
                value
            })
            .collect();
        assert_eq!(seen.len(), 500);
        assert!(!core.evict_wrong("7", 8));
        assert!(core.evict_wrong("7", 7));
        assert!(!core.evict_wrong("7", 7), "gone already");
        assert_eq!(core.sizes(), (499, 0, 499));
        core.close();
        assert!(core.sample(3, 0).is_empty());
    }
}
