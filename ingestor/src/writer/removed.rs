//! A batch and the ledger of removed orders: which of its messages would bring back what was removed, and which of its dead
//! letters name what was erased.

use std::collections::{HashMap, HashSet};

use diesel::prelude::*;
use shared::db::removed::Kind;
use uuid::Uuid;

use crate::batch::SourcedOrder;
use crate::dead_letters::DeadLetter;
use crate::guard::Guard;
use crate::ledger::{self, Entry, Hasher, Newest, Place, is_later, names};
use crate::record::{Consumer, Offset};

/// Where the messages of a batch come from, and which of them may have been read before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    pub(super) consumer: &'a Consumer,
    pub(super) guard: &'a Guard,
}

impl Reader<'_> {
    fn place(&self, order: &SourcedOrder<'_>) -> Place<'_> {
        Place {
            consumer: self.consumer,
            partition: self.guard.partition,
            incarnation: self.guard.incarnation,
            position: order.position,
        }
    }

    /// The time of a message that was never read before, if it is known.
    fn time_of_unread(&self, order: &SourcedOrder<'_>) -> Option<i64> {
        let position = order.position;
        position
            .timestamp_ms
            .filter(|_| !self.guard.is_replay(position))
    }
}

/// A message that would bring back what was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Old {
    pub(super) offset: Offset,
    /// Whether it was erased, not only deleted.
    pub(super) is_erased: bool,
}

/// Returns the messages among those written that are not new for what was removed. `inserted` are the orders that did not exist,
/// and `replaced` those that did.
///
/// What was deleted counts only if the order did not exist: it may have been created again since. What was erased counts in
/// any case, because an old message would write the erased values into the order that exists.
pub(super) fn find_old(
    connection: &mut PgConnection,
    reader: Reader<'_>,
    newest: Newest,
    inserted: &[SourcedOrder<'_>],
    replaced: &[SourcedOrder<'_>],
) -> QueryResult<Vec<Old>> {
    let Some(removed_at) = newest.removed_at else {
        return Ok(Vec::new());
    };
    let candidates: Vec<(&SourcedOrder<'_>, bool)> = [(inserted, false), (replaced, true)]
        .into_iter()
        // An order that exists can only be affected by an erasure.
        .filter(|(_, exists)| !exists || newest.erased_at.is_some())
        .flat_map(|(orders, exists)| orders.iter().map(move |order| (order, exists)))
        // The others are later than every entry.
        .filter(|(order, _)| !is_later(reader.time_of_unread(order), removed_at))
        .collect();
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    let hasher = Hasher::read(connection)?;
    let hashes: Vec<[Option<Uuid>; 2]> = (candidates.iter())
        .map(|(order, _)| {
            let customer = || hasher.hash(Kind::Customer, &order.order.customer_id);
            [
                Some(hasher.hash(Kind::Order, order.uid())),
                newest.erased_at.map(|_| customer()),
            ]
        })
        .collect();
    let all = hashes.iter().flatten().flatten().copied().collect();
    let times = candidates
        .iter()
        .map(|(order, _)| reader.time_of_unread(order));
    // No time at all if one of them is not known, or was read before.
    let oldest = times.min().flatten();
    let entries = ledger::find_since(connection, oldest, all)?;
    let judged = candidates.iter().zip(&hashes);
    Ok(judged
        .filter_map(|((order, exists), hashes)| {
            let place = reader.place(order);
            old(&entries, place, *exists, hashes.iter().flatten())
        })
        .collect())
}

fn old<'a>(
    entries: &HashMap<Uuid, Entry>,
    place: Place<'_>,
    exists: bool,
    hashes: impl Iterator<Item = &'a Uuid>,
) -> Option<Old> {
    let counting: Vec<&Entry> = hashes
        .filter_map(|hash| entries.get(hash))
        .filter(|entry| (entry.is_erased || !exists) && !entry.is_new(place))
        .collect();
    (!counting.is_empty()).then(|| Old {
        offset: place.position.offset,
        is_erased: counting.iter().any(|entry| entry.is_erased),
    })
}

/// Returns the offsets of those letters that name an erased order or customer. They must be kept without their bytes.
pub(super) fn find_erased_letters(
    connection: &mut PgConnection,
    newest: Newest,
    letters: &[DeadLetter],
) -> QueryResult<HashSet<Offset>> {
    if newest.erased_at.is_none() || letters.is_empty() {
        return Ok(HashSet::new());
    }
    let named = letters.iter().map(|letter| {
        let names = names::find(letter.key.as_deref(), letter.payload.as_deref());
        (letter.position.offset, names)
    });
    ledger::find_erased(connection, named)
}
