//! A small world around the core: two orders, readers, a writer, a listener, warm-up, an auditor and operators.
//!
//! Threads do what the tasks of the api do. Time passes at random, and only while something is done. What a restore or a
//! failover does to the servers is in `servers`. What the answers must not be is in `ledger`.

mod auditor;
mod ledger;
mod listener;
mod servers;

use std::num::NonZeroUsize;
use std::sync::Arc;

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::{Condvar, Mutex, MutexGuard};
use shuttle::thread;

use crate::cache::core::{Capacity, Core, Demand, Loaded, Lookup, Placement, Ticket};
use ledger::{KEYS, LEASE, Ledger, Seen, Time};
use listener::Listener;
use servers::Servers;

/// What happens to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scene {
    /// Nothing but commits and lost connections.
    Calm,
    /// One server. An old state may be restored, and an order may be changed without an event.
    OneServer,
    /// A second server may take over without the last commits of the first one, which may live on.
    TwoServers,
}

/// How often what happens, in tenths. Each run draws its own, because a mistake may show only where one thing happens often
/// and another one hardly ever.
#[derive(Clone, Copy, Debug)]
struct Climate {
    /// Something is about the second order. Mistakes show when threads meet at one key.
    second_key: u32,
    /// A reader demands the database.
    demand: u32,
    /// The listener loses its connection.
    loss: u32,
    /// Time passes.
    time: u32,
    /// An order is changed without an event, and not the whole database.
    tamper: u32,
}

impl Climate {
    fn draw() -> Self {
        let mut random = thread_rng();
        let mut pick = |rates: [u32; 3]| rates[random.gen_range(0..rates.len())];
        Self {
            second_key: pick([0, 2, 5]),
            demand: pick([0, 3, 6]),
            loss: pick([0, 1, 3]),
            time: pick([0, 1, 3]),
            tamper: pick([0, 0, 10]),
        }
    }
}

fn happens(tenths: u32) -> bool {
    thread_rng().gen_ratio(tenths, 10)
}

fn key_of(uid: &str) -> usize {
    usize::from(uid == KEYS[1])
}

/// What readers wait on: the end of a load, with what it found, or with an error if it failed.
#[derive(Debug, Default)]
struct Waiter {
    ended: Mutex<Option<Result<Seen, ()>>>,
    wake: Condvar,
}

impl Waiter {
    fn wait(&self) -> Result<Seen, ()> {
        let mut ended = self.ended.lock().unwrap();
        while ended.is_none() {
            ended = self.wake.wait(ended).unwrap();
        }
        ended.unwrap()
    }

    fn end(&self, result: Result<Seen, ()>) {
        *self.ended.lock().unwrap() = Some(result);
        self.wake.notify_all();
    }
}

fn waiter() -> (Arc<Waiter>, Arc<Waiter>) {
    let waiter = Arc::new(Waiter::default());
    (Arc::clone(&waiter), waiter)
}

/// What a thread does.
type Act = Box<dyn FnOnce(&Arc<World>) + Send>;

/// A load that has its slot, and its readers.
type Load = (Ticket, Arc<Waiter>);

/// The listener's state, as readers see it.
#[derive(Debug, Default)]
struct Status {
    serves: bool,
    proof: Option<Time>,
}

impl Status {
    fn is_young(&self, now: Time) -> bool {
        self.proof.is_some_and(|proof| proof + LEASE > now)
    }

    fn is_fresh(&self, now: Time) -> bool {
        self.serves && self.is_young(now)
    }
}

/// What the core does not know.
struct Outside {
    ledger: Ledger,
    servers: Servers,
    status: Status,
    /// Loads that wait for a statement.
    queue: Vec<Load>,
    /// Whether time stands still, so that no proof grows old.
    is_over: bool,
}

struct World {
    climate: Climate,
    core: Core<Seen, Arc<Waiter>, Arc<Waiter>>,
    outside: Mutex<Outside>,
}

impl World {
    fn pick_key(&self) -> usize {
        usize::from(happens(self.climate.second_key))
    }

    /// What happens under this lock happens in one step.
    fn outside(&self) -> MutexGuard<'_, Outside> {
        let mut outside = self.outside.lock().unwrap();
        outside.ledger.now += u64::from(!outside.is_over && happens(self.climate.time));
        outside
    }

    /// Reads orders in one statement, on a connection of the pool. Gives `None` if there is no answer.
    fn select(&self, keys: &[usize]) -> Option<Vec<Seen>> {
        let connection = self.outside().servers.take();
        let mut outside = self.outside();
        let Outside {
            ledger, servers, ..
        } = &mut *outside;
        let read = |key: &usize| servers.read(ledger, connection, *key);
        let found = keys.iter().map(read).collect();
        servers.give_back(connection);
        found
    }

    /// A PUT or DELETE, which invalidates the order before it answers.
    fn write_through_the_api(&self, key: usize) {
        let connection = self.outside().servers.take();
        let written = {
            let mut outside = self.outside();
            let Outside {
                ledger, servers, ..
            } = &mut *outside;
            let written = servers.commit(ledger, connection, key);
            servers.give_back(connection);
            written
        };
        if let Some(seen) = written {
            self.core.invalidate(KEYS[key]);
            let mut outside = self.outside();
            outside.ledger.promise(seen.history, key, seen.place);
        }
    }

    fn write_past_the_api(&self, key: usize) {
        let mut outside = self.outside();
        let Outside {
            ledger, servers, ..
        } = &mut *outside;
        let connection = servers.connect();
        servers.commit(ledger, connection, key);
    }

    fn read(self: &Arc<Self>, key: usize, demand: Demand) {
        let (claim, is_fresh) = {
            let outside = self.outside();
            let mut claim = outside.ledger.claim();
            if demand == Demand::Database {
                outside.ledger.demand(&mut claim);
            }
            (claim, outside.status.is_fresh(outside.ledger.now))
        };
        let found = match self.core.look_up(KEYS[key], demand, is_fresh, waiter) {
            Lookup::Hit(seen) => return self.outside().ledger.judge_hit(key, seen, &claim),
            Lookup::Missing => return self.outside().ledger.judge_absence(key, &claim),
            Lookup::Join(waiter) | Lookup::Next(waiter) => waiter.wait().ok(),
            Lookup::Load(ticket, sender) => {
                let waiter = Arc::clone(&sender);
                self.push_load((ticket, sender));
                waiter.wait().ok()
            }
            Lookup::Bypass => self.select(&[key]).map(|found| {
                let version = found[0].content.map(|_| found[0].version);
                self.core.supersede(KEYS[key], version);
                found[0]
            }),
        };
        if let Some(seen) = found {
            self.outside().ledger.judge(key, seen, &claim);
        }
    }

    fn push_load(self: &Arc<Self>, load: Load) {
        self.outside().queue.push(load);
        let world = Arc::clone(self);
        thread::spawn(move || {
            loop {
                let loads = std::mem::take(&mut world.outside().queue);
                if loads.is_empty() {
                    return;
                }
                world.load_together(loads, Placement::Hot);
            }
        });
    }

    /// Ends loads with what one statement brings for all of them. Loads that must begin then go into the queue.
    fn load_together(self: &Arc<Self>, loads: Vec<Load>, placement: Placement) {
        let keys: Vec<usize> = loads
            .iter()
            .map(|(ticket, _)| key_of(ticket.uid()))
            .collect();
        let claim = self.outside().ledger.claim();
        let fails = thread_rng().gen_ratio(1, 10);
        let found = self.select(&keys).filter(|_| !fails);
        for (place, (ticket, sender)) in loads.into_iter().enumerate() {
            let seen = found.as_ref().map(|found| found[place]);
            let loaded = match seen {
                None => Loaded::Failed,
                Some(seen) if seen.content.is_none() => Loaded::NotFound,
                Some(seen) => Loaded::Found(seen, thread_rng().gen_range(1..=MAX_WEIGHT)),
            };
            let history = seen.map_or(0, |seen| seen.label);
            let completed = self.core.complete(ticket, loaded, history, placement);
            assert!(
                !completed.is_stored()
                    || self
                        .outside()
                        .ledger
                        .opened_since(&claim)
                        .contains(&history),
                "{seen:?} was stored, but the listener heard of another history"
            );
            sender.end(seen.ok_or(()));
            if let Some(next) = completed.next {
                self.push_load(next);
            }
        }
    }

    fn warm_up(self: &Arc<Self>) {
        let loads: Vec<Load> = KEYS
            .iter()
            .filter_map(|key| self.core.begin_warmup(key, waiter))
            .collect();
        if !loads.is_empty() {
            self.load_together(loads, Placement::Cold);
        }
    }

    /// Verifies the entries from before, in chunks.
    fn revalidate(&self, epoch: u64) {
        let chunk_size = thread_rng().gen_range(1..=KEYS.len());
        for uids in self.core.unverified() {
            for chunk in uids.chunks(chunk_size) {
                let keys: Vec<usize> = chunk.iter().map(|uid| key_of(uid)).collect();
                let Some(found) = self.select(&keys) else {
                    // The api tries again. Meanwhile these entries stay unverified.
                    continue;
                };
                for (uid, seen) in chunk.iter().zip(found) {
                    let version = seen.content.map(|_| seen.version);
                    self.core.verify(uid, epoch, seen.label, version);
                }
            }
        }
    }

    /// One step of the operators, or of whoever bypasses the triggers.
    fn disturb(&self, scene: Scene) {
        let mut outside = self.outside();
        let Outside {
            ledger, servers, ..
        } = &mut *outside;
        let step = thread_rng().gen_range(0..8);
        match (scene, step) {
            (Scene::Calm, _) => {}
            (Scene::OneServer, _) if happens(self.climate.tamper) => {
                servers.tamper(ledger, self.pick_key());
            }
            (Scene::OneServer, 0..=3) => servers.back_up(ledger),
            (Scene::OneServer, _) => servers.restore(ledger),
            (Scene::TwoServers, 0..=2) => servers.replicate(ledger),
            (Scene::TwoServers, 3..=5) => servers.promote(ledger),
            (Scene::TwoServers, _) => servers.fence(ledger),
        }
    }

    /// Lets the world come to rest, and compares the cache with the database.
    fn settle(self: &Arc<Self>, mut listener: Listener) {
        {
            let mut outside = self.outside();
            let Outside {
                ledger, servers, ..
            } = &mut *outside;
            servers.fence(ledger);
            outside.is_over = true;
        }
        listener.settle(self);
        // A round finds nothing if the listener connects anew meanwhile, because the pool has found another history.
        for _ in 0..3 {
            let first_look = self.first_look();
            listener.settle(self);
            self.second_look(first_look);
        }
        let capacity = self.core.capacity();
        let (size, _, weight_bytes) = self.core.sizes();
        assert!(size <= capacity.entries.get(), "{size} entries");
        let is_bounded = capacity
            .weight_bytes
            .is_none_or(|max| weight_bytes <= max.get());
        assert!(is_bounded, "{weight_bytes} bytes in {capacity:?}");
        for (key, uid) in KEYS.iter().enumerate() {
            let (outside, connection) = (self.outside(), listener.connection());
            let stored = outside.servers.read(&outside.ledger, connection, key);
            drop(outside);
            let stored = stored.unwrap().content;
            match self.core.look_up(uid, Demand::Proven, true, waiter) {
                Lookup::Hit(seen) => assert_eq!(seen.content, stored, "{uid}: wrong for ever"),
                Lookup::Missing => assert_eq!(None, stored, "{uid}: missing for ever"),
                _ => {}
            }
        }
    }
}

/// The largest weight of an entry. Both orders together may exceed the bound of the cache, and so may one alone.
const MAX_WEIGHT: usize = 3;

/// Draws a capacity for one or two entries. In few runs their weight is bounded: what is not stored shows no mistake.
fn draw_capacity() -> Capacity {
    let mut random = thread_rng();
    let is_bounded = random.gen_ratio(1, 8);
    let max_bytes = if is_bounded {
        random.gen_range(1..2 * MAX_WEIGHT)
    } else {
        0
    };
    Capacity {
        entries: NonZeroUsize::new(random.gen_range(1..=2)).unwrap(),
        weight_bytes: NonZeroUsize::new(max_bytes),
    }
}

const READERS: usize = 3;
const READS: usize = 4;
const COMMITS: usize = 5;
const DISTURBANCES: usize = 4;
const AUDITS: usize = 2;

/// Runs the world once, under the schedule that shuttle chooses.
///
/// # Panics
/// Panics if a promise is broken.
pub fn run(scene: Scene) {
    let mut ledger = Ledger::default();
    let mut servers = Servers::new(&mut ledger);
    if scene == Scene::TwoServers && thread_rng().gen_ratio(1, 2) {
        servers.promote(&mut ledger);
    }
    let world = Arc::new(World {
        climate: Climate::draw(),
        core: Core::new(draw_capacity()),
        outside: Mutex::new(Outside {
            ledger,
            servers,
            status: Status::default(),
            queue: Vec::new(),
            is_over: false,
        }),
    });
    let mut listener = Listener::default();
    listener.step(&world);
    let mut threads = Vec::new();
    let mut start = |act: Act| {
        let world = Arc::clone(&world);
        threads.push(thread::spawn(move || act(&world)));
    };
    for _ in 0..thread_rng().gen_range(1..=READERS) {
        start(Box::new(|world| {
            for _ in 0..READS {
                let demand = if happens(world.climate.demand) {
                    Demand::Database
                } else {
                    Demand::Proven
                };
                world.read(world.pick_key(), demand);
            }
        }));
    }
    start(Box::new(|world| {
        for _ in 0..COMMITS {
            let key = world.pick_key();
            match thread_rng().gen_ratio(1, 4) {
                true => world.write_through_the_api(key),
                false => world.write_past_the_api(key),
            }
        }
    }));
    if thread_rng().gen_ratio(1, 2) {
        start(Box::new(World::warm_up));
    }
    // Not in every run, so that mistakes show which have nothing to do with them.
    if scene != Scene::Calm && thread_rng().gen_ratio(3, 4) {
        start(Box::new(move |world| {
            for _ in 0..DISTURBANCES {
                world.disturb(scene);
            }
        }));
    }
    if thread_rng().gen_ratio(1, 2) {
        start(Box::new(|world| {
            for _ in 0..AUDITS {
                world.audit();
            }
        }));
    }
    let listening = Arc::clone(&world);
    let listening = thread::spawn(move || {
        listener.run(&listening);
        listener
    });
    for thread in threads {
        thread.join().unwrap();
    }
    world.settle(listening.join().unwrap());
}
