//! One small world: two orders, a writer, a listener, readers, warm-up, and the loads that they begin.
//!
//! Each commit brings its order into a new state. States are numbered from 1; in every second state the order is absent. A
//! cached value is the number of its state.

use std::num::NonZeroUsize;
use std::sync::Arc;

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::{Condvar, Mutex};
use shuttle::thread;

use crate::cache::core::{Core, Demand, Loaded, Lookup, Placement, Ticket, Versioned};

const KEYS: [&str; 2] = ["a", "b"];
const READERS: usize = 3;
const READS: usize = 3;
const COMMITS: usize = 4;
const LISTENER_STEPS: usize = 7;
const HISTORY: u64 = 1;

type State = i64;

impl Versioned for State {
    fn version(&self) -> i64 {
        *self
    }
}

/// Mostly the first one, because mistakes show when threads meet at one key.
fn pick_key() -> usize {
    usize::from(thread_rng().gen_ratio(1, 5))
}

fn is_absent(state: State) -> bool {
    state % 2 == 0
}

/// What a read found.
type Found = Option<State>;

/// What readers wait on: the end of a load, with what it found, or with an error if it failed.
#[derive(Debug, Default)]
struct Waiter {
    ended: Mutex<Option<Result<Found, ()>>>,
    wake: Condvar,
}

impl Waiter {
    fn wait(&self) -> Result<Found, ()> {
        let mut ended = self.ended.lock().unwrap();
        while ended.is_none() {
            ended = self.wake.wait(ended).unwrap();
        }
        ended.unwrap()
    }

    fn end(&self, result: Result<Found, ()>) {
        *self.ended.lock().unwrap() = Some(result);
        self.wake.notify_all();
    }
}

fn waiter() -> (Arc<Waiter>, Arc<Waiter>) {
    let waiter = Arc::new(Waiter::default());
    (Arc::clone(&waiter), waiter)
}

#[derive(Debug)]
enum Message {
    /// An order has reached a state.
    Event(usize, State),
    /// A heartbeat, with the states that were committed when it was sent.
    Heartbeat([State; 2]),
}

/// PostgreSQL: what is committed, and what is on its way to the listener.
#[derive(Debug)]
struct Database {
    committed: [State; 2],
    /// What the listener has not received yet; `None` while nobody listens.
    queue: Option<Vec<Message>>,
}

/// What has been promised so far.
#[derive(Debug)]
struct Promised {
    /// The newest state whose commit the listener has proven to have seen.
    proven: [State; 2],
    /// The newest state that was shown to a reader or a writer.
    shown: [State; 2],
}

struct World {
    core: Core<State, Arc<Waiter>, Arc<Waiter>>,
    database: Mutex<Database>,
    promised: Mutex<Promised>,
}

impl World {
    fn committed(&self, key: usize) -> State {
        self.database.lock().unwrap().committed[key]
    }

    fn select(&self, key: usize) -> Found {
        Some(self.committed(key)).filter(|state| !is_absent(*state))
    }

    fn commit(&self, key: usize) {
        let mut database = self.database.lock().unwrap();
        database.committed[key] += 1;
        let state = database.committed[key];
        if let Some(queue) = &mut database.queue {
            queue.push(Message::Event(key, state));
        }
    }

    /// A PUT or DELETE, which invalidates the order before it answers.
    fn write_through_the_api(&self, key: usize) {
        self.commit(key);
        let written = self.committed(key);
        self.core.invalidate(KEYS[key]);
        let mut promised = self.promised.lock().unwrap();
        promised.shown[key] = promised.shown[key].max(written);
    }

    fn read(self: &Arc<Self>, key: usize, demand: Demand, is_fresh: bool) {
        let floor = {
            let promised = self.promised.lock().unwrap();
            promised.proven[key].max(promised.shown[key])
        };
        let floor = match demand {
            Demand::Proven => floor,
            Demand::Database => floor.max(self.committed(key)),
        };
        let found = match self.core.look_up(KEYS[key], demand, is_fresh, waiter) {
            Lookup::Hit(state) => Ok(Some(state)),
            Lookup::Missing => Ok(None),
            Lookup::Join(waiter) | Lookup::Next(waiter) => waiter.wait(),
            Lookup::Load(ticket, sender) => {
                let waiter = Arc::clone(&sender);
                self.spawn_load(ticket, sender, Placement::Hot);
                waiter.wait()
            }
            Lookup::Bypass => {
                let found = self.select(key);
                self.core.supersede(KEYS[key], found);
                Ok(found)
            }
        };
        if let Ok(found) = found {
            self.answer(key, found, floor);
        }
    }

    /// Fails if the answer is older than `floor`: what was proven or shown before the reader came.
    fn answer(&self, key: usize, found: Found, floor: State) {
        let committed = self.committed(key);
        let oldest = match found {
            Some(state) => state,
            // The absence may be that of any such state. The oldest one that is possible counts as shown.
            None => (floor..=committed)
                .find(|state| is_absent(*state))
                .unwrap_or(0),
        };
        assert!(
            oldest >= floor,
            "{}: {found:?} although {floor} was promised",
            KEYS[key]
        );
        let mut promised = self.promised.lock().unwrap();
        promised.shown[key] = promised.shown[key].max(oldest);
    }

    fn spawn_load(self: &Arc<Self>, ticket: Ticket, sender: Arc<Waiter>, placement: Placement) {
        let world = Arc::clone(self);
        thread::spawn(move || {
            let mut load = Some((ticket, sender));
            while let Some((ticket, sender)) = load {
                let key = KEYS.iter().position(|key| *key == ticket.uid()).unwrap();
                let found = world.select(key);
                let fails = thread_rng().gen_ratio(1, 8);
                let loaded = match found {
                    _ if fails => Loaded::Failed,
                    Some(state) => Loaded::Found(state, 1),
                    None => Loaded::NotFound,
                };
                load = world.core.complete(ticket, loaded, HISTORY, placement).next;
                sender.end(if fails { Err(()) } else { Ok(found) });
            }
        });
    }

    fn warm_up(self: &Arc<Self>) {
        for key in KEYS {
            if let Some((ticket, sender)) = self.core.begin_warmup(key, waiter) {
                self.spawn_load(ticket, sender, Placement::Cold);
            }
        }
    }

    fn reconnect(self: &Arc<Self>) {
        self.database.lock().unwrap().queue = Some(Vec::new());
        self.core.open_fills(HISTORY);
        self.send_heartbeat();
        while !self.receive() {}
        self.core.set_serving(true);
        let (world, epoch) = (Arc::clone(self), self.core.epoch());
        thread::spawn(move || {
            for uids in world.core.unverified() {
                for uid in uids {
                    let key = KEYS.iter().position(|key| **key == *uid).unwrap();
                    let version = world.select(key);
                    world.core.verify(&uid, epoch, HISTORY, version);
                }
            }
        });
    }

    fn lose_connection(&self) {
        // The database notices the loss first.
        self.database.lock().unwrap().queue = None;
        thread::yield_now();
        self.core.close();
    }

    fn send_heartbeat(&self) {
        let mut database = self.database.lock().unwrap();
        let committed = database.committed;
        if let Some(queue) = &mut database.queue {
            queue.push(Message::Heartbeat(committed));
        }
    }

    /// Applies the next message. Returns whether it was a heartbeat.
    fn receive(&self) -> bool {
        let message = {
            let mut database = self.database.lock().unwrap();
            match &mut database.queue {
                Some(queue) if !queue.is_empty() => queue.remove(0),
                _ => return false,
            }
        };
        match message {
            Message::Event(key, state) => {
                if thread_rng().gen_ratio(1, 8) {
                    // The listener did not understand the event.
                    self.core.clear();
                } else {
                    self.core.invalidate(KEYS[key]);
                }
                let mut promised = self.promised.lock().unwrap();
                promised.proven[key] = promised.proven[key].max(state);
                false
            }
            Message::Heartbeat(committed) => {
                let mut promised = self.promised.lock().unwrap();
                for (proven, committed) in promised.proven.iter_mut().zip(committed) {
                    *proven = committed.max(*proven);
                }
                true
            }
        }
    }

    fn listen(self: &Arc<Self>) {
        for _ in 0..LISTENER_STEPS {
            let is_connected = self.database.lock().unwrap().queue.is_some();
            match thread_rng().gen_range(0..8) {
                _ if !is_connected => self.reconnect(),
                0..=1 => self.lose_connection(),
                2 => {
                    // The proof grew older than the lease, and was renewed on the same connection.
                    self.core.set_serving(false);
                    self.send_heartbeat();
                    while !self.receive() {}
                    self.core.set_serving(true);
                }
                3 => self.send_heartbeat(),
                _ => {
                    self.receive();
                }
            }
        }
    }
}

/// Runs the world once, under the schedule that shuttle chooses.
///
/// # Panics
/// Panics if a reader is answered with less than what was proven or shown before it came.
pub fn run() {
    let world = Arc::new(World {
        core: Core::new(NonZeroUsize::new(thread_rng().gen_range(1..=2)).unwrap()),
        database: Mutex::new(Database {
            committed: [1; 2],
            queue: None,
        }),
        promised: Mutex::new(Promised {
            proven: [0; 2],
            shown: [0; 2],
        }),
    });
    world.reconnect();
    let mut threads = Vec::new();
    let mut start = |act: fn(&Arc<World>)| {
        let world = Arc::clone(&world);
        threads.push(thread::spawn(move || act(&world)));
    };
    for _ in 0..READERS {
        start(|world| {
            for _ in 0..READS {
                let mut random = thread_rng();
                let demand = if random.gen_ratio(1, 3) {
                    Demand::Database
                } else {
                    Demand::Proven
                };
                let is_fresh = random.gen_ratio(4, 5);
                world.read(pick_key(), demand, is_fresh);
            }
        });
    }
    start(|world| {
        for _ in 0..COMMITS {
            let key = pick_key();
            match thread_rng().gen_ratio(1, 4) {
                true => world.write_through_the_api(key),
                false => world.commit(key),
            }
        }
    });
    start(World::listen);
    start(World::warm_up);
    for thread in threads {
        thread.join().unwrap();
    }
}
