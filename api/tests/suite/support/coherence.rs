//! Judges whether a history of writes and answers keeps what the cache promises. There is no I/O here.
//!
//! Versions say which of two commits came later, because they are drawn under the row's lock and rise. Sequence numbers say
//! what was written. A write whose answer was lost may be committed after the write with the next sequence number.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// The time since the history began, by one clock for all writers and readers.
pub type Moment = Duration;

/// A write of one order.
#[derive(Clone, Debug)]
pub struct Write {
    pub order: usize,
    /// The sequence number that it put into the order; `None` stands for a deletion.
    pub sequence: Option<i64>,
    pub sent: Moment,
    /// `None` if the outcome is unknown.
    pub committed: Option<Committed>,
}

/// What the writer was told.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    /// The order's version. A deletion draws one, too, under the same lock.
    pub version: i64,
    pub acknowledged: Moment,
}

/// An answer about one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    pub process: usize,
    pub order: usize,
    pub started: Moment,
    pub ended: Moment,
    /// `None` if the answer was that there is no such order.
    pub seen: Option<Seen>,
    pub is_hit: bool,
}

/// What was in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub version: i64,
    /// The sequence number in the order's payment.
    pub sequence: i64,
    /// The one in its first item.
    pub item_sequence: i64,
}

/// Everything that writers and readers recorded.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub writes: Vec<Write>,
    pub observations: Vec<Observation>,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// The answer lacks a commit that was acknowledged this long before the reader asked.
    Stale {
        observation: Observation,
        age: Duration,
    },
    /// The process had shown a later version before this reader asked.
    WentBack {
        earlier: Observation,
        later: Observation,
    },
    /// Nobody has written this.
    NeverWritten(Observation),
    /// The payment belongs to one write, and the items belong to another.
    Torn(Observation),
}

/// The result of the check.
#[derive(Debug)]
pub struct Judgement {
    pub violations: Vec<Violation>,
    /// The age of the oldest answer: the time from the acknowledgement of the first commit that it lacks to its reader's request.
    pub oldest: Duration,
}

impl History {
    /// Checks every answer against the promised age `bound` and the other promises.
    pub fn judge(&self, bound: Duration) -> Judgement {
        let mut by_order: BTreeMap<usize, (Vec<&Write>, Vec<&Observation>)> = BTreeMap::new();
        for write in &self.writes {
            by_order.entry(write.order).or_default().0.push(write);
        }
        for observation in &self.observations {
            let of_order = by_order.entry(observation.order).or_default();
            of_order.1.push(observation);
        }
        let mut judgement = Judgement {
            violations: Vec::new(),
            oldest: Duration::ZERO,
        };
        for (writes, mut observations) in by_order.into_values() {
            let written = Written::new(&writes);
            observations.sort_by_key(|observation| observation.started);
            judgement.judge_contents(&written, &observations);
            judgement.judge_ages(&written, &observations, bound);
            judgement.judge_directions(&written, &observations);
        }
        judgement
    }

    /// Whether an answer could belong to this history, at any age.
    fn explains(&self, observation: &Observation) -> bool {
        let alone = Self {
            writes: self.writes.clone(),
            observations: vec![observation.clone()],
        };
        alone.judge(Duration::MAX).violations.is_empty()
    }
}

/// A server that was killed, and replaced by a server that lacked its last commits.
#[derive(Clone, Debug)]
pub struct Failover {
    /// What was written to the first server.
    pub before: Vec<Write>,
    /// What the second server had, and what was written to it.
    pub after: Vec<Write>,
    /// When the first server was dead.
    pub killed: Moment,
    /// When the second server could be asked, which must be more than the promised age later.
    pub replaced: Moment,
}

/// The answers around a failover, each with the history against which it must be checked.
#[derive(Debug)]
pub struct Divided {
    pub before: History,
    pub after: History,
    /// Answers that belong to neither: no server could be asked, and the cache had lost its proof.
    pub unproven: Vec<Observation>,
}

impl Failover {
    /// Adds each answer to the history to which it must belong.
    pub fn divide(self, observations: Vec<Observation>, bound: Duration) -> Divided {
        let expired = self.killed + bound;
        assert!(expired < self.replaced, "answers of both could meet");
        let [before, after] = [self.before, self.after].map(|writes| History {
            writes,
            observations: Vec::new(),
        });
        let mut divided = Divided {
            before,
            after,
            unproven: Vec::new(),
        };
        for observation in observations {
            let is_before = observation.started <= expired
                && (observation.ended < self.replaced || divided.before.explains(&observation));
            if is_before {
                divided.before.observations.push(observation);
            } else if observation.ended < self.replaced {
                divided.unproven.push(observation);
            } else {
                divided.after.observations.push(observation);
            }
        }
        divided
    }
}

/// The writes of one order, in the form in which the checks look them up.
struct Written<'a> {
    by_sequence: HashMap<i64, &'a Write>,
    deletions: Vec<&'a Write>,
    /// The committed versions in order. With each comes the earliest moment at which it or a later version was acknowledged.
    commits: Vec<(i64, Moment)>,
}

impl<'a> Written<'a> {
    fn new(writes: &[&'a Write]) -> Self {
        let mut commits: Vec<(i64, Moment)> = writes
            .iter()
            .filter_map(|write| write.committed)
            .map(|committed| (committed.version, committed.acknowledged))
            .collect();
        commits.sort_unstable();
        let mut earliest = Moment::MAX;
        for (_, acknowledged) in commits.iter_mut().rev() {
            earliest = earliest.min(*acknowledged);
            *acknowledged = earliest;
        }
        Self {
            by_sequence: writes
                .iter()
                .filter_map(|write| Some((write.sequence?, *write)))
                .collect(),
            deletions: writes
                .iter()
                .copied()
                .filter(|write| write.sequence.is_none())
                .collect(),
            commits,
        }
    }

    fn explains(&self, seen: Seen, ended: Moment) -> bool {
        self.by_sequence.get(&seen.sequence).is_some_and(|write| {
            write.sent <= ended
                && write
                    .committed
                    .is_none_or(|committed| committed.version == seen.version)
        })
    }

    /// The highest version that an answer can show: "no such order" is taken to show the last deletion that is possible. `None`
    /// if nobody knows the version of a deletion that is possible.
    fn version(&self, observation: &Observation) -> Option<i64> {
        if let Some(seen) = observation.seen {
            return Some(seen.version);
        }
        let mut latest = None;
        for deletion in &self.deletions {
            if deletion.sent <= observation.ended {
                latest = latest.max(Some(deletion.committed?.version));
            }
        }
        latest
    }

    /// The lowest version that an answer can show, if the process had already shown `before`: "no such order" is taken to show
    /// the first deletion that is possible.
    fn least_version(&self, observation: &Observation, before: i64) -> Option<i64> {
        if let Some(seen) = observation.seen {
            return Some(seen.version);
        }
        self.version(observation)?;
        let versions = self
            .deletions
            .iter()
            .filter_map(|deletion| deletion.committed);
        let possible = versions
            .map(|committed| committed.version)
            .filter(|version| *version >= before);
        possible.min()
    }

    fn age(&self, version: i64, started: Moment) -> Duration {
        let missed = self.commits.partition_point(|(each, _)| *each <= version);
        let acknowledged = self.commits.get(missed).map(|(_, moment)| *moment);
        acknowledged.map_or(Duration::ZERO, |moment| started.saturating_sub(moment))
    }
}

impl Judgement {
    fn judge_contents(&mut self, written: &Written<'_>, observations: &[&Observation]) {
        let mut sequences = HashMap::new();
        for observation in observations.iter().copied() {
            let is_written = match observation.seen {
                Some(seen) => {
                    let first = *sequences.entry(seen.version).or_insert(seen.sequence);
                    first == seen.sequence && written.explains(seen, observation.ended)
                }
                None => {
                    let mut deletions = written.deletions.iter();
                    deletions.any(|deletion| deletion.sent <= observation.ended)
                }
            };
            if !is_written {
                let violation = Violation::NeverWritten(observation.clone());
                self.violations.push(violation);
            }
            if (observation.seen).is_some_and(|seen| seen.item_sequence != seen.sequence) {
                self.violations.push(Violation::Torn(observation.clone()));
            }
        }
    }

    fn judge_ages(
        &mut self,
        written: &Written<'_>,
        observations: &[&Observation],
        bound: Duration,
    ) {
        for observation in observations.iter().copied() {
            let Some(version) = written.version(observation) else {
                continue;
            };
            let age = written.age(version, observation.started);
            self.oldest = self.oldest.max(age);
            if age > bound {
                self.violations.push(Violation::Stale {
                    observation: observation.clone(),
                    age,
                });
            }
        }
    }

    /// `observations` must be in the order of their starts.
    fn judge_directions(&mut self, written: &Written<'_>, observations: &[&Observation]) {
        let mut by_end: Vec<usize> = (0..observations.len()).collect();
        by_end.sort_by_key(|index| observations[*index].ended);
        let mut ended = by_end.into_iter().peekable();
        // The lowest version that each answer can show, and for each process the highest of these in an answer that has ended.
        let mut shown = Vec::with_capacity(observations.len());
        let mut latest: HashMap<usize, (i64, &Observation)> = HashMap::new();
        for later in observations.iter().copied() {
            while let Some(index) =
                ended.next_if(|index| observations[*index].ended < later.started)
            {
                let earlier = observations[index];
                if let Some(version) = shown[index] {
                    let slot = latest.entry(earlier.process).or_insert((version, earlier));
                    if slot.0 < version {
                        *slot = (version, earlier);
                    }
                }
            }
            let before = latest.get(&later.process);
            shown.push(written.least_version(later, before.map_or(0, |(version, _)| *version)));
            if let Some(version) = written.version(later)
                && let Some((before, earlier)) = before
                && version < *before
            {
                self.violations.push(Violation::WentBack {
                    earlier: (*earlier).clone(),
                    later: later.clone(),
                });
            }
        }
    }
}
