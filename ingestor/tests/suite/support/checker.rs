//! Checks the promise of exactly once: compares what Kafka acknowledged with what triggers recorded of every transaction.
//!
//! Every move of a partition's offset tells which messages its transaction has settled. So it also tells which rows the
//! transaction must have written: the last message of each order in that range, and every bad one.

mod evidence;

use std::collections::{BTreeMap, HashMap, HashSet};

use shared::order::Order;

use super::load::{Content, Message};
pub use evidence::{Advance, Evidence, INSTALL, Letter, Write};

/// A partition and an offset.
pub type Place = (i32, i64);

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A partition's offset went back or jumped. The ranges of its moves must join.
    OffsetMoved {
        partition: i32,
        expected: i64,
        found: i64,
    },
    /// A partition is not settled to its end.
    NotSettled {
        partition: i32,
        end: i64,
        next_offset: i64,
    },
    /// An order was skipped.
    Lost(Place),
    /// A message was applied in more than one transaction, or more than once in one.
    AppliedTwice(Place),
    /// The rows and the offset of a message were committed separately.
    CommittedApart(Place),
    /// Nobody has sent this order, or not with this content.
    NeverSent(Place),
    /// An earlier message of an order was applied after a later one.
    Reordered {
        uid: String,
        earlier: u64,
        later: u64,
    },
    /// A stored order differs from its last message in a field or an item.
    NotTheLastMessage { uid: String },
    /// A bad message has no dead letter, or one with other bytes.
    NoDeadLetter(Place),
    /// A bad message has several dead letters.
    DeadLetterTwice(Place),
    /// A dead letter belongs to a message that was not bad.
    GoodDeadLetter(Place),
}

/// Returns everything that is wrong, if all of `messages` should be settled and nobody else has written.
pub fn violations(messages: &[Message], evidence: &Evidence) -> Vec<Violation> {
    let mut found = Vec::new();
    check_offsets(messages, evidence, &mut found);
    let settled = Settled::of(evidence);
    check_writes(messages, evidence, &settled, &mut found);
    check_order_of_writes(evidence, &mut found);
    check_rows(messages, evidence, &mut found);
    check_letters(messages, evidence, &settled, &mut found);
    found
}

/// The move of the offset that has passed a message.
struct Settled<'a> {
    advances: BTreeMap<i32, Vec<&'a Advance>>,
}

impl<'a> Settled<'a> {
    fn of(evidence: &'a Evidence) -> Self {
        let mut advances: BTreeMap<i32, Vec<&Advance>> = BTreeMap::new();
        for advance in &evidence.advances {
            advances.entry(advance.partition).or_default().push(advance);
        }
        Self { advances }
    }

    /// The last one if there are several, which is a violation of its own.
    fn by(&self, (partition, offset): Place) -> Option<&'a Advance> {
        let advances = self.advances.get(&partition)?;
        let mut passing = advances
            .iter()
            .filter(|advance| (advance.from..advance.to).contains(&offset));
        passing.next_back().copied()
    }
}

fn check_offsets(messages: &[Message], evidence: &Evidence, found: &mut Vec<Violation>) {
    let mut ends: BTreeMap<i32, i64> = BTreeMap::new();
    for message in messages {
        let end = ends.entry(message.partition).or_default();
        *end = (*end).max(message.offset + 1);
    }
    let mut reached: BTreeMap<i32, i64> = BTreeMap::new();
    for advance in &evidence.advances {
        let expected = reached.entry(advance.partition).or_default();
        if advance.from != *expected || advance.to <= advance.from {
            found.push(Violation::OffsetMoved {
                partition: advance.partition,
                expected: *expected,
                found: advance.from,
            });
        }
        *expected = advance.to;
    }
    for (partition, end) in ends {
        let next_offset = evidence.next_offsets.get(&partition).copied().unwrap_or(0);
        if next_offset != end {
            found.push(Violation::NotSettled {
                partition,
                end,
                next_offset,
            });
        }
    }
}

fn check_writes(
    messages: &[Message],
    evidence: &Evidence,
    settled: &Settled<'_>,
    found: &mut Vec<Violation>,
) {
    let mut writes: HashMap<Place, Vec<&Write>> = HashMap::new();
    for write in &evidence.writes {
        writes.entry(write.place).or_default().push(write);
    }
    // A transaction must have written the last message of each order in its range.
    let mut last: HashMap<(i32, i64, &str), i64> = HashMap::new();
    for (place, order) in orders(messages) {
        if let Some(advance) = settled.by(place) {
            let offset = last
                .entry((advance.partition, advance.from, order.order_uid.as_str()))
                .or_insert(place.1);
            *offset = place.1.max(*offset);
        }
    }
    let mut sent: HashMap<Place, &Order> = HashMap::new();
    for (place, order) in orders(messages) {
        sent.insert(place, order);
        let Some(advance) = settled.by(place) else {
            found.push(Violation::Lost(place));
            continue;
        };
        let key = (advance.partition, advance.from, order.order_uid.as_str());
        let is_superseded = last[&key] > place.1;
        match writes.get(&place).map_or(&[][..], Vec::as_slice) {
            [] if is_superseded => {}
            [] => found.push(Violation::Lost(place)),
            [write] if write.txid == advance.txid => {}
            [_] => found.push(Violation::CommittedApart(place)),
            [..] => found.push(Violation::AppliedTwice(place)),
        }
    }
    let unsent = evidence.writes.iter().filter(|write| {
        sent.get(&write.place).is_none_or(|order| {
            order.order_uid.as_str() != write.uid || order.internal_signature != write.signature
        })
    });
    found.extend(unsent.map(|write| Violation::NeverSent(write.place)));
}

fn orders(messages: &[Message]) -> impl Iterator<Item = (Place, &Order)> {
    messages
        .iter()
        .filter_map(|message| match &message.content {
            Content::Order(order) => Some(((message.partition, message.offset), &**order)),
            Content::Bad(_) => None,
        })
}

/// The number of an order's message, see `Load`.
fn sequence(signature: &str) -> u64 {
    signature.parse().unwrap_or(0)
}

fn check_order_of_writes(evidence: &Evidence, found: &mut Vec<Violation>) {
    let mut latest: HashMap<&str, u64> = HashMap::new();
    for write in &evidence.writes {
        let number = sequence(&write.signature);
        let before = latest.insert(&write.uid, number).unwrap_or(0);
        if number < before {
            found.push(Violation::Reordered {
                uid: write.uid.clone(),
                earlier: number,
                later: before,
            });
        }
    }
}

fn check_rows(messages: &[Message], evidence: &Evidence, found: &mut Vec<Violation>) {
    let mut last: BTreeMap<&str, &Order> = BTreeMap::new();
    for (_, order) in orders(messages) {
        let known = last.entry(order.order_uid.as_str()).or_insert(order);
        if sequence(&order.internal_signature) > sequence(&known.internal_signature) {
            *known = order;
        }
    }
    for (uid, order) in &last {
        if evidence.orders.get(*uid) != Some(*order) {
            found.push(Violation::NotTheLastMessage {
                uid: (*uid).to_owned(),
            });
        }
    }
    let unknown = evidence
        .orders
        .keys()
        .filter(|uid| !last.contains_key(uid.as_str()));
    found.extend(unknown.map(|uid| Violation::NotTheLastMessage { uid: uid.clone() }));
}

fn check_letters(
    messages: &[Message],
    evidence: &Evidence,
    settled: &Settled<'_>,
    found: &mut Vec<Violation>,
) {
    let mut letters: HashMap<Place, Vec<&Letter>> = HashMap::new();
    for letter in &evidence.letters {
        letters.entry(letter.place).or_default().push(letter);
    }
    let mut bad: HashSet<Place> = HashSet::new();
    for message in messages {
        let place = (message.partition, message.offset);
        let Content::Bad(bytes) = &message.content else {
            continue;
        };
        bad.insert(place);
        let txid = settled.by(place).map(|advance| advance.txid);
        match letters.get(&place).map_or(&[][..], Vec::as_slice) {
            [letter] if letter.payload != *bytes => found.push(Violation::NoDeadLetter(place)),
            [letter] if Some(letter.txid) != txid => found.push(Violation::CommittedApart(place)),
            [_] => {}
            [] => found.push(Violation::NoDeadLetter(place)),
            [..] => found.push(Violation::DeadLetterTwice(place)),
        }
    }
    let good = letters.keys().filter(|place| !bad.contains(place));
    found.extend(good.map(|place| Violation::GoodDeadLetter(*place)));
}
