//! Asks one api for one order at a time, until it answers the awaited state.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use shared::order::Order;

use super::connection::{Answer, Connection};
use super::rival::Calls;

/// How long a state may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// What has taken long is asked for less often: a resolution of 5 %. On a busy machine, questions without a pause took what
/// the services needed to come to the answer.
const PAUSE_DIVISOR: u32 = 20;
/// How often an order is asked for before its cached state is given up.
const ATTEMPTS_TO_CACHE: usize = 10;

/// An order that is about to change.
struct Task {
    uid: String,
    /// Whether it is there already.
    exists: bool,
    /// Closed where the sample is given up.
    start_rx: Receiver<Start>,
}

/// The change, once it is made.
#[derive(Clone, Debug)]
pub(super) struct Start {
    /// When whatever leads to the change began: no notification of it is earlier.
    pub begun_at: Instant,
    /// From when the time counts.
    pub at: Instant,
    pub awaited: Awaited,
}

/// The state that is to become readable.
#[derive(Clone, Debug)]
pub(super) enum Awaited {
    /// The order of a message, or a later one: messages of one order are dated in the order of their sending.
    Order(Box<Order>),
    Version(i64),
}

/// What was seen of one change.
#[derive(Clone, Debug)]
pub(super) struct Sighting {
    pub uid: String,
    pub start: Instant,
    pub begun_at: Instant,
    /// When the answer with the state was there.
    pub seen_at: Instant,
    /// When the answer before was there, or the first question was asked.
    pub unseen_at: Instant,
}

/// The watchers of all apis for one kind of change; one change at a time.
pub(super) struct Lane<'scope> {
    tasks: Vec<Sender<Task>>,
    events: Receiver<bool>,
    threads: Vec<ScopedJoinHandle<'scope, anyhow::Result<Vec<Sighting>>>>,
    starts: Vec<Sender<Start>>,
    /// How many watchers have not yet said that they are ready, or done.
    awaited_events: usize,
    refused: bool,
}

impl<'scope> Lane<'scope> {
    /// Connects to each api. With `calls` the first question waits for the notification of the order; `pause` at least lies
    /// between an answer and the next question.
    pub(super) fn open(
        scope: &'scope Scope<'scope, '_>,
        ports: &[u16],
        calls: Option<&'scope Calls>,
        pause: Duration,
    ) -> anyhow::Result<Self> {
        let (events_tx, events) = channel();
        let mut lane = Self {
            tasks: Vec::new(),
            events,
            threads: Vec::new(),
            starts: Vec::new(),
            awaited_events: 0,
            refused: false,
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
            lane.tasks.push(task_tx);
            lane.threads
                .push(scope.spawn(move || watcher.run(&task_rx, &events_tx)));
        }
        Ok(lane)
    }

    /// Whether another order can be watched.
    pub(super) fn is_idle(&mut self) -> bool {
        self.take_events();
        self.awaited_events == 0 && self.starts.is_empty()
    }

    /// Lets each api cache the state before the change.
    pub(super) fn prepare(&mut self, uid: &str, exists: bool) {
        self.refused = false;
        for task_tx in &self.tasks {
            let (start_tx, start_rx) = channel();
            let task = Task {
                uid: uid.to_owned(),
                exists,
                start_rx,
            };
            // A watcher that has ended tells why when it is joined.
            if task_tx.send(task).is_ok() {
                self.starts.push(start_tx);
                self.awaited_events += 1;
            }
        }
    }

    /// Whether each api has it cached; none while that is not known.
    pub(super) fn is_prepared(&mut self) -> Option<bool> {
        self.take_events();
        (self.awaited_events == 0).then_some(!self.refused)
    }

    /// The change is made. Where an api was not prepared, nothing is measured.
    pub(super) fn start(&mut self, start: &Start) {
        let prepared = self.is_prepared() == Some(true);
        for start_tx in self.starts.drain(..) {
            if prepared && start_tx.send(start.clone()).is_ok() {
                self.awaited_events += 1;
            }
        }
    }

    /// Gives up the order that was prepared.
    pub(super) fn cancel(&mut self) {
        self.starts.clear();
    }

    /// Whether a watcher has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.threads.iter().any(ScopedJoinHandle::is_finished)
    }

    /// What each watcher has seen.
    pub(super) fn end(self) -> anyhow::Result<Vec<Vec<Sighting>>> {
        drop((self.tasks, self.starts));
        let joined = self.threads.into_iter().map(|thread| {
            let sightings = thread.join();
            sightings.map_err(|_| anyhow::anyhow!("a watcher panicked"))?
        });
        joined.collect()
    }

    fn take_events(&mut self) {
        while let Ok(well) = self.events.try_recv() {
            self.awaited_events -= 1;
            self.refused |= !well;
        }
    }
}

struct Watcher<'a> {
    connection: Connection,
    calls: Option<&'a Calls>,
    pause: Duration,
    /// The highest version seen of each order; 0 is an order that is not there. None may ever be lower again.
    versions: HashMap<String, i64>,
}

impl Watcher<'_> {
    fn run(
        &mut self,
        tasks: &Receiver<Task>,
        events: &Sender<bool>,
    ) -> anyhow::Result<Vec<Sighting>> {
        let mut sightings = Vec::new();
        for task in tasks {
            let path = format!("/order/{}", task.uid);
            let prepared = self.let_cache(&task, &path)?;
            // Before the change is made: else its notification could be missed.
            let named_rx = self.calls.map(|calls| calls.expect(&task.uid));
            if events.send(prepared).is_err() {
                break;
            }
            if !prepared {
                continue;
            }
            let Ok(start) = task.start_rx.recv() else {
                continue;
            };
            if let Some(named_rx) = named_rx {
                let named = named_rx.recv_timeout(PATIENCE);
                named.with_context(|| format!("{} was not notified", task.uid))?;
            }
            sightings.push(self.watch(&task.uid, &path, &start)?);
            if events.send(true).is_err() {
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
            // Equal versions are equal orders: only what is new is looked at.
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
                "the new state of {uid} was not readable within {PATIENCE:?}"
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
        (status, version) => bail!("the api answered {status} with version {version:?} for {uid}"),
    };
    let before = versions.insert(uid.to_owned(), version).unwrap_or(0);
    ensure!(
        before <= version,
        "{uid} went back: version {version} after {before}"
    );
    Ok(version)
}

fn is_awaited(answer: &Answer<'_>, awaited: &Awaited) -> anyhow::Result<bool> {
    match awaited {
        Awaited::Version(awaited) => {
            if let Some(version) = answer.version {
                ensure!(
                    version <= *awaited,
                    "version {version} answered, {awaited} was the last to be written"
                );
            }
            Ok(answer.version == Some(*awaited))
        }
        Awaited::Order(_) if answer.version.is_none() => Ok(false),
        Awaited::Order(awaited) => {
            let order = Order::decode(answer.body)
                .map_err(|fault| anyhow::anyhow!("the api answered an invalid order: {fault}"))?;
            ensure!(
                order.date_created != awaited.date_created || order == **awaited,
                "the api answered another order than was sent: {order:?} in place of {awaited:?}"
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
