//! What has happened in truth, what was promised of it, and whether an answer keeps the promise.

use std::collections::BTreeMap;

use crate::cache::core::Versioned;

pub(super) const KEYS: [&str; 2] = ["a", "b"];
/// The age that the proof must stay below.
pub(super) const LEASE: Time = 4;
const FOR_EVER: Time = Time::MAX;

pub(super) type Time = u64;
/// A place in [`Ledger::histories`]. As the core sees it, a history is this place plus 1.
pub(super) type History = usize;
/// One number of each order.
pub(super) type Each<T> = [T; KEYS.len()];

/// The number by which the core knows a history.
pub(super) fn label(history: History) -> u64 {
    history as u64 + 1
}

/// What an order holds, or `None` if it does not exist. Two commits never bring the same content.
pub(super) type Content = Option<u32>;

/// A state of an order in a history.
#[derive(Clone, Copy, Debug)]
struct State {
    content: Content,
    /// Without meaning if there is no content.
    version: i64,
    since: Time,
    until: Time,
}

/// What a statement found: a state of an order, with the history that its connection has read when it was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// The history in truth.
    pub(super) history: History,
    pub(super) label: u64,
    /// The place of the state in its history.
    pub(super) place: usize,
    pub(super) version: i64,
    pub(super) content: Content,
}

impl Versioned for Seen {
    fn version(&self) -> i64 {
        self.version
    }
}

/// What a client sees of it.
impl PartialEq for Seen {
    fn eq(&self, other: &Self) -> bool {
        (self.label, self.version, self.content) == (other.label, other.version, other.content)
    }
}

/// What was promised to a reader before it came.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    /// When it was found out whether the proof is fresh.
    asked: Time,
    /// For each history, the oldest states that may be shown.
    floors: Vec<Each<usize>>,
    /// How many histories the listener had opened the core for.
    opened: usize,
}

/// From when to when the listener was connected to a server of this history.
#[derive(Debug)]
struct Heard {
    history: History,
    until: Time,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) now: Time,
    histories: Vec<Each<Vec<State>>>,
    /// For each history, the newest states that were proven or shown.
    promised: Vec<Each<usize>>,
    heard: Vec<Heard>,
    /// The labels that the core was opened for.
    opened: Vec<u64>,
    /// What was shown under each label and version.
    shown: BTreeMap<(u64, i64), Content>,
    /// Whether somebody has changed the order without an event.
    is_tampered: Each<bool>,
    contents: u32,
}

impl Ledger {
    /// Lets time pass, so that what happened before is earlier than what happens next.
    pub(super) fn next_time(&mut self) -> Time {
        self.now += 1;
        self.now
    }

    pub(super) fn new_content(&mut self) -> Content {
        self.contents += 1;
        Some(self.contents)
    }

    /// Begins a history with these contents and versions.
    pub(super) fn begin_history(&mut self, states: Each<(Content, i64)>) -> History {
        let since = self.now;
        self.histories.push(states.map(|(content, version)| {
            vec![State {
                content,
                version,
                since,
                until: FOR_EVER,
            }]
        }));
        self.promised.push([0; KEYS.len()]);
        self.histories.len() - 1
    }

    /// Ends a history, because its server is dead or holds another one.
    pub(super) fn end_history(&mut self, history: History) {
        for states in &mut self.histories[history] {
            if let Some(state) = states.last_mut() {
                state.until = self.now;
            }
        }
        self.stop_hearing(Some(history));
    }

    /// Brings an order into a new state. Returns its place.
    pub(super) fn commit(
        &mut self,
        history: History,
        key: usize,
        content: Content,
        version: i64,
    ) -> usize {
        let states = &mut self.histories[history][key];
        if let Some(state) = states.last_mut() {
            state.until = self.now;
        }
        states.push(State {
            content,
            version,
            since: self.now,
            until: FOR_EVER,
        });
        states.len() - 1
    }

    /// What a statement finds now, on a connection that has read this label.
    pub(super) fn current(&self, history: History, key: usize, label: u64) -> Seen {
        let states = &self.histories[history][key];
        let place = states.len() - 1;
        let State {
            content, version, ..
        } = states[place];
        Seen {
            history,
            label,
            place,
            version,
            content,
        }
    }

    /// The content and version of each order.
    pub(super) fn states(&self, history: History) -> Each<(Content, i64)> {
        [0, 1].map(|key| {
            let Seen {
                content, version, ..
            } = self.current(history, key, 0);
            (content, version)
        })
    }

    pub(super) fn tamper(&mut self, key: usize) {
        self.is_tampered[key] = true;
    }

    pub(super) fn is_tampered(&self, key: usize) -> bool {
        self.is_tampered[key]
    }

    /// The listener is connected to a server of this history.
    pub(super) fn hear(&mut self, history: History) {
        self.stop_hearing(None);
        self.heard.push(Heard {
            history,
            until: FOR_EVER,
        });
    }

    pub(super) fn hears(&self, history: History) -> bool {
        let mut heard = self.heard.iter();
        heard.any(|heard| heard.history == history && heard.until == FOR_EVER)
    }

    /// The listener hears nothing more of this history, or of any.
    pub(super) fn stop_hearing(&mut self, history: Option<History>) {
        for heard in &mut self.heard {
            if history.is_none_or(|history| history == heard.history) {
                heard.until = heard.until.min(self.now);
            }
        }
    }

    pub(super) fn open(&mut self, history: History) {
        self.opened.push(label(history));
    }

    /// Says what may be shown to a reader who comes now.
    pub(super) fn claim(&self) -> Claim {
        Claim {
            asked: self.now,
            floors: self.promised.clone(),
            opened: self.opened.len(),
        }
    }

    /// Demands the present states of all histories.
    pub(super) fn demand(&self, claim: &mut Claim) {
        for (floors, states) in claim.floors.iter_mut().zip(&self.histories) {
            for (floor, states) in floors.iter_mut().zip(states) {
                *floor = states.len() - 1;
            }
        }
    }

    /// Nobody may be shown an older state from now on.
    pub(super) fn promise(&mut self, history: History, key: usize, place: usize) {
        let promised = &mut self.promised[history][key];
        *promised = place.max(*promised);
    }

    /// Nobody may be shown a state that had ended before this time.
    pub(super) fn promise_until(&mut self, history: History, time: Time) {
        for key in 0..KEYS.len() {
            let states = &self.histories[history][key];
            let place = states.iter().rposition(|state| state.since < time);
            self.promise(history, key, place.unwrap_or_default());
        }
    }

    /// The labels that the core may hold entries of, since a reader came.
    pub(super) fn opened_since(&self, claim: &Claim) -> &[u64] {
        &self.opened[claim.opened.saturating_sub(1)..]
    }

    fn floor(claim: &Claim, history: History, key: usize) -> usize {
        // The history may have begun after the reader had come.
        claim.floors.get(history).map_or(0, |floors| floors[key])
    }

    fn was_heard(&self, history: History, claim: &Claim) -> bool {
        let mut heard = self.heard.iter();
        heard.any(|heard| {
            heard.history == history && heard.until.saturating_add(LEASE) > claim.asked
        })
    }

    fn was_current(&self, history: History, key: usize, place: usize, claim: &Claim) -> bool {
        let until = self.histories[history][key][place].until;
        until.saturating_add(LEASE) > claim.asked
    }

    /// Judges what a database told a reader. The answer is not older than what was promised in its history.
    pub(super) fn judge(&mut self, key: usize, seen: Seen, claim: &Claim) {
        if self.is_tampered[key] {
            return;
        }
        let floor = Self::floor(claim, seen.history, key);
        assert!(
            seen.place >= floor,
            "{}: {seen:?} although state {floor} was promised",
            KEYS[key]
        );
        self.promise(seen.history, key, seen.place);
        // A connection keeps its label after a restore, until the listener notices the restore.
        if seen.content.is_some() && seen.label == label(seen.history) {
            let shown = self.shown.entry((seen.label, seen.version));
            let shown = *shown.or_insert(seen.content);
            assert_eq!(
                shown, seen.content,
                "{}: two contents of {seen:?}",
                KEYS[key]
            );
        }
    }

    /// Judges a hit. It was current within the lease, in a history that the listener heard of within the lease.
    pub(super) fn judge_hit(&mut self, key: usize, seen: Seen, claim: &Claim) {
        if self.is_tampered[key] {
            return;
        }
        assert!(
            self.opened_since(claim).contains(&seen.label),
            "{}: {seen:?} is of another history than the listener's",
            KEYS[key]
        );
        assert!(
            self.was_heard(seen.history, claim),
            "{}: {seen:?} is of a history that nobody hears of",
            KEYS[key]
        );
        assert!(
            self.was_current(seen.history, key, seen.place, claim),
            "{}: {seen:?} was gone for longer than the lease at {}",
            KEYS[key],
            claim.asked
        );
        self.judge(key, seen, claim);
    }

    /// Judges a cached absence. Some state that it may stand for keeps all promises; the oldest one counts as shown.
    pub(super) fn judge_absence(&mut self, key: usize, claim: &Claim) {
        if self.is_tampered[key] {
            return;
        }
        let mut possible = Vec::new();
        for history in 0..self.histories.len() {
            if !self.was_heard(history, claim) {
                continue;
            }
            let floor = Self::floor(claim, history, key);
            let states = &self.histories[history][key];
            let place = (floor..states.len()).find(|place| {
                states[*place].content.is_none() && self.was_current(history, key, *place, claim)
            });
            possible.extend(place.map(|place| (history, place)));
        }
        match *possible {
            [] => panic!("{}: absent, against {claim:?}: {self:?}", KEYS[key]),
            [(history, place)] => self.promise(history, key, place),
            _ => {}
        }
    }
}
