//! Asks one api for one order at a time, until it answers with the awaited state.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use shared::order::Order;

use super::rival::Calls;
use crate::benchmarks::connection::{Answer, Connection};
use crate::benchmarks::joined;

/// How long a state may take to become readable.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longer it takes, the longer is the pause between two requests, so that the resolution is 5 %. On a busy machine
/// requests without a pause took the time that the services needed for the answer.
const PAUSE_DIVISOR: u32 = 20;
/// How often an order is requested until the answer is from the cache. After that the sample is given up.
const ATTEMPTS_TO_CACHE: usize = 10;

/// An order that is about to change.
struct Task {
    uid: String,
    /// Whether it exists already.
    exists: bool,
    /// It is closed if the sample is given up.
    start_rx: Receiver<Start>,
}

/// A change that is made.
#[derive(Clone, Debug)]
pub(super) struct Start {
    /// When the work on the change began. No notification of it is earlier.
    pub begun_at: Instant,
    /// When the time of the sample begins.
    pub at: Instant,
    pub awaited: Awaited,
}

/// The state that must become readable.
#[derive(Clone, Debug)]
pub(super) enum Awaited {
    /// The order of a message, or a later one. The messages of an order have dates in the order in which they are sent.
    Order(Box<Order>),
    /// A version of the order.
    Version(i64),
}

/// What was seen of one change.
#[derive(Clone, Debug)]
pub(super) struct Sighting {
    pub uid: String,
    pub start: Instant,
    pub begun_at: Instant,
    /// When the answer with the state had arrived.
    pub seen_at: Instant,
    /// When the answer before it had arrived, or when the first request was sent.
    pub unseen_at: Instant,
}

/// The watchers of all apis for one kind of change. They watch one change at a time.
pub(super) struct Lane<'scope> {
    task_txs: Vec<Sender<Task>>,
    events_rx: Receiver<bool>,
    threads: Vec<ScopedJoinHandle<'scope, anyhow::Result<Vec<Sighting>>>>,
    start_txs: Vec<Sender<Start>>,
    /// How many watchers have not yet said that they are ready, or done.
    awaited_events: usize,
    is_refused: bool,
}

impl<'scope> Lane<'scope> {
    /// Connects to each api. With `calls` the first request waits for the notification of the order. At least `pause` passes
    /// between an answer and the next request.
    pub(super) fn open(
        scope: &'scope Scope<'scope, '_>,
        ports: &[u16],
        calls: Option<&'scope Calls>,
        pause: Duration,
    ) -> anyhow::Result<Self> {
        let (events_tx, events_rx) = channel();
        let mut lane = Self {
            task_txs: Vec::new(),
            events_rx,
            threads: Vec::new(),
            start_txs: Vec::new(),
            awaited_events: 0,
            is_refused: false,
        };
        for port in ports {
            let (task_tx, task_rx) = channel();
            let mut watcher = Watcher {
                connection: Connection::open(*port)?,
                calls,
                pause,
                versions: HashMap::new(),
            };
            let events_tx = events_tx.clone();
            lane.task_txs.push(task_tx);
            lane.threads
                .push(scope.spawn(move || watcher.run(&task_rx, &events_tx)));
        }
        Ok(lane)
    }

    /// Returns whether another order can be watched.
    pub(super) fn is_idle(&mut self) -> bool {
        self.take_events();
        self.awaited_events == 0 && self.start_txs.is_empty()
    }

    /// Lets each api cache the state before the change.
    pub(super) fn prepare(&mut self, uid: &str, exists: bool) {
        self.is_refused = false;
        for task_tx in &self.task_txs {
            let (start_tx, start_rx) = channel();
            let task = Task {
                uid: uid.to_owned(),
                exists,
                start_rx,
            };
            // If a watcher has ended, joining its thread returns the reason.
            if task_tx.send(task).is_ok() {
                self.start_txs.push(start_tx);
                self.awaited_events += 1;
            }
        }
    }

    /// Returns whether each api has it cached; `None` while that is not known.
    pub(super) fn is_prepared(&mut self) -> Option<bool> {
        self.take_events();
        (self.awaited_events == 0).then_some(!self.is_refused)
    }

    /// Tells the watchers that the change is made. If an api was not prepared, nothing is measured.
    pub(super) fn start(&mut self, start: &Start) {
        let is_prepared = self.is_prepared() == Some(true);
        for start_tx in self.start_txs.drain(..) {
            if is_prepared && start_tx.send(start.clone()).is_ok() {
                self.awaited_events += 1;
            }
        }
    }

    /// Gives up the prepared order.
    pub(super) fn cancel(&mut self) {
        self.start_txs.clear();
    }

    /// Returns whether a watcher has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.threads.iter().any(ScopedJoinHandle::is_finished)
    }

    /// Ends the watchers and returns what each has seen.
    pub(super) fn end(self) -> anyhow::Result<Vec<Vec<Sighting>>> {
        drop((self.task_txs, self.start_txs));
        let threads = self.threads.into_iter();
        threads.map(|thread| joined(thread.join())).collect()
    }

    fn take_events(&mut self) {
        while let Ok(is_well) = self.events_rx.try_recv() {
            self.awaited_events -= 1;
            self.is_refused |= !is_well;
        }
    }
}

struct Watcher<'a> {
    connection: Connection,
    calls: Option<&'a Calls>,
    pause: Duration,
    /// The highest version seen of each order; 0 if it does not exist. A version must never be lower again.
    versions: HashMap<String, i64>,
}

impl Watcher<'_> {
    fn run(
        &mut self,
        task_rx: &Receiver<Task>,
        events_tx: &Sender<bool>,
    ) -> anyhow::Result<Vec<Sighting>> {
        let mut sightings = Vec::new();
        for task in task_rx {
            let path = format!("/order/{}", task.uid);
            let is_prepared = self.let_cache(&task, &path)?;
            // It must be before the change is made. Otherwise its notification could be missed.
            let notified_rx = self.calls.map(|calls| calls.expect(&task.uid));
            if events_tx.send(is_prepared).is_err() {
                break;
            }
            if !is_prepared {
                continue;
            }
            let Ok(start) = task.start_rx.recv() else {
                continue;
            };
            if let Some(notified_rx) = notified_rx {
                let notified = notified_rx.recv_timeout(PATIENCE);
                notified.with_context(|| format!("the change of {} was not notified", task.uid))?;
            }
            sightings.push(self.watch(&task.uid, &path, &start)?);
            if events_tx.send(true).is_err() {
                break;
            }
        }
        Ok(sightings)
    }

    fn let_cache(&mut self, task: &Task, path: &str) -> anyhow::Result<bool> {
        for _ in 0..ATTEMPTS_TO_CACHE {
            let answer = self.connection.get(path)?;
            check_version(&mut self.versions, &task.uid, &answer)?;
            if answer.is_hit {
                return Ok(task.exists == answer.version.is_some());
            }
        }
        Ok(false)
    }

    fn watch(&mut self, uid: &str, path: &str, start: &Start) -> anyhow::Result<Sighting> {
        let mut unseen_at = Instant::now();
        let mut known = self.versions.get(uid).copied();
        loop {
            let answer = self.connection.get(path)?;
            let answered_at = Instant::now();
            let version = check_version(&mut self.versions, uid, &answer)?;
            // Equal versions are equal orders, so only a new version is looked at.
            if known.replace(version) != Some(version) && is_awaited(&answer, &start.awaited)? {
                return Ok(Sighting {
                    uid: uid.to_owned(),
                    start: start.at,
                    begun_at: start.begun_at,
                    seen_at: answered_at,
                    unseen_at,
                });
            }
            unseen_at = answered_at;
            ensure!(
                start.at.elapsed() < PATIENCE,
                "the new state of order {uid} was not readable within {PATIENCE:?}"
            );
            std::thread::sleep(self.pause.max(start.at.elapsed() / PAUSE_DIVISOR));
        }
    }
}

fn check_version(
    versions: &mut HashMap<String, i64>,
    uid: &str,
    answer: &Answer<'_>,
) -> anyhow::Result<i64> {
    let version = match (answer.status, answer.version) {
        (200, Some(version)) => version,
        (404, None) => 0,
        (status, version) => {
            bail!("the api answered {status} with version {version:?} for order {uid}")
        }
    };
    let before = versions.insert(uid.to_owned(), version).unwrap_or(0);
    ensure!(
        before <= version,
        "order {uid} went back: version {version} after version {before}"
    );
    Ok(version)
}

fn is_awaited(answer: &Answer<'_>, awaited: &Awaited) -> anyhow::Result<bool> {
    match awaited {
        Awaited::Version(awaited) => {
            if let Some(version) = answer.version {
                ensure!(
                    version <= *awaited,
                    "the api answered with version {version}, but the last version written is {awaited}"
                );
            }
            Ok(answer.version == Some(*awaited))
        }
        Awaited::Order(_) if answer.version.is_none() => Ok(false),
        Awaited::Order(awaited) => {
            let order = Order::decode(answer.body).map_err(|fault| {
                anyhow::anyhow!("the api answered with an invalid order: {fault}")
            })?;
            ensure!(
                order.date_created != awaited.date_created || order == **awaited,
                "the api answered with {order:?}, but {awaited:?} was sent"
            );
            Ok(order.date_created >= awaited.date_created)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(version: Option<i64>) -> Answer<'static> {
        Answer {
            status: if version.is_some() { 200 } else { 404 },
            version,
            is_hit: true,
            body: b"",
        }
    }

    #[test]
    fn a_state_that_goes_back_is_refused() {
        let mut versions = HashMap::new();
        for version in [None, Some(3), Some(3), Some(5)] {
            check_version(&mut versions, "a", &answer(version)).unwrap();
        }
        check_version(&mut versions, "b", &answer(Some(1))).unwrap();
        for version in [Some(4), None] {
            let mut versions = versions.clone();
            assert!(check_version(&mut versions, "a", &answer(version)).is_err());
        }
    }

    #[test]
    fn a_version_that_nobody_wrote_is_refused() {
        let awaited = Awaited::Version(7);
        assert!(!is_awaited(&answer(Some(6)), &awaited).unwrap());
        assert!(is_awaited(&answer(Some(7)), &awaited).unwrap());
        assert!(is_awaited(&answer(Some(8)), &awaited).is_err());
    }
}
