//! Which events a client gets that follows only some orders.
//!
//! The ring holds events that are ready to be sent to everybody, and clients of all orders get them as they are. For the
//! others, each event also has the marks of its orders. Nearly always they show without reading the event that it names no
//! order of the client. Otherwise the event is read and written anew. This module is pure, too.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use shared::events::Operation;
use shared::order::OrderUid;

const DATA: &str = "data: ";

/// One key for all marks of the process, which no client can know.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The hashes of order ids, in ascending order. They take a fraction of the ids' room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marks(Arc<[u64]>);

impl Marks {
    pub(super) fn of(uids: &[&str]) -> Self {
        let mut marks: Vec<_> = uids.iter().map(|uid| HASHER.hash_one(uid)).collect();
        marks.sort_unstable();
        Self(marks.into())
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.0)
    }
}

/// The orders that a client follows.
#[derive(Debug)]
pub struct OrderSet {
    uids: HashSet<String>,
    marks: Vec<u64>,
}

impl OrderSet {
    /// Makes a set of these orders.
    pub fn new(uids: impl IntoIterator<Item = OrderUid>) -> Self {
        let uids: HashSet<_> = uids.into_iter().map(|uid| uid.to_string()).collect();
        let marks = uids.iter().map(|uid| HASHER.hash_one(uid.as_str()));
        Self {
            marks: marks.collect(),
            uids,
        }
    }

    /// Returns the event with the orders of this set only; `None` if it names none of them.
    pub(super) fn select(&self, text: &Bytes, orders: &Marks) -> Option<Bytes> {
        let may_name = |mark| orders.0.binary_search(mark).is_ok();
        self.marks.iter().any(may_name).then(|| self.read(text))?
    }

    fn read(&self, text: &Bytes) -> Option<Bytes> {
        let text = str::from_utf8(text).expect("events are written from strings");
        let (head, data) = text.split_once(DATA).expect("events have data");
        let mut data: Data = serde_json::from_str(data).expect("the data of an event is JSON");
        data.order_uids.retain(|uid| self.uids.contains(uid));
        let data = (!data.order_uids.is_empty()).then(|| json!(data).to_string())?;
        Some([head, DATA, &data, "\n\n"].concat().into())
    }
}

/// The data of the event `order`.
#[derive(Deserialize, Serialize)]
struct Data {
    op: Operation,
    order_uids: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_is_left_as_it_is_but_for_the_orders_of_others() {
        let orders = OrderSet::new(["b", "x", "d"].map(|uid| uid.parse().unwrap()));
        // An id that a trigger has sent may hold anything.
        let uids = ["a", "b", "c\"\n", "d"];
        let text = |uids: &[&str]| {
            let data = json!({"op": Operation::Delete, "order_uids": uids});
            Bytes::from(format!("id: p-7\nevent: order\ndata: {data}\n\n"))
        };
        let selected = orders.select(&text(&uids), &Marks::of(&uids));
        assert_eq!(selected, Some(text(&["b", "d"])));
        let uids = ["a", "c"];
        assert_eq!(orders.select(&text(&uids), &Marks::of(&uids)), None);
        let lying_marks = Marks::of(&["b"]);
        assert_eq!(orders.select(&text(&uids), &lying_marks), None);
    }
}
