//! Limits the number of connections. When all places are taken, a new client gets the place of one that does nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::deadlines::ClientTimer;

/// How long to wait for a place before looking again for a client that does nothing. A displaced client is gone at once.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The places of a server for connections.
#[derive(Debug)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    clients: HashMap<u64, ClientTimer>,
    last_number: u64,
}

/// A connection's place, which is free again when the value is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    pub(super) fn new(count: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(count)),
            taken: Mutex::default(),
        })
    }

    /// Waits for a free place. While there is none, it disconnects the client that can best be spared. While every client
    /// waits for an answer, it waits for one of them to end.
    pub(super) async fn wait_for_one(&self) -> OwnedSemaphorePermit {
        loop {
            if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
                return permit;
            }
            self.displace_one();
            let freed = Arc::clone(&self.free).acquire_owned();
            if let Ok(Ok(permit)) = tokio::time::timeout(LOOK_AGAIN, freed).await {
                return permit;
            }
        }
    }

    /// Gives a place to a client.
    pub(super) fn take(
        self: &Arc<Self>,
        permit: OwnedSemaphorePermit,
        client: ClientTimer,
    ) -> Place {
        let mut taken = self.taken.lock();
        taken.last_number += 1;
        let number = taken.last_number;
        taken.clients.insert(number, client);
        Place {
            places: Arc::clone(self),
            number,
            _permit: permit,
        }
    }

    fn displace_one(&self) {
        let taken = self.taken.lock();
        let spare = taken.clients.values();
        let spare = spare.filter_map(|client| Some((client.spare()?, client)));
        if let Some((_, client)) = spare.min_by_key(|(spare, _)| *spare) {
            client.displace();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken.lock().clients.remove(&self.number);
    }
}
