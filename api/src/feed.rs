//! The live feed: which orders have changed, to whoever keeps `GET /api/v1/events` open.
//!
//! The listener publishes a change only after the cache has applied it. A client that reads an order after its event
//! therefore never gets an older version from this process. All clients read one ring of ready-made events, each at its own
//! pace. A client costs only its position in the ring, not a queue of its own. A client whose position the ring no longer
//! holds is cut off, and told `resync` when it comes back. A client may follow only some orders: it then passes over what
//! names none of them.

mod filter;
mod ring;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use shared::events::Operation;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, Interval, interval_at, sleep};
use tokio_util::sync::CancellationToken;

pub use filter::OrderSet;
use ring::{Event, Next, Ring};

use crate::shares::{Exhausted, Portion, Shares};

/// The largest number of clients. Each holds one connection of this process for as long as it likes.
const MAX_CLIENTS: u32 = 1000;
/// The most clients of one address. A person has a few pages open, and a proxy should be trusted to name its clients.
const MAX_OF_ADDRESS: u32 = 100;
/// For how long changes are gathered after an event. The first change after a pause is sent at once.
const BATCH_INTERVAL: Duration = Duration::from_millis(500);
/// How often a client is sent a comment, which shows clients and proxies that the connection is alive.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
const HEARTBEAT: Bytes = Bytes::from_static(b":\n\n");

/// The changes of orders, as clients are told of them.
#[derive(Debug)]
pub struct Feed {
    ring: Mutex<Ring>,
    /// The sequence number of the newest event.
    newest_tx: watch::Sender<u64>,
    has_pending: Notify,
    places: Arc<Shares>,
}

/// Why a client's stream has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// The client was too slow: the ring no longer holds what it has not read.
    Slow,
    /// The process is stopping.
    Shutdown,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            ring: Mutex::new(Ring::new(format!("{:016x}", fastrand::u64(..)))),
            newest_tx: watch::Sender::new(0),
            has_pending: Notify::new(),
            places: Shares::new(MAX_CLIENTS, MAX_OF_ADDRESS),
        }
    }
}

impl Feed {
    /// Tells clients of orders that have changed. Must only be called after this process's cache has dropped them.
    pub fn publish(&self, operation: Operation, uids: Vec<String>) {
        self.change(|ring| ring.publish(operation, uids));
        self.has_pending.notify_one();
    }

    /// Tells clients that any order may have changed: they must read again whatever they show.
    pub fn resync(&self) {
        self.change(Ring::resync);
    }

    /// Sends the changes that were gathered, again and again, until `shutdown`.
    pub async fn run(&self, shutdown: CancellationToken) {
        let send_batches = async {
            loop {
                self.has_pending.notified().await;
                self.change(Ring::seal);
                sleep(BATCH_INTERVAL).await;
            }
        };
        shutdown.run_until_cancelled(send_batches).await;
    }

    /// Adds a client, which begins at the present moment or behind the event that it names. It follows all orders, or only
    /// some.
    ///
    /// # Errors
    /// Returns [`Exhausted`] if there are too many clients, or too many of its address.
    pub fn join(
        self: &Arc<Self>,
        address: IpAddr,
        last_event_id: Option<&str>,
        orders: Option<OrderSet>,
    ) -> Result<Client, Exhausted> {
        let place = self.places.take_now(address, 1)?;
        let newest_rx = self.newest_tx.subscribe();
        let (position, greeting) = self.ring.lock().greet(last_event_id);
        let start = Instant::now() + HEARTBEAT_INTERVAL;
        Ok(Client {
            feed: Arc::clone(self),
            orders,
            position,
            has_passed_over: false,
            greeting: Some(greeting),
            newest_rx,
            heartbeat: interval_at(start, HEARTBEAT_INTERVAL),
            _place: place,
        })
    }

    /// Changes the ring, and wakes the clients if it has new events.
    fn change(&self, change: impl FnOnce(&mut Ring)) {
        let newest = {
            let mut ring = self.ring.lock();
            change(&mut ring);
            ring.newest()
        };
        // Two threads may be here at the same time. The number must not go back.
        self.newest_tx.send_if_modified(|known| {
            let is_newer = *known < newest;
            *known = newest.max(*known);
            is_newer
        });
    }
}

/// One reader of the feed.
#[derive(Debug)]
pub struct Client {
    feed: Arc<Feed>,
    /// The orders that the client follows; `None` for all of them.
    orders: Option<OrderSet>,
    /// The sequence number of the last event that the client was given, or that was passed over for it.
    position: u64,
    /// Whether the client has not been told of its position, because events were passed over.
    has_passed_over: bool,
    greeting: Option<Bytes>,
    newest_rx: watch::Receiver<u64>,
    heartbeat: Interval,
    /// Held for as long as the client exists.
    _place: Portion,
}

impl Client {
    /// Waits for the next bytes of the client's stream.
    ///
    /// # Errors
    /// Returns a [`StreamEnd`] if the stream must end now.
    pub async fn next(&mut self, shutdown: &CancellationToken) -> Result<Bytes, StreamEnd> {
        if let Some(greeting) = self.greeting.take() {
            return Ok(greeting);
        }
        loop {
            if shutdown.is_cancelled() {
                return Err(StreamEnd::Shutdown);
            }
            // This comes before the look at the ring, so that a later event ends the wait below.
            self.newest_rx.mark_unchanged();
            let next = self.feed.ring.lock().next(self.position);
            match next {
                Next::Event(event) => {
                    self.position += 1;
                    match self.select(event) {
                        Some(text) => return Ok(text),
                        None => continue,
                    }
                }
                Next::Gone => return Err(StreamEnd::Slow),
                Next::UpToDate => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return Err(StreamEnd::Shutdown),
                // This cannot fail: the sender belongs to the feed.
                _ = self.newest_rx.changed() => {}
                _ = self.heartbeat.tick() => return Ok(self.heartbeat_text()),
            }
        }
    }

    /// What the client gets of an event, if anything.
    fn select(&mut self, event: Event) -> Option<Bytes> {
        let selected = match (&self.orders, &event.orders) {
            (Some(followed), Some(named)) => followed.select(&event.text, named),
            _ => Some(event.text),
        };
        self.has_passed_over = selected.is_none();
        selected
    }

    /// A client whose events were passed over learns the id of the last one, like in the greeting. Otherwise it would come back
    /// with an id that is too old, although it has missed nothing.
    fn heartbeat_text(&mut self) -> Bytes {
        match std::mem::take(&mut self.has_passed_over) {
            true => [&self.feed.ring.lock().id(self.position), "\n"]
                .concat()
                .into(),
            false => HEARTBEAT,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::time::interval;

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    async fn next(client: &mut Client) -> String {
        let bytes = client.next(&CancellationToken::new()).await.unwrap();
        String::from_utf8(bytes.into()).unwrap()
    }

    #[tokio::test]
    async fn first_change_is_sent_at_once_and_later_changes_together() {
        let feed = Arc::new(Feed::default());
        let mut client = feed.join(ADDRESS, None, None).unwrap();
        next(&mut client).await;
        let stop = CancellationToken::new();
        let changes = async {
            let started = Instant::now();
            feed.publish(Operation::Upsert, vec!["a".to_owned()]);
            assert!(next(&mut client).await.contains(r#"["a"]"#));
            for uid in ["b", "c", "b"] {
                feed.publish(Operation::Upsert, vec![uid.to_owned()]);
            }
            assert!(next(&mut client).await.contains(r#"["c","b"]"#));
            assert!(started.elapsed() >= BATCH_INTERVAL);
            stop.cancel();
        };
        tokio::join!(feed.run(stop.clone()), changes);
    }

    #[tokio::test]
    async fn comments_are_sent_while_nothing_happens() {
        let feed = Arc::new(Feed::default());
        let mut client = feed.join(ADDRESS, None, None).unwrap();
        next(&mut client).await;
        assert_eq!(client.heartbeat.period().as_secs(), 15);
        client.heartbeat = interval(Duration::from_millis(1));
        for _ in 0..3 {
            assert_eq!(next(&mut client).await, ":\n\n");
        }
    }

    #[tokio::test]
    async fn client_of_some_orders_learns_its_position_although_nothing_is_sent() {
        let feed = Arc::new(Feed::default());
        let orders = OrderSet::new(["a".parse().unwrap()]);
        let mut client = feed.join(ADDRESS, None, Some(orders)).unwrap();
        next(&mut client).await;
        let publish = |uid: &str| {
            feed.publish(Operation::Upsert, vec![uid.to_owned()]);
            feed.change(Ring::seal);
        };
        publish("b");
        publish("c");
        client.heartbeat = interval(Duration::from_millis(1));
        let told = next(&mut client).await;
        assert!(
            told.starts_with("id: ") && told.ends_with("-2\n\n"),
            "{told}"
        );
        assert_eq!(next(&mut client).await, ":\n\n");
        client.heartbeat = interval_at(Instant::now() + HEARTBEAT_INTERVAL, HEARTBEAT_INTERVAL);
        publish("a");
        assert!(next(&mut client).await.contains(r#""order_uids":["a"]"#));
    }

    #[tokio::test]
    async fn number_of_clients_is_limited() {
        let feed = Arc::new(Feed::default());
        let join = |number| feed.join(Ipv4Addr::from_bits(number).into(), None, None);
        let numbers = 0..MAX_CLIENTS;
        let joined = numbers.map(|number| join(number / MAX_OF_ADDRESS).unwrap());
        let mut clients: Vec<_> = joined.collect();
        assert_eq!(join(0).unwrap_err(), Exhausted::Share);
        assert_eq!(join(u32::MAX).unwrap_err(), Exhausted::All);
        clients.remove(0);
        assert!(join(u32::MAX).is_ok());
    }
}
