//! Random interleavings of readers, writers, events and losses of the listener, the same for the same seed.

use super::*;

/// The waiter of a load is the number of the step at which it began.
type TestCore = Core<u64, u64>;

fn open_core(capacity: usize) -> TestCore {
    let core = TestCore::new(NonZeroUsize::new(capacity).unwrap());
    core.open_fills();
    core.set_serving(true);
    core
}

fn begin(core: &TestCore, uid: &str) -> Ticket {
    match core.look_up(uid, true, || (0, ())) {
        Lookup::Load(ticket, ()) => ticket,
        other => panic!("{uid}: {other:?}"),
    }
}

fn fill(core: &TestCore, uid: &str, value: u64) {
    assert!(core.complete(begin(core, uid), Loaded::Found(value, 10), Placement::Hot));
}

fn hit(core: &TestCore, uid: &str) -> Option<u64> {
    match core.look_up(uid, true, || (0, ())) {
        Lookup::Hit(value) => Some(value),
        _ => None,
    }
}

#[test]
fn load_that_lost_its_slot_stores_nothing_and_gains_no_reader() {
    let core = open_core(10);
    let old = begin(&core, "a");
    assert!(matches!(
        core.look_up("a", true, || (0, ())),
        Lookup::Join(0)
    ));
    core.invalidate("a");
    let new = begin(&core, "a");
    assert!(!core.complete(old, Loaded::Found(1, 10), Placement::Hot));
    assert!(core.complete(new, Loaded::Found(2, 10), Placement::Hot));
    assert_eq!(hit(&core, "a"), Some(2));
    assert_eq!(core.counters().discarded.get(), 1);
}

#[test]
fn load_across_a_loss_of_the_listener_stores_nothing() {
    let core = open_core(10);
    let ticket = begin(&core, "a");
    core.close();
    core.open_fills();
    core.set_serving(true);
    assert!(!core.complete(ticket, Loaded::Found(1, 10), Placement::Hot));
    assert_eq!(core.sizes(), (0, 0, 0));
}

#[test]
fn nothing_is_served_while_closed_or_unproven() {
    let core = open_core(10);
    fill(&core, "a", 1);
    assert!(matches!(
        core.look_up("a", false, || (0, ())),
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
fn absences_are_cached_apart_and_forgotten_by_an_event() {
    let core = open_core(2);
    fill(&core, "a", 1);
    for number in 0..1000 {
        let uid = format!("scan-{number}");
        core.complete(begin(&core, &uid), Loaded::NotFound, Placement::Hot);
    }
    assert_eq!(hit(&core, "a"), Some(1), "a scan evicts no order");
    assert_eq!(core.sizes().1, 64);
    assert!(matches!(
        core.look_up("scan-999", true, || (0, ())),
        Lookup::Missing
    ));
    core.invalidate("scan-999");
    begin(&core, "scan-999");
}

#[test]
fn least_recently_used_entry_goes_first_and_cold_ones_only_fill_room() {
    let core = open_core(3);
    fill(&core, "a", 1);
    fill(&core, "b", 2);
    let (cold, ()) = core.begin_warmup("c", || (0, ())).unwrap();
    assert!(core.complete(cold, Loaded::Found(3, 10), Placement::Cold));
    let (refused, ()) = core.begin_warmup("d", || (0, ())).unwrap();
    assert!(!core.complete(refused, Loaded::Found(4, 10), Placement::Cold));
    fill(&core, "e", 5);
    assert_eq!(
        ["a", "b", "c", "d", "e"].map(|uid| core.contains(uid)),
        [true, true, false, false, true]
    );
    assert_eq!(core.counters().evictions(Eviction::Capacity), 1);
}

#[test]
fn size_and_weight_stay_true_over_many_shards() {
    let core = open_core(2000);
    for number in 0..5000_u64 {
        fill(&core, &number.to_string(), number);
    }
    assert_eq!(core.sizes(), (2000, 0, 20_000));
    assert_eq!(core.counters().evictions(Eviction::Capacity), 3000);
    core.clear();
    assert_eq!(core.sizes(), (0, 0, 0));
}

/// A database of two orders with versions, a stream of events in commit order, readers at any stage.
struct World {
    core: TestCore,
    random: fastrand::Rng,
    step: u64,
    connected: bool,
    versions: [u64; 2],
    /// Events on their way: key and version.
    queue: Vec<(usize, u64)>,
    /// Newest version per key whose event the listener has seen.
    proven: [u64; 2],
    /// Step of the last event or loss per key.
    taken_at: [u64; 2],
    loads: Vec<Load>,
}

struct Load {
    key: usize,
    ticket: Ticket,
    /// The version its statement saw, once it ran.
    seen: Option<u64>,
    /// What each waiter may at least expect: proven when it came.
    waiters: Vec<u64>,
    began_at: u64,
}

const KEYS: [&str; 2] = ["a", "b"];

impl World {
    fn new(seed: u64) -> Self {
        Self {
            core: open_core(1 + seed as usize % 3),
            random: fastrand::Rng::with_seed(seed),
            step: 0,
            connected: true,
            versions: [1; 2],
            queue: Vec::new(),
            proven: [1; 2],
            taken_at: [0; 2],
            loads: Vec::new(),
        }
    }

    fn advance(&mut self) {
        self.step += 1;
        match self.random.u8(0..16) {
            0..=1 => self.write(),
            2..=4 => self.deliver(),
            5..=9 => self.read(),
            10..=11 => self.take_snapshot(),
            12..=14 => self.finish_load(),
            _ => self.lose_or_reconnect(),
        }
    }

    fn write(&mut self) {
        let key = self.random.usize(..2);
        self.versions[key] += 1;
        if self.connected {
            self.queue.push((key, self.versions[key]));
        }
    }

    fn deliver(&mut self) {
        if !self.queue.is_empty() {
            let (key, version) = self.queue.remove(0);
            self.core.invalidate(KEYS[key]);
            self.proven[key] = version;
            self.taken_at[key] = self.step;
        }
    }

    fn read(&mut self) {
        let key = self.random.usize(..2);
        let step = self.step;
        match self.core.look_up(KEYS[key], true, || (step, ())) {
            Lookup::Hit(version) => {
                assert!(self.connected, "hit while blind");
                assert!(
                    version >= self.proven[key],
                    "stale hit: {version} < {}",
                    self.proven[key]
                );
            }
            Lookup::Join(began_at) => {
                assert!(
                    began_at > self.taken_at[key],
                    "joined a load that an event had taken"
                );
                let load = self
                    .loads
                    .iter_mut()
                    .find(|load| load.key == key && load.began_at == began_at);
                let load = load.expect("joined a load that has ended: the waiter would hang");
                load.waiters.push(self.proven[key]);
            }
            Lookup::Load(ticket, ()) => self.loads.push(Load {
                key,
                ticket,
                seen: None,
                waiters: vec![self.proven[key]],
                began_at: step,
            }),
            Lookup::Bypass => assert!(!self.connected),
            Lookup::Missing => panic!("no order was ever deleted"),
        }
    }

    fn take_snapshot(&mut self) {
        let versions = self.versions;
        let waiting: Vec<&mut Load> = self
            .loads
            .iter_mut()
            .filter(|load| load.seen.is_none())
            .collect();
        let count = waiting.len();
        if count > 0 {
            let index = self.random.usize(..count);
            let load = waiting.into_iter().nth(index).unwrap();
            load.seen = Some(versions[load.key]);
        }
    }

    fn finish_load(&mut self) {
        let Some(index) = self.loads.iter().position(|load| load.seen.is_some()) else {
            return;
        };
        let load = self.loads.swap_remove(index);
        let version = load.seen.unwrap();
        for expected in load.waiters {
            assert!(
                version >= expected,
                "a waiter got {version}, {expected} was proven when it came"
            );
        }
        let fails = self.random.u8(..8) == 0;
        let loaded = if fails {
            Loaded::Failed
        } else {
            Loaded::Found(version, 10)
        };
        let stored = self.core.complete(load.ticket, loaded, Placement::Hot);
        if stored {
            assert!(
                load.began_at > self.taken_at[load.key],
                "a load that lost its slot stored"
            );
        }
    }

    fn lose_or_reconnect(&mut self) {
        if self.connected {
            self.core.close();
            self.queue.clear();
        } else {
            self.core.open_fills();
            self.core.set_serving(true);
            // What was committed before LISTEN is seen by every later statement.
            self.proven = self.versions;
        }
        self.taken_at = [self.step; 2];
        self.connected = !self.connected;
    }
}

#[test]
fn no_interleaving_serves_what_an_event_has_outdated() {
    for seed in 0..2000 {
        let mut world = World::new(seed);
        for _ in 0..300 {
            world.advance();
        }
        let counters = world.core.counters();
        let ended = counters.loads_succeeded.get() + counters.loads_failed.get();
        assert_eq!(
            counters.loads_started.get(),
            ended + world.loads.len() as u64
        );
    }
}
