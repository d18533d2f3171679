//! The last events of the feed, in the form in which they are sent. This module is pure: it has no I/O and no clock.

use std::collections::{HashSet, VecDeque};
use std::mem;

use bytes::Bytes;
use serde_json::json;
use shared::events::Operation;

use super::filter::Marks;

/// The largest number of events kept. A client that has missed more than these cannot go on where it was.
const MAX_EVENTS: usize = 1000;
/// The largest size of the events kept. While millions of orders are ingested, this is enough for some seconds.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// When the uids of the gathered changes have this many bytes, they become an event without waiting for more.
const MAX_BATCH_BYTES: usize = 32 * 1024;
/// Tells browsers how long to wait before they connect again, in milliseconds.
const RETRY: &str = "retry: 3000\n";

/// What follows a position.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Event(Event),
    UpToDate,
    /// The ring no longer holds what followed.
    Gone,
}

/// An event, ready to be sent to every client that follows all orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) text: Bytes,
    /// The orders that the event names; `None` if it is for every client.
    pub(super) orders: Option<Marks>,
}

impl Event {
    fn bytes(&self) -> usize {
        let marks = self.orders.as_ref().map_or(0, Marks::bytes);
        self.text.len() + marks
    }
}

#[derive(Debug)]
pub(super) struct Ring {
    /// The beginning of every id, which tells the ids of this process from those of another one.
    process: String,
    pending: Vec<(Operation, String)>,
    pending_bytes: usize,
    events: VecDeque<Event>,
    bytes: usize,
    /// The sequence number of the last event. The first event has number 1.
    newest: u64,
}

impl Ring {
    pub(super) fn new(process: String) -> Self {
        Self {
            process,
            pending: Vec::new(),
            pending_bytes: 0,
            events: VecDeque::new(),
            bytes: 0,
            newest: 0,
        }
    }

    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// Gathers changes for [`Self::seal`].
    pub(super) fn publish(&mut self, operation: Operation, uids: Vec<String>) {
        self.pending_bytes += uids.iter().map(String::len).sum::<usize>();
        self.pending
            .extend(uids.into_iter().map(|uid| (operation, uid)));
        if self.pending_bytes >= MAX_BATCH_BYTES {
            self.seal();
        }
    }

    /// Makes one event per operation of the gathered changes. Of several changes of one order only the last one counts.
    pub(super) fn seal(&mut self) {
        let pending = self.take_pending();
        let mut seen = HashSet::new();
        let last = pending.iter().rev();
        let mut last: Vec<_> = last.filter(|(_, uid)| seen.insert(uid)).collect();
        last.reverse();
        for op in [Operation::Upsert, Operation::Delete] {
            let changed = last.iter().filter(|(operation, _)| *operation == op);
            let order_uids: Vec<&str> = changed.map(|(_, uid)| uid.as_str()).collect();
            if !order_uids.is_empty() {
                let marks = Marks::of(&order_uids);
                let data = json!({"op": op, "order_uids": order_uids});
                self.push("order", &data.to_string(), Some(marks));
            }
        }
    }

    /// Adds an event that says that any order may have changed. It stands for the gathered changes, too.
    pub(super) fn resync(&mut self) {
        self.take_pending();
        self.push("resync", "{}", None);
    }

    fn take_pending(&mut self) -> Vec<(Operation, String)> {
        self.pending_bytes = 0;
        mem::take(&mut self.pending)
    }

    fn push(&mut self, event: &str, data: &str, orders: Option<Marks>) {
        self.newest += 1;
        let text = Bytes::from(self.event(self.newest, event, data));
        let event = Event { text, orders };
        self.bytes += event.bytes();
        self.events.push_back(event);
        while self.events.len() > MAX_EVENTS || self.bytes > MAX_BYTES {
            self.bytes -= self.events.pop_front().map_or(0, |event| event.bytes());
        }
    }

    /// The text of one event. The data is JSON, which has no line breaks.
    fn event(&self, sequence: u64, event: &str, data: &str) -> String {
        let id = self.id(sequence);
        format!("{id}event: {event}\ndata: {data}\n\n")
    }

    /// The line that names an event, or the position behind it.
    pub(super) fn id(&self, sequence: u64) -> String {
        format!("id: {}-{sequence}\n", self.process)
    }

    /// Returns a client's first position, and what it is told first. A client that names no event begins now. It learns the
    /// newest id, so that it can go on from there even if no event comes before its connection ends.
    pub(super) fn greet(&self, last_event_id: Option<&str>) -> (u64, Bytes) {
        let known = last_event_id.map(|id| self.position(id));
        let greeting = match known {
            None => [RETRY, &self.id(self.newest), "\n"].concat(),
            Some(Some(_)) => format!("{RETRY}\n"),
            Some(None) => [RETRY, &self.event(self.newest, "resync", "{}")].concat(),
        };
        (known.flatten().unwrap_or(self.newest), greeting.into())
    }

    /// The position that an id names, if the ring still holds what follows.
    fn position(&self, id: &str) -> Option<u64> {
        let (process, sequence) = id.rsplit_once('-')?;
        let sequence = sequence.parse().ok()?;
        let is_known = process == self.process && sequence <= self.newest;
        (is_known && self.next(sequence) != Next::Gone).then_some(sequence)
    }

    /// What follows the event at `position`.
    pub(super) fn next(&self, position: u64) -> Next {
        let behind = usize::try_from(self.newest - position).unwrap_or(usize::MAX);
        if behind == 0 {
            return Next::UpToDate;
        }
        let index = self.events.len().checked_sub(behind);
        let event = index.and_then(|index| self.events.get(index));
        event.map_or(Next::Gone, |event| Next::Event(event.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> Ring {
        Ring::new("a".to_owned())
    }

    fn publish(ring: &mut Ring, operation: Operation, uids: &[&str]) {
        let uids = uids.iter().map(|uid| (*uid).to_owned()).collect();
        ring.publish(operation, uids);
    }

    fn text(ring: &Ring, position: u64) -> String {
        match ring.next(position) {
            Next::Event(event) => String::from_utf8(event.text.into()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_the_last_change_of_an_order_counts() {
        let mut ring = ring();
        publish(&mut ring, Operation::Upsert, &["x", "y"]);
        publish(&mut ring, Operation::Delete, &["x", "z"]);
        publish(&mut ring, Operation::Upsert, &["z"]);
        assert_eq!(ring.next(0), Next::UpToDate);
        ring.seal();
        let upsert = r#"{"op":"upsert","order_uids":["y","z"]}"#;
        assert_eq!(
            text(&ring, 0),
            format!("id: a-1\nevent: order\ndata: {upsert}\n\n")
        );
        let delete = r#"{"op":"delete","order_uids":["x"]}"#;
        assert_eq!(
            text(&ring, 1),
            format!("id: a-2\nevent: order\ndata: {delete}\n\n")
        );
        assert_eq!(ring.next(2), Next::UpToDate);
    }

    #[test]
    fn without_changes_there_is_no_event() {
        let mut ring = ring();
        ring.seal();
        assert_eq!(ring.newest(), 0);
    }

    #[test]
    fn resync_replaces_the_gathered_changes() {
        let mut ring = ring();
        publish(&mut ring, Operation::Upsert, &["x"]);
        ring.resync();
        ring.seal();
        assert_eq!(text(&ring, 0), "id: a-1\nevent: resync\ndata: {}\n\n");
        assert_eq!(ring.newest(), 1);
    }

    #[test]
    fn events_and_memory_are_bounded() {
        let mut ring = ring();
        for _ in 0..=MAX_EVENTS {
            ring.resync();
        }
        assert_eq!(ring.events.len(), MAX_EVENTS);
        assert_eq!(ring.next(0), Next::Gone);
        assert!(matches!(ring.next(1), Next::Event(_)));
        let uid = "x".repeat(MAX_BATCH_BYTES);
        for _ in 0..200 {
            publish(&mut ring, Operation::Upsert, &[&uid]);
            assert!(ring.pending.is_empty() && ring.bytes <= MAX_BYTES);
        }
        let held: usize = ring.events.iter().map(Event::bytes).sum();
        assert_eq!(held, ring.bytes);
    }

    #[test]
    fn client_goes_on_where_it_was_or_gets_resync() {
        let mut ring = ring();
        for _ in 0..=MAX_EVENTS {
            ring.resync();
        }
        let newest = ring.newest();
        let greeted = |id: Option<&str>| {
            let (position, greeting) = ring.greet(id);
            (position, String::from_utf8(greeting.into()).unwrap())
        };
        let (position, greeting) = greeted(None);
        assert_eq!(position, newest);
        assert_eq!(greeting, format!("retry: 3000\nid: a-{newest}\n\n"));
        for sequence in [1, 2, newest] {
            let (position, greeting) = greeted(Some(&format!("a-{sequence}")));
            assert_eq!((position, greeting.as_str()), (sequence, "retry: 3000\n\n"));
        }
        let later = format!("a-{}", newest + 1);
        for id in ["a-0", &later, "b-2", "a-", "a", "2", "", "a--2", "a-2x"] {
            let (position, greeting) = greeted(Some(id));
            assert_eq!(position, newest, "{id}");
            let resync = format!("id: a-{newest}\nevent: resync\ndata: {{}}\n\n");
            assert_eq!(greeting, format!("retry: 3000\n{resync}"), "{id}");
        }
    }
}
