//! The live feed: which orders have changed, to whoever keeps `GET /api/v1/events` open.
//!
//! The listener publishes what the cache has taken already, so nobody who reads an order after its event is answered older
//! by this process. All clients read one ring of ready-made events, each at its own pace: a client costs a place in it,
//! no queue of its own. One whose place the ring has left behind is cut off, and told `resync` when it comes back.

mod ring;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use shared::events::Operation;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, Interval, interval_at, sleep};
use tokio_util::sync::CancellationToken;

use ring::{Next, Ring};

/// Most clients: one of this process's connections each, for as long as they like.
const MAX_CLIENTS: usize = 1000;
/// After an event, further changes are gathered for this long. The first after a pause goes out at once.
const BATCH_INTERVAL: Duration = Duration::from_millis(500);
/// How often a client is sent a comment: it shows proxies, and clients themselves, that the connection is alive.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
const HEARTBEAT: Bytes = Bytes::from_static(b":\n\n");

/// The changes of orders, as clients are told of them.
#[derive(Debug)]
pub struct Feed {
    ring: Mutex<Ring>,
    /// The sequence number of the newest event.
    newest_tx: watch::Sender<u64>,
    has_pending: Notify,
    places: Arc<Semaphore>,
}

/// Why a client's stream has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// The client was slower than the ring is long.
    Slow,
    /// The process stops.
    Shutdown,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            ring: Mutex::new(Ring::new(format!("{:016x}", fastrand::u64(..)))),
            newest_tx: watch::Sender::new(0),
            has_pending: Notify::new(),
            places: Arc::new(Semaphore::new(MAX_CLIENTS)),
        }
    }
}

impl Feed {
    /// Tells of orders that have changed. Only once this process's cache has dropped them.
    pub fn publish(&self, operation: Operation, uids: Vec<String>) {
        let newest = {
            let mut ring = self.ring();
            ring.publish(operation, uids);
            ring.newest()
        };
        self.announce(newest);
        self.has_pending.notify_one();
    }

    /// Any order may have changed: clients are to read again whatever they show.
    pub fn resync(&self) {
        let newest = {
            let mut ring = self.ring();
            ring.resync();
            ring.newest()
        };
        self.announce(newest);
    }

    /// Sends out what is gathered, until `shutdown`.
    pub async fn run(&self, shutdown: CancellationToken) {
        let send_batches = async {
            loop {
                self.has_pending.notified().await;
                let newest = {
                    let mut ring = self.ring();
                    ring.seal();
                    ring.newest()
                };
                self.announce(newest);
                sleep(BATCH_INTERVAL).await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = send_batches => {}
        }
    }

    /// Takes a client in: from now on, or from behind the event that it names. `None` where there are too many.
    pub fn join(self: &Arc<Self>, last_event_id: Option<&str>) -> Option<Client> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let newest_rx = self.newest_tx.subscribe();
        let (position, greeting) = self.ring().greet(last_event_id);
        let start = Instant::now() + HEARTBEAT_INTERVAL;
        Some(Client {
            feed: Arc::clone(self),
            position,
            greeting: Some(greeting),
            newest_rx,
            heartbeat: interval_at(start, HEARTBEAT_INTERVAL),
            _place: place,
        })
    }

    /// Two may come here at a time; the number never goes back.
    fn announce(&self, newest: u64) {
        self.newest_tx.send_if_modified(|known| {
            let is_newer = *known < newest;
            *known = newest.max(*known);
            is_newer
        });
    }

    /// A panic under the lock can only come from a failed allocation; the ring stays usable.
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One reader of the feed.
#[derive(Debug)]
pub struct Client {
    feed: Arc<Feed>,
    /// The last event that it has been given.
    position: u64,
    greeting: Option<Bytes>,
    newest_rx: watch::Receiver<u64>,
    heartbeat: Interval,
    /// Held for as long as the client is there.
    _place: OwnedSemaphorePermit,
}

impl Client {
    /// Waits for the next bytes of its stream.
    ///
    /// # Errors
    /// [`StreamEnd`], after which there are none.
    pub async fn next(&mut self, shutdown: &CancellationToken) -> Result<Bytes, StreamEnd> {
        if let Some(greeting) = self.greeting.take() {
            return Ok(greeting);
        }
        loop {
            if shutdown.is_cancelled() {
                return Err(StreamEnd::Shutdown);
            }
            // Before the ring is looked at: an event that comes afterwards ends the wait below.
            self.newest_rx.mark_unchanged();
            match self.feed.ring().next(self.position) {
                Next::Event(event) => {
                    self.position += 1;
                    return Ok(event);
                }
                Next::Gone => return Err(StreamEnd::Slow),
                Next::UpToDate => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return Err(StreamEnd::Shutdown),
                // The sender lives in the feed: it cannot be gone.
                _ = self.newest_rx.changed() => {}
                _ = self.heartbeat.tick() => return Ok(HEARTBEAT),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::interval;

    use super::*;

    async fn next(client: &mut Client) -> String {
        let bytes = client.next(&CancellationToken::new()).await.unwrap();
        String::from_utf8(bytes.into()).unwrap()
    }

    #[tokio::test]
    async fn the_first_change_goes_out_at_once_and_those_after_it_together() {
        let feed = Arc::new(Feed::default());
        let mut client = feed.join(None).unwrap();
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
    async fn comments_come_while_nothing_happens() {
        let feed = Arc::new(Feed::default());
        let mut client = feed.join(None).unwrap();
        next(&mut client).await;
        assert_eq!(client.heartbeat.period().as_secs(), 15);
        client.heartbeat = interval(Duration::from_millis(1));
        for _ in 0..3 {
            assert_eq!(next(&mut client).await, ":\n\n");
        }
    }

    #[tokio::test]
    async fn places_are_limited_and_free_again() {
        let feed = Arc::new(Feed::default());
        let mut clients: Vec<_> = (0..MAX_CLIENTS).map(|_| feed.join(None).unwrap()).collect();
        assert!(feed.join(None).is_none());
        clients.pop();
        assert!(feed.join(None).is_some());
    }
}
