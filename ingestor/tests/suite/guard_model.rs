//! The guard, the witnesses and the acceptance of incidents, in random histories of one partition.
//!
//! A history cuts the log, makes the topic anew, restores old records with their timestamps at other offsets, writes and
//! deletes orders through the api, rewinds, and replays dead letters. An operator accepts every incident. The model knows in
//! which order everything happened. Two things must always hold:
//! - **Nothing older wins.** A message that was read before never replaces what was stored after its first reading.
//! - **Nothing newer is lost in silence.** A message that is read for the first time is stored, or a later one of its log was,
//!   or it becomes a dead letter, or it is older than the deletion of its order.
//!
//! With a mistake planted, the histories must find it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;

use chrono::Utc;
use fastrand::Rng;
use ingestor::guard::{Doubt, Guard, Verdict};
use ingestor::kafka::Watermarks;
use ingestor::offsets::OffsetRow;
use ingestor::offsets::acceptance::{Decision, accept};
use ingestor::offsets::incidents::{Change, Gap, Incident, Kind, Sighting, find_gap};
use ingestor::record::{Epoch, Incarnation, Offset, Partition, Position};
use ingestor::witnesses::{Witness, Witnesses};
use shared::db::models::Source;
use strum::VariantArray;

const HISTORIES: u64 = 10_000;
const STEPS: usize = 60;
const ORDERS: usize = 4;

/// What could be built wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, VariantArray)]
enum Mistake {
    /// After an incident every record counts as new.
    NoDoubt,
    /// Every record of a topic that was made anew counts as new.
    NoDoubtAboutANewTopic,
    /// The doubt of an earlier incident is forgotten at the next one.
    EarlierDoubtForgotten,
    /// The doubt ends at the time of the last record, and not at the highest time.
    DoubtByTheLastTimestamp,
    /// What an earlier incarnation wrote counts as older.
    EarlierIncarnationIsOlder,
    /// Offsets of another log are compared.
    AnotherLogIsCompared,
    /// What the api wrote counts as older.
    ApiWritesAreOlder,
    /// A rewind is not remembered.
    RewindForgotten,
    /// What the guard holds back is dropped.
    NoLetters,
    /// After a cut, reading continues at the end of the log.
    ContinueAtTheEnd,
    /// After a cut, reading continues after the newest record that matches, even if an earlier one does not.
    ContinueAfterTheNewest,
    /// A letter that is selected by a filter is replayed without the guard.
    LettersUnguarded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Message {
    /// No two messages have the same one. A copy of a message keeps it.
    id: u64,
    uid: usize,
    timestamp_ms: i64,
}

/// A stored order.
#[derive(Clone, Copy, Debug)]
struct Stored {
    written_by: Option<Source>,
    /// The message; none after a write by the api.
    message: Option<u64>,
    /// When its content was new.
    since: u64,
}

/// An entry of the ledger.
#[derive(Clone, Copy, Debug)]
struct Removed {
    at_ms: i64,
    since: u64,
    next: (Incarnation, Offset),
}

/// The last message of an order in a batch.
#[derive(Clone, Copy, Debug)]
struct Folded {
    offset: Offset,
    message: Message,
    /// Whether all messages of the order in the batch are replays.
    is_replay: bool,
    /// When the newest of these messages was read first.
    since: u64,
}

struct World {
    rng: Rng,
    mistake: Option<Mistake>,
    /// Milliseconds since 1970. It rises with every step.
    clock_ms: i64,
    low: usize,
    /// None where compaction removed a record.
    log: Vec<Option<Message>>,
    row: OffsetRow,
    last_timestamp_ms: Option<i64>,
    last_incarnation: Incarnation,
    held: Option<Witness>,
    incident: Option<Incident>,
    orders: HashMap<usize, Stored>,
    ledger: HashMap<usize, Removed>,
    /// When each message was read first.
    first_read: HashMap<u64, u64>,
    /// Where each message is or was in the log as it is: compaction and retention change nothing here.
    places: HashMap<u64, usize>,
    /// Messages that were read and whose content is nowhere. A later reading must make up for it.
    owed: HashSet<u64>,
    settled: HashSet<u64>,
    /// Messages that the operator has decided not to read.
    waived: HashSet<u64>,
    messages: u64,
    moments: u64,
    /// The batches that may still be read before somebody looks whether the log has changed.
    unseen_batches: usize,
    story: Vec<String>,
}

impl World {
    fn new(seed: u64, mistake: Option<Mistake>) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            mistake,
            clock_ms: 1_700_000_000_000,
            low: 0,
            log: Vec::new(),
            row: OffsetRow {
                partition: Partition(0),
                next_offset: Offset(0),
                epoch: Epoch(1),
                owner: None,
                incarnation: Incarnation(1),
                last_offset: None,
                last_timestamp: None,
                consecutive_bad: 0,
                halted: false,
                replay_until: None,
                updated_at: Utc::now(),
                witnesses: Witnesses::default(),
                max_timestamp: None,
                log_since: None,
                doubt_until: None,
                doubt_timestamp: None,
            },
            last_timestamp_ms: None,
            last_incarnation: Incarnation(1),
            held: None,
            incident: None,
            orders: HashMap::new(),
            ledger: HashMap::new(),
            first_read: HashMap::new(),
            places: HashMap::new(),
            owed: HashSet::new(),
            settled: HashSet::new(),
            waived: HashSet::new(),
            messages: 0,
            moments: 0,
            unseen_batches: usize::MAX,
            story: Vec::new(),
        }
    }

    fn has(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    fn moment(&mut self) -> u64 {
        self.moments += 1;
        self.moments
    }

    fn guard(&self) -> Guard {
        let mut guard = self.row.guard();
        if self.has(Mistake::NoDoubt) {
            guard.doubt = None;
        }
        if self.has(Mistake::AnotherLogIsCompared) {
            guard.log_since = Incarnation(0);
        }
        guard
    }

    fn judge(&self, guard: &Guard, record: Position, written_by: Option<Source>) -> Verdict {
        match written_by {
            None if self.has(Mistake::ApiWritesAreOlder) => Verdict::Write,
            Some(row)
                if self.has(Mistake::EarlierIncarnationIsOlder)
                    && row.incarnation < guard.incarnation.0 =>
            {
                Verdict::Write
            }
            _ => guard.judge_replay(record, written_by),
        }
    }

    fn tell(&mut self, what: String) {
        self.story.push(what);
    }

    fn step(&mut self) {
        self.clock_ms += self.rng.i64(1..1_000);
        match self.rng.u32(0..100) {
            0..30 => self.produce(),
            30..58 => self.read_batch(),
            58..66 => self.put(),
            66..72 => self.delete(),
            72..77 if self.is_recognisable() => self.cut(),
            77..80 if self.is_recognisable() => self.make_anew(),
            72..80 => {}
            80..83 if self.is_seen() => self.retain(),
            83..85 if self.is_seen() => self.compact(),
            80..85 => {}
            85..89 => self.rewind(),
            89..93 => self.replay_letter(),
            _ => self.look(),
        }
    }

    /// Producers' clocks may be late, but not ahead: a message that is ahead of its time can revive a deleted order.
    fn produce(&mut self) {
        for _ in 0..self.rng.usize(1..5) {
            self.clock_ms += 1;
            self.messages += 1;
            let late_ms = if self.rng.u32(0..4) == 0 {
                self.rng.i64(0..20_000)
            } else {
                0
            };
            let message = Message {
                id: self.messages,
                uid: self.rng.usize(0..ORDERS),
                timestamp_ms: self.clock_ms - late_ms,
            };
            self.tell(format!("produce {message:?} at {}", self.log.len()));
            self.places.insert(message.id, self.log.len());
            self.log.push(Some(message));
        }
    }

    fn put(&mut self) {
        let uid = self.rng.usize(0..ORDERS);
        let since = self.moment();
        self.tell(format!("PUT {uid} at moment {since}"));
        let stored = Stored {
            written_by: None,
            message: None,
            since,
        };
        self.orders.insert(uid, stored);
    }

    fn delete(&mut self) {
        let uid = self.rng.usize(0..ORDERS);
        if self.orders.remove(&uid).is_some() {
            let since = self.moment();
            self.tell(format!("DELETE {uid} at moment {since}"));
            let removed = Removed {
                at_ms: self.clock_ms,
                since,
                next: (self.row.incarnation, self.row.next_offset),
            };
            self.ledger.insert(uid, removed);
        }
    }

    /// Whether a change of the log can be noticed. Right after an acceptance, and when compaction or retention has removed every
    /// witness, it cannot.
    fn is_recognisable(&self) -> bool {
        let matches = |witness: &Witness| self.witness_at(witness.offset()) == Some(*witness);
        self.row.witnesses.iter().any(matches)
    }

    /// Whether no change waits to be noticed. If a witness of the change is removed meanwhile, nobody can notice it.
    fn is_seen(&self) -> bool {
        self.incident.is_none() && self.unseen_batches == usize::MAX
    }

    fn cut(&mut self) {
        let end = self.rng.usize(self.low..=self.log.len());
        self.tell(format!("cut at {end}"));
        self.log.truncate(end);
        self.places.retain(|_, place| *place < end);
        // What is produced before the next look makes the log grow again, perhaps beyond the offset that is read next. Somebody
        // looks at once during a rewind, when what is read again could take the place of the witnesses, and where compaction has
        // removed the last records, of which there is no witness.
        let newest = self
            .row
            .witnesses
            .newest()
            .map(|witness| witness.offset().next());
        if newest == Some(self.row.next_offset) {
            self.unseen_batches = self.unseen_batches.min(self.rng.usize(0..6));
        } else if self.incident.is_none() {
            self.look();
        }
    }

    /// Makes the topic anew: empty, or with a part of what it held, at other offsets and with the old timestamps.
    fn make_anew(&mut self) {
        let old = std::mem::take(&mut self.log);
        let from = self.rng.usize(self.low..=old.len());
        let to = self.rng.usize(from..=old.len());
        self.low = 0;
        if self.rng.bool() {
            // A copy has no gaps. Others may have written to the topic before, so that every offset is higher than it was. The
            // producers of these orders write to it only when the copy is complete.
            let others = if self.rng.bool() { old.len() } else { 0 };
            for _ in 0..others {
                self.messages += 1;
                self.log.push(Some(Message {
                    id: self.messages,
                    uid: ORDERS,
                    timestamp_ms: self.clock_ms,
                }));
            }
            self.log
                .extend(old[from..to].iter().filter(|record| record.is_some()));
        }
        self.places = (self.log.iter().enumerate())
            .filter_map(|(place, record)| Some((record.as_ref()?.id, place)))
            .collect();
        self.tell(format!(
            "make anew with {} records of {from}..{to}",
            self.log.len()
        ));
        // The client notices that the topic is gone.
        if self.incident.is_none() {
            self.look();
        }
    }

    fn retain(&mut self) {
        self.low = self.rng.usize(self.low..=self.low.midpoint(self.log.len()));
        let low = self.low;
        self.tell(format!("retain from {low}"));
        for record in &mut self.log[..low] {
            *record = None;
        }
    }

    fn compact(&mut self) {
        if !self.log.is_empty() {
            let offset = self.rng.usize(0..self.log.len());
            self.tell(format!("compact {offset}"));
            self.log[offset] = None;
        }
    }

    fn watermarks(&self) -> Watermarks {
        let offset = |index: usize| Offset(i64::try_from(index).unwrap());
        Watermarks {
            low: offset(self.low),
            high: offset(self.log.len()),
        }
    }

    fn record_at(&self, offset: Offset) -> Option<Message> {
        *self.log.get(usize::try_from(offset.0).unwrap())?
    }

    fn witness_at(&self, offset: Offset) -> Option<Witness> {
        let message = self.record_at(offset)?;
        Some(Witness {
            position: position(offset, message),
            payload_hash: i64::try_from(message.id).unwrap(),
        })
    }

    fn sighting(&self) -> Sighting {
        let mut more: Vec<Witness> = self.held.into_iter().collect();
        // A look that takes its turn through all of them.
        more.extend(self.row.witnesses.iter());
        let watermarks = self.watermarks();
        let found = Change::find(&self.row.glimpse(), &more, watermarks, |offset| {
            Ok::<_, Infallible>(self.witness_at(offset))
        });
        let Ok(mut change) = found;
        if let Some(change) = &mut change
            && self.has(Mistake::ContinueAfterTheNewest)
        {
            let matching = self.row.witnesses.iter().rev();
            let newest = matching
                .copied()
                .find(|witness| self.witness_at(witness.offset()) == Some(*witness));
            change.newest_match = newest;
        }
        Sighting {
            incarnation: self.row.incarnation,
            watermarks,
            change,
        }
    }

    fn look(&mut self) {
        if self.incident.is_some() {
            return self.accept();
        }
        self.unseen_batches = usize::MAX;
        let sighting = self.sighting();
        let Some(gap) = find_gap(self.row.next_offset, &sighting) else {
            self.held = self.row.witnesses.newest().copied();
            return;
        };
        self.tell(format!("incident {gap:?}"));
        let Gap {
            kind,
            what,
            mut resume_offset,
            matched_offset,
            ..
        } = gap;
        if kind == Kind::Truncated && self.has(Mistake::ContinueAtTheEnd) {
            resume_offset = Some(sighting.watermarks.high);
        }
        self.incident = Some(Incident {
            id: 1,
            kind: <&str>::from(kind).to_owned(),
            next_offset: self.row.next_offset,
            low_watermark: sighting.watermarks.low,
            high_watermark: sighting.watermarks.high,
            detail: what,
            detected_at: Utc::now(),
            resume_offset,
            matched_offset,
        });
    }

    fn accept(&mut self) {
        let Some(incident) = self.incident.take() else {
            return;
        };
        let decision = match incident.resume_offset {
            Some(_) if self.rng.u32(0..4) > 0 => Decision::AsRecorded,
            _ if self.rng.bool() => Decision::NewTopic,
            _ => {
                let Watermarks { low, high } = self.watermarks();
                Decision::ResumeAt(Offset(self.rng.i64(low.0..=high.0)))
            }
        };
        let new = self.last_incarnation.next();
        let mut accepted = accept(&self.row, &incident, decision, new, self.clock_ms).unwrap();
        if accepted.incarnation == new {
            self.last_incarnation = new;
            self.held = None;
            self.mislead(&incident, decision, &mut accepted);
        } else if accepted.next_offset < self.row.next_offset {
            accepted.replay_until = accepted.replay_until.max(Some(self.row.next_offset));
        }
        self.tell(format!("accept {decision:?}: {accepted:?}"));
        self.row = accepted;
        if decision != Decision::AsRecorded || incident.kind == "retention" {
            let skipped = usize::try_from(self.row.next_offset.0)
                .unwrap()
                .min(self.log.len());
            self.waived.extend(
                self.log[..skipped]
                    .iter()
                    .flatten()
                    .map(|message| message.id),
            );
        }
        // The claim that follows looks, too.
        self.look();
    }

    /// Plants mistakes into what an acceptance has decided.
    fn mislead(&self, incident: &Incident, decision: Decision, accepted: &mut OffsetRow) {
        let is_new_log = incident.kind == "recreated" || decision == Decision::NewTopic;
        if self.has(Mistake::NoDoubtAboutANewTopic) && is_new_log {
            accepted.doubt_timestamp = None;
        }
        if self.has(Mistake::EarlierDoubtForgotten) && !is_new_log {
            accepted.set_doubt(Doubt {
                until: self.row.replay_until.max(Some(self.row.next_offset)),
                timestamp_ms: self.row.max_timestamp.unwrap_or(i64::MAX),
            });
        }
        if self.has(Mistake::ContinueAfterTheNewest) {
            accepted.witnesses = Witnesses::default();
        }
        if self.has(Mistake::DoubtByTheLastTimestamp) {
            accepted.doubt_timestamp = self.last_timestamp_ms;
        }
    }

    fn rewind(&mut self) {
        if self.incident.is_some() || self.sighting().change.is_some() {
            return;
        }
        let low = self.watermarks().low.0;
        let next_offset = self.row.next_offset;
        if next_offset.0 < low {
            return;
        }
        let target = Offset(self.rng.i64(low..=next_offset.0));
        self.tell(format!("rewind from {next_offset} to {target}"));
        if !self.has(Mistake::RewindForgotten) && target < next_offset {
            self.row.replay_until = self.row.replay_until.max(Some(next_offset));
        }
        self.row.next_offset = target;
    }

    fn read_batch(&mut self) {
        let Watermarks { low, high } = self.watermarks();
        let next_offset = self.row.next_offset;
        if self.incident.is_some() {
            return;
        }
        // The client reports an offset out of range, and the claim finds the incident.
        if !(low..=high).contains(&next_offset) || self.unseen_batches == 0 {
            return self.look();
        }
        self.unseen_batches -= usize::from(self.unseen_batches != usize::MAX);
        let end = Offset(high.0.min(next_offset.0 + self.rng.i64(1..6)));
        let records: Vec<(Offset, Message)> = (next_offset.0..end.0)
            .filter_map(|offset| Some((Offset(offset), self.record_at(Offset(offset))?)))
            .collect();
        self.tell(format!("read {next_offset}..{end}"));
        self.store(&records);
        self.row.next_offset = end;
        if let Some((offset, message)) = records.last() {
            self.row.witnesses.push(self.witness_at(*offset).unwrap());
            self.last_timestamp_ms = Some(message.timestamp_ms);
        }
        let newest = records
            .iter()
            .map(|(_, message)| message.timestamp_ms)
            .max();
        self.row.max_timestamp = self.row.max_timestamp.max(newest);
    }

    /// Stores the last message of each order, as `Batch::folded` and the writer do.
    fn store(&mut self, records: &[(Offset, Message)]) {
        let guard = self.guard();
        let mut latest: BTreeMap<usize, Folded> = BTreeMap::new();
        for (offset, message) in records {
            let moment = self.moment();
            let first_read = *self.first_read.entry(message.id).or_insert(moment);
            let is_replay = guard.is_replay(position(*offset, *message));
            let before = latest.get(&message.uid);
            let folded = Folded {
                offset: *offset,
                message: *message,
                is_replay: is_replay && before.is_none_or(|before| before.is_replay),
                since: before.map_or(first_read, |before| before.since.max(first_read)),
            };
            latest.insert(message.uid, folded);
        }
        for folded in latest.into_values() {
            self.store_one(&guard, folded);
        }
    }

    fn store_one(&mut self, guard: &Guard, folded: Folded) {
        let Folded {
            offset,
            message,
            is_replay,
            since,
        } = folded;
        let Some(stored) = self.orders.get(&message.uid).copied() else {
            return self.store_absent(guard, folded);
        };
        let verdict = if is_replay {
            self.judge(guard, position(offset, message), stored.written_by)
        } else {
            Verdict::Write
        };
        let is_settled = match verdict {
            Verdict::Write => {
                assert!(
                    since >= stored.since || self.is_later(message, stored),
                    "{message:?} at {offset} is older than {stored:?}"
                );
                self.write(guard, offset, message);
                true
            }
            Verdict::Superseded => {
                stored.message == Some(message.id) || self.is_earlier(message, stored)
            }
            // It becomes a dead letter.
            Verdict::HeldBack => {
                stored.message == Some(message.id) || !self.has(Mistake::NoLetters)
            }
        };
        self.settle(message, is_settled);
    }

    fn store_absent(&mut self, guard: &Guard, folded: Folded) {
        let Folded {
            offset,
            message,
            since,
            ..
        } = folded;
        if let Some(removed) = self.ledger.get(&message.uid) {
            let is_new =
                message.timestamp_ms > removed.at_ms && (guard.incarnation, offset) >= removed.next;
            let was_read_before = since <= removed.since;
            if !is_new {
                let is_old = was_read_before || message.timestamp_ms <= removed.at_ms;
                return self.settle(message, is_old);
            }
            assert!(
                !was_read_before,
                "{message:?} at {offset} revives its order"
            );
        }
        self.write(guard, offset, message);
        self.settle(message, true);
    }

    /// Notes whether a message's content is somewhere. Once it was, it need not be again.
    fn settle(&mut self, message: Message, is_settled: bool) {
        if is_settled {
            self.owed.remove(&message.id);
            self.settled.insert(message.id);
        } else if !self.settled.contains(&message.id) {
            self.owed.insert(message.id);
        }
    }

    fn write(&mut self, guard: &Guard, offset: Offset, message: Message) {
        let stored = Stored {
            written_by: Some(guard.source_at(offset)),
            message: Some(message.id),
            since: self.first_read[&message.id],
        };
        self.orders.insert(message.uid, stored);
    }

    /// Whether a message comes after the one that wrote a stored order, in the log as it is.
    fn is_later(&self, message: Message, stored: Stored) -> bool {
        let place = |id| self.places.get(&id);
        let written_by = stored.message.and_then(place);
        written_by.is_some_and(|written_by| Some(written_by) < place(message.id))
    }

    /// Whether it comes before it.
    fn is_earlier(&self, message: Message, stored: Stored) -> bool {
        let place = |id| self.places.get(&id);
        let here = place(message.id);
        here.is_some_and(|here| Some(here) < stored.message.and_then(place))
    }

    /// A message that was refused when it was read, and that is valid by now.
    fn replay_letter(&mut self) {
        let known: Vec<(Offset, Message)> = (0..self.row.next_offset.0)
            .filter_map(|offset| Some((Offset(offset), self.record_at(Offset(offset))?)))
            .filter(|(_, message)| self.first_read.contains_key(&message.id))
            .collect();
        if !self.is_seen() || known.is_empty() {
            return;
        }
        let (offset, message) = known[self.rng.usize(0..known.len())];
        self.tell(format!("replay {message:?} at {offset}"));
        let guard = self.guard();
        let is_guarded = !self.has(Mistake::LettersUnguarded);
        let folded = Folded {
            offset,
            message,
            is_replay: is_guarded,
            since: self.first_read[&message.id],
        };
        self.store_one(&guard, folded);
    }

    /// Reads everything, and checks that nothing of the log was left out.
    fn finish(&mut self) {
        for _ in 0..100 {
            self.look();
            self.accept();
            self.read_batch();
        }
        let end = Offset(i64::try_from(self.log.len()).unwrap());
        assert_eq!(self.row.next_offset, end, "not everything was read");
        for message in self.log.iter().flatten() {
            assert!(
                self.first_read.contains_key(&message.id) || self.waived.contains(&message.id),
                "{message:?} was never read"
            );
            assert!(!self.owed.contains(&message.id), "{message:?} is lost");
        }
    }
}

fn position(offset: Offset, message: Message) -> Position {
    Position {
        offset,
        timestamp_ms: Some(message.timestamp_ms),
    }
}

/// Returns the first history that fails, with what happened.
fn first_failure(histories: u64, mistake: Option<Mistake>) -> Option<String> {
    (0..histories).find_map(|seed| {
        let mut world = World::new(seed, mistake);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..STEPS {
                world.step();
            }
            world.finish();
        }));
        let panic = outcome.err()?;
        let why = panic.downcast_ref::<String>().cloned().unwrap_or_default();
        Some(format!("history {seed}: {why}\n{}", world.story.join("\n")))
    })
}

#[test]
fn nothing_older_wins_and_nothing_newer_is_lost_in_silence() {
    if let Some(failure) = first_failure(HISTORIES, None) {
        panic!("{failure}");
    }
}

#[test]
fn every_planted_mistake_is_found() {
    for mistake in Mistake::VARIANTS {
        let failure = first_failure(HISTORIES, Some(*mistake));
        assert!(failure.is_some(), "{mistake:?} is not found");
    }
}
