//! Each test is about one rule of the core.

use std::collections::HashSet;
use std::num::NonZeroUsize;

use super::core::{Capacity, Core, Demand, Loaded, Lookup, Placement, Stored, Ticket, Versioned};

impl Versioned for i64 {
    fn version(&self) -> i64 {
        *self
    }
}

/// The history of the database that the listener hears.
const HISTORY: u64 = 7;

/// A value is its version. A waiter is a number that tells loads apart.
type TestCore = Core<i64, u64, ()>;

fn open_core(capacity: usize) -> TestCore {
    open_core_of(capacity, 0)
}

/// A core that holds at most so many entries, and so many bytes of them unless this is 0.
fn open_core_of(entries: usize, weight_bytes: usize) -> TestCore {
    let core = TestCore::new(Capacity {
        entries: NonZeroUsize::new(entries).unwrap(),
        weight_bytes: NonZeroUsize::new(weight_bytes),
    });
    core.open_fills(HISTORY);
    core.set_serving(true);
    core
}

fn begin(core: &TestCore, uid: &str) -> Ticket {
    match core.look_up(uid, Demand::Proven, true, || (0, ())) {
        Lookup::Load(ticket, ()) => ticket,
        other => panic!("{uid}: {other:?}"),
    }
}

fn fill(core: &TestCore, uid: &str, value: i64) {
    assert_eq!(fill_heavy(core, uid, value, 10), Stored::Yes);
}

fn fill_heavy(core: &TestCore, uid: &str, value: i64, weight_bytes: usize) -> Stored {
    let loaded = Loaded::Found(value, weight_bytes);
    let ended = core.complete(begin(core, uid), loaded, HISTORY, Placement::Hot);
    ended.stored
}

fn fill_cold(core: &TestCore, uid: &str, weight_bytes: usize) -> Stored {
    let (ticket, ()) = core.begin_warmup(uid, || (0, ())).unwrap();
    let loaded = Loaded::Found(1, weight_bytes);
    core.complete(ticket, loaded, HISTORY, Placement::Cold)
        .stored
}

fn hit(core: &TestCore, uid: &str) -> Option<i64> {
    match core.look_up(uid, Demand::Proven, true, || (0, ())) {
        Lookup::Hit(value) => Some(value),
        _ => None,
    }
}

fn look_up(core: &TestCore, waiter: u64) -> Lookup<i64, u64, ()> {
    core.look_up("a", Demand::Proven, true, || (waiter, ()))
}

#[test]
fn load_that_lost_its_slot_stores_nothing_and_gains_no_reader() {
    let core = open_core(10);
    let old = begin(&core, "a");
    assert!(matches!(look_up(&core, 1), Lookup::Join(0)));
    core.invalidate("a");
    assert!(matches!(look_up(&core, 2), Lookup::Next(2)));
    assert!(matches!(look_up(&core, 3), Lookup::Join(2)));
    core.invalidate("a");
    assert!(
        matches!(look_up(&core, 4), Lookup::Join(2)),
        "a load that has not begun will see what the event tells of"
    );
    let ended = core.complete(old, Loaded::Found(1, 10), HISTORY, Placement::Hot);
    assert!(!ended.is_stored());
    let (new, ()) = ended.next.unwrap();
    assert!(matches!(look_up(&core, 5), Lookup::Join(2)));
    let ended = core.complete(new, Loaded::Found(2, 10), HISTORY, Placement::Hot);
    assert!(ended.is_stored() && ended.next.is_none());
    assert_eq!(hit(&core, "a"), Some(2));
    let counters = core.counters();
    assert_eq!(counters.loads.discarded.get(), 1);
    assert_eq!(counters.loads.started.get(), 2);
    assert_eq!(counters.lookups.misses.get(), 6);
    assert_eq!(counters.loads.coalesced.get(), 4);
}

#[test]
fn load_across_a_loss_of_the_listener_stores_nothing() {
    let core = open_core(10);
    let ticket = begin(&core, "a");
    core.close();
    core.open_fills(HISTORY);
    core.set_serving(true);
    assert!(matches!(look_up(&core, 1), Lookup::Next(1)));
    let ended = core.complete(ticket, Loaded::Found(1, 10), HISTORY, Placement::Hot);
    assert!(!ended.is_stored());
    assert_eq!(core.sizes(), (0, 0, 0));
    let (next, ()) = ended.next.unwrap();
    let ended = core.complete(next, Loaded::Found(1, 10), HISTORY, Placement::Hot);
    assert!(ended.is_stored());
}

#[test]
fn entries_from_before_a_loss_are_served_after_their_version_was_compared() {
    let core = open_core(2000);
    for (uid, version) in [("same", 1), ("changed", 2), ("deleted", 3), ("event", 4)] {
        fill(&core, uid, version);
    }
    core.complete(
        begin(&core, "absent"),
        Loaded::NotFound,
        HISTORY,
        Placement::Hot,
    );
    core.close();
    core.open_fills(HISTORY);
    let mut unverified: Vec<_> = core.unverified().flatten().collect();
    unverified.sort();
    assert_eq!(
        *unverified,
        ["changed", "deleted", "event", "same"].map(Box::from)
    );
    core.set_serving(true);
    core.invalidate("event");
    let epoch = core.epoch();
    core.verify("same", epoch - 1, HISTORY, Some(1));
    assert!(
        !core.contains("same"),
        "an answer of another epoch verifies nothing"
    );
    for (uid, version) in [
        ("same", Some(1)),
        ("changed", Some(5)),
        ("deleted", None),
        ("event", Some(4)),
    ] {
        core.verify(uid, epoch, HISTORY, version);
    }
    assert_eq!(core.unverified().flatten().count(), 0);
    assert_eq!(hit(&core, "same"), Some(1));
    for uid in ["changed", "deleted", "event", "absent"] {
        assert_eq!(hit(&core, uid), None, "{uid}");
    }
    assert_eq!(core.sizes(), (1, 0, 10));
    assert_eq!(core.counters().evictions.resync.get(), 3);
    core.verify("same", epoch, HISTORY, Some(9));
    assert_eq!(
        hit(&core, "same"),
        Some(1),
        "verified already: events keep it"
    );
}

#[test]
fn unverified_entry_is_loaded_like_an_absent_one() {
    let core = open_core(10);
    fill(&core, "a", 1);
    core.close();
    core.open_fills(HISTORY);
    core.set_serving(true);
    fill(&core, "a", 2);
    assert_eq!(hit(&core, "a"), Some(2));
    assert_eq!(core.sizes(), (1, 0, 10));
}

#[test]
fn demand_for_the_database_joins_no_running_load_and_renews_the_entry() {
    let core = open_core(10);
    let demand = |waiter| core.look_up("a", Demand::Database, true, || (waiter, ()));
    fill(&core, "a", 1);
    let Lookup::Load(first, ()) = demand(1) else {
        panic!("nothing was loading")
    };
    assert_eq!(hit(&core, "a"), Some(1), "others are served meanwhile");
    assert!(matches!(demand(2), Lookup::Next(2)));
    assert!(matches!(demand(3), Lookup::Join(2)));
    let ended = core.complete(first, Loaded::Found(2, 20), HISTORY, Placement::Hot);
    assert!(ended.is_stored());
    assert_eq!(hit(&core, "a"), Some(2));
    assert_eq!(core.sizes(), (1, 0, 20));
    let (next, ()) = ended.next.unwrap();
    core.complete(next, Loaded::NotFound, HISTORY, Placement::Hot);
    assert!(matches!(look_up(&core, 4), Lookup::Missing));
    assert_eq!(core.sizes(), (0, 1, 0));
}

#[test]
fn nothing_older_is_served_than_what_was_shown_past_the_cache() {
    let core = open_core(10);
    fill(&core, "a", 5);
    core.supersede("a", Some(5));
    assert_eq!(hit(&core, "a"), Some(5), "what was shown");
    core.supersede("a", Some(6));
    assert!(!core.contains("a"));
    fill(&core, "a", 6);
    core.supersede("a", Some(4));
    assert_eq!(
        hit(&core, "a"),
        None,
        "an order that was deleted and inserted again may have a lower version"
    );

    core.complete(begin(&core, "b"), Loaded::NotFound, HISTORY, Placement::Hot);
    core.supersede("b", Some(7));
    let load = begin(&core, "b");
    core.supersede("b", Some(8));
    let ended = core.complete(load, Loaded::Found(7, 10), HISTORY, Placement::Hot);
    assert!(!ended.is_stored());
    fill(&core, "b", 8);
    core.supersede("b", None);
    assert_eq!(hit(&core, "b"), None);
}

#[test]
fn nothing_is_served_while_closed_or_unproven() {
    let core = open_core(10);
    fill(&core, "a", 1);
    assert!(matches!(
        core.look_up("a", Demand::Proven, false, || (0, ())),
        Lookup::Bypass
    ));
    core.set_serving(false);
    assert_eq!(hit(&core, "a"), None);
    core.set_serving(true);
    assert_eq!(hit(&core, "a"), Some(1));
    core.close();
    assert_eq!(hit(&core, "a"), None);
    core.set_serving(true);
    assert_eq!(hit(&core, "a"), None, "hits before fills are open");
}

#[test]
fn absences_have_room_of_their_own_and_an_event_drops_them() {
    let core = open_core(2);
    fill(&core, "a", 1);
    for number in 0..1000 {
        let uid = format!("scan-{number}");
        core.complete(
            begin(&core, &uid),
            Loaded::NotFound,
            HISTORY,
            Placement::Hot,
        );
    }
    assert_eq!(hit(&core, "a"), Some(1), "a scan evicts no order");
    assert_eq!(core.sizes().1, 64);
    assert!(matches!(
        core.look_up("scan-999", Demand::Proven, true, || (0, ())),
        Lookup::Missing
    ));
    core.invalidate("scan-999");
    begin(&core, "scan-999");
}

#[test]
fn least_recently_used_entry_is_evicted_first_and_cold_entries_only_fill_room() {
    let core = open_core(3);
    fill(&core, "a", 1);
    fill(&core, "b", 2);
    assert_eq!(fill_cold(&core, "c", 10), Stored::Yes);
    assert_eq!(fill_cold(&core, "d", 10), Stored::NoRoom);
    fill(&core, "e", 5);
    assert_eq!(
        ["a", "b", "c", "d", "e"].map(|uid| core.contains(uid)),
        [true, true, false, false, true]
    );
    assert_eq!(core.counters().evictions.capacity.get(), 1);
}

#[test]
fn scan_over_many_orders_pushes_out_no_order_that_is_asked_for_again() {
    let core = open_core(1000);
    let uid = |kind, number: i64| format!("{kind}-{number}");
    // A quarter of the capacity: whatever the hashes are, no shard gets more of them than it may protect.
    for number in 0..250 {
        fill(&core, &uid("hot", number), number);
        assert!(hit(&core, &uid("hot", number)).is_some());
    }
    for number in 0..10_000 {
        fill(&core, &uid("scan", number), number);
    }
    let kept = (0..250).filter(|number| core.contains(&uid("hot", *number)));
    assert_eq!(kept.count(), 250);
    assert_eq!(core.sizes().0, 1000);
    // Orders that were asked for again long ago give way to orders that are asked for again now.
    for number in 0..1000 {
        fill(&core, &uid("new", number), number);
        assert!(hit(&core, &uid("new", number)).is_some());
    }
    let kept = (0..250).filter(|number| core.contains(&uid("hot", *number)));
    assert!(kept.count() < 125);
    assert_eq!(core.sizes().0, 1000);
}

#[test]
fn size_and_weight_stay_true_over_many_shards() {
    let core = open_core(2000);
    for number in 0..5000_i64 {
        fill(&core, &number.to_string(), number);
    }
    assert_eq!(core.sizes(), (2000, 0, 20_000));
    assert_eq!(core.counters().evictions.capacity.get(), 3000);
    core.clear();
    assert_eq!(core.sizes(), (0, 0, 0));
}

#[test]
fn entries_that_are_too_heavy_together_are_evicted_although_they_are_few() {
    let core = open_core_of(10, 100);
    for (uid, weight_bytes) in [("a", 40), ("b", 40), ("c", 20), ("d", 50)] {
        assert_eq!(fill_heavy(&core, uid, 1, weight_bytes), Stored::Yes);
    }
    let kept = ["a", "b", "c", "d"].map(|uid| core.contains(uid));
    assert_eq!(kept, [false, false, true, true]);
    assert_eq!(core.sizes(), (2, 0, 70));
    assert_eq!(core.counters().evictions.capacity.get(), 2);
    // An entry that is loaded again counts with its new weight only.
    core.invalidate("d");
    assert_eq!(fill_heavy(&core, "d", 2, 80), Stored::Yes);
    assert_eq!(core.sizes(), (2, 0, 100));
    assert!(core.is_full());
}

#[test]
fn cold_entry_that_is_too_heavy_for_the_rest_of_the_room_is_refused() {
    let core = open_core_of(10, 100);
    assert_eq!(fill_cold(&core, "a", 60), Stored::Yes);
    assert_eq!(fill_cold(&core, "b", 41), Stored::NoRoom);
    assert_eq!(fill_cold(&core, "c", 40), Stored::Yes);
    assert_eq!(core.counters().evictions.capacity.get(), 0);
}

#[test]
fn entry_that_is_heavier_than_the_whole_cache_is_answered_but_not_stored() {
    let core = open_core_of(10, 100);
    fill(&core, "a", 1);
    fill(&core, "b", 1);
    core.invalidate("b");
    assert_eq!(fill_heavy(&core, "b", 2, 101), Stored::NoRoom);
    assert_eq!(hit(&core, "a"), Some(1), "nothing was pushed out in vain");
    assert!(!core.contains("b"));
    assert_eq!(core.sizes(), (1, 0, 10));
}

#[test]
fn new_entry_stays_although_all_others_are_used_and_one_eviction_is_not_enough() {
    let core = open_core_of(1000, 1000);
    for uid in ["a", "b", "c", "d"] {
        assert_eq!(fill_heavy(&core, uid, 1, 240), Stored::Yes);
        assert!(hit(&core, uid).is_some());
    }
    for (uid, weight_bytes) in [("e", 500), ("f", 10), ("g", 1000), ("h", 900)] {
        assert_eq!(fill_heavy(&core, uid, 1, weight_bytes), Stored::Yes);
        assert_eq!(hit(&core, uid), Some(1), "{uid}");
    }
}

/// An order may be larger than a shard's share. The bound is one of all shards.
#[test]
fn entries_as_heavy_as_several_shards_share_the_cache_with_light_ones() {
    const MIB: usize = 1024 * 1024;
    let core = open_core_of(10_000, 16 * MIB);
    for number in 0..5 {
        // Each takes more than a fifth of all, so the fifth one pushes out one that may be in another shard.
        let heavy = format!("heavy-{number}");
        assert_eq!(fill_heavy(&core, &heavy, 1, 16 * MIB / 5 + 1), Stored::Yes);
        assert!(core.contains(&heavy));
        let (size, _, weight_bytes) = core.sizes();
        assert!(weight_bytes <= 16 * MIB);
        assert_eq!(size, (number + 1).min(4));
    }
    for number in 0..1000 {
        let light = format!("light-{number}");
        assert_eq!(fill_heavy(&core, &light, 1, 2048), Stored::Yes);
        assert!(core.contains(&light));
    }
    let (size, _, weight_bytes) = core.sizes();
    assert!(weight_bytes <= 16 * MIB, "{weight_bytes}");
    assert!(size >= 1000, "light entries push out heavy ones: {size}");
}

#[test]
fn scan_over_heavy_orders_pushes_out_no_order_that_is_asked_for_again() {
    const MIB: usize = 1024 * 1024;
    let core = open_core_of(10_000, 64 * MIB);
    for number in 0..60 {
        fill_heavy(&core, &format!("hot-{number}"), number, MIB / 4);
        assert!(hit(&core, &format!("hot-{number}")).is_some());
    }
    for number in 0..1000 {
        fill_heavy(&core, &format!("scan-{number}"), number, MIB / 4);
    }
    let kept = (0..60).filter(|number| core.contains(&format!("hot-{number}")));
    assert!(kept.count() > 50);
    let (_, _, weight_bytes) = core.sizes();
    assert!(
        (60 * MIB..=64 * MIB).contains(&weight_bytes),
        "{weight_bytes}"
    );
}

#[test]
fn sample_reaches_every_entry_and_only_a_wrong_one_is_evicted() {
    let core = open_core(1000);
    assert!(core.sample(3, 7).is_empty());
    for number in 0..500 {
        fill(&core, &number.to_string(), number);
    }
    let mut random = fastrand::Rng::with_seed(1);
    let seen: HashSet<i64> = (0..20_000)
        .flat_map(|_| core.sample(3, random.u64(..)))
        .map(|sampled| {
            let value = sampled.value.unwrap();
            assert_eq!(*sampled.uid, *value.to_string());
            value
        })
        .collect();
    assert_eq!(seen.len(), 500);
    let [wrong] = &core.sample(1, 7)[..] else {
        panic!("one was asked for")
    };
    assert!(core.evict_wrong(wrong));
    assert!(!core.evict_wrong(wrong), "it is already gone");
    assert_eq!(core.sizes(), (499, 0, 4990));
    core.close();
    assert!(core.sample(3, 0).is_empty());
}

#[test]
fn nothing_is_stored_or_verified_that_comes_from_another_history() {
    let core = open_core(10);
    let other = HISTORY + 1;
    let ended = core.complete(
        begin(&core, "a"),
        Loaded::Found(1, 10),
        other,
        Placement::Hot,
    );
    assert!(!ended.is_stored());
    let ended = core.complete(begin(&core, "a"), Loaded::NotFound, other, Placement::Hot);
    assert!(!ended.is_stored());
    assert_eq!(core.counters().loads.discarded.get(), 2);

    fill(&core, "a", 1);
    core.close();
    core.open_fills(other);
    core.set_serving(true);
    core.verify("a", core.epoch(), HISTORY, Some(1));
    assert!(!core.contains("a"));
    core.verify("a", core.epoch(), other, Some(1));
    assert_eq!(hit(&core, "a"), Some(1));
}

#[test]
fn auditor_drops_what_is_wrong_and_still_served() {
    let core = open_core(10);
    fill(&core, "a", 1);
    core.complete(begin(&core, "b"), Loaded::NotFound, HISTORY, Placement::Hot);
    let absences = core.sample_absences(10, 12_345);
    assert_eq!(absences[0].uid, "b");
    assert!(core.evict_wrong(&absences[0]) && !core.evict_wrong(&absences[0]));
    assert!(core.sample_absences(10, 12_345).is_empty());
    let entries = core.sample(10, 12_345);
    core.invalidate("a");
    fill(&core, "a", 2);
    assert!(!core.evict_wrong(&entries[0]), "another version");
    let entries = core.sample(10, 12_345);
    assert!(core.evict_wrong(&entries[0]));
    assert_eq!(core.counters().evictions.audit.get(), 2);
}

#[test]
fn auditor_leaves_alone_what_was_stored_or_verified_after_it_looked() {
    let core = open_core(10);
    fill(&core, "a", 1);
    let entry = core.sample(1, 0).remove(0);
    let reconnect = |history| {
        core.close();
        core.open_fills(history);
        core.set_serving(true);
    };
    reconnect(HISTORY);
    assert!(!core.evict_wrong(&entry), "not verified, so not served");
    core.verify("a", core.epoch(), HISTORY, Some(1));
    assert!(!core.evict_wrong(&entry));

    // A failover undoes the change that the auditor has seen. The version comes back, in another history.
    core.clear();
    reconnect(HISTORY + 1);
    let ticket = begin(&core, "a");
    core.complete(ticket, Loaded::Found(1, 10), HISTORY + 1, Placement::Hot);
    assert!(!core.evict_wrong(&entry));

    // The order was inserted, which the auditor has seen, and deleted again.
    let load_absence = || {
        core.complete(
            begin(&core, "b"),
            Loaded::NotFound,
            HISTORY + 1,
            Placement::Hot,
        )
    };
    load_absence();
    let absence = core.sample_absences(1, 0).remove(0);
    core.invalidate("b");
    load_absence();
    assert!(!core.evict_wrong(&absence));
    assert_eq!(core.counters().evictions.audit.get(), 0);
}
