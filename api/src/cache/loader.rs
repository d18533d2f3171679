//! Readers of the cache, and the loads that they share.
//!
//! A load runs in a task of its own: a client that hangs up must not take the answer from the others, and a panic in a
//! load must end in an answer for all of them. Which load may be joined or stored is the core's to say, not this file's.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::Instrument;

use super::core::{Loaded, Lookup, Placement, Ticket};
use super::{OrderCache, ReadyOrder};
use crate::repository::StoreError;

/// What a load brought: the order or its absence, and whether it was stored.
type LoadResult = Result<(Option<Arc<ReadyOrder>>, bool), StoreError>;

/// What readers wait on while a load runs.
pub type LoadWaiter = watch::Receiver<Option<LoadResult>>;
/// The load's end of it; dropping it unsent wakes the readers too.
pub(super) type LoadSender = watch::Sender<Option<LoadResult>>;

/// An answer and where it came from.
#[derive(Debug)]
pub struct Fetched {
    /// The order; `None` where there is none.
    pub order: Option<Arc<ReadyOrder>>,
    /// Where it came from.
    pub source: Source,
}

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The cache; the listener's proof was this old.
    Cache {
        /// Time since the proof.
        proof_age: Duration,
    },
    /// The database, by a load of this reader's.
    Load {
        /// Whether the cache took the result.
        stored: bool,
    },
    /// The database, by a load that another reader had started.
    SharedLoad,
    /// The database, past the cache, which may serve nothing.
    Blind,
}

pub(super) fn load_channel() -> (LoadWaiter, LoadSender) {
    let (sender, waiter) = watch::channel(None);
    (waiter, sender)
}

impl OrderCache {
    /// Reads an order.
    ///
    /// # Errors
    /// [`StoreError`] where the database had to be asked and gave no answer.
    pub async fn get(self: &Arc<Self>, uid: &str) -> Result<Fetched, StoreError> {
        let is_fresh = self.listener.is_fresh(self.lease);
        let (order, source) = match self.core.look_up(uid, is_fresh, load_channel) {
            Lookup::Hit(order) => (Some(order), self.cache_source()),
            Lookup::Missing => (None, self.cache_source()),
            Lookup::Join(waiter) => (wait_for_load(waiter).await?.0, Source::SharedLoad),
            Lookup::Load(ticket, sender) => {
                let waiter = sender.subscribe();
                let cache = Arc::clone(self);
                tokio::spawn(cache.load(ticket, sender).in_current_span());
                let (order, stored) = wait_for_load(waiter).await?;
                (order, Source::Load { stored })
            }
            Lookup::Bypass => {
                let order = self.repository.find_order(uid).await?;
                (order.map(|order| Arc::new(order.into())), Source::Blind)
            }
        };
        Ok(Fetched { order, source })
    }

    fn cache_source(&self) -> Source {
        Source::Cache {
            proof_age: self.listener.proof_age().unwrap_or_default(),
        }
    }

    async fn load(self: Arc<Self>, ticket: Ticket, sender: LoadSender) {
        let load = OwnedLoad::new(&self, ticket, sender);
        let result = self.repository.find_order(load.uid()).await;
        load.finish(
            result.map(|order| order.map(ReadyOrder::from)),
            Placement::Hot,
        );
    }
}

async fn wait_for_load(mut waiter: LoadWaiter) -> LoadResult {
    match waiter.wait_for(Option::is_some).await {
        Ok(result) => result.clone().unwrap_or(Err(StoreError::Internal)),
        // The load's task panicked; what it said is in the log.
        Err(_) => Err(StoreError::Internal),
    }
}

/// A load that gives its slot back however it ends.
#[derive(Debug)]
pub(super) struct OwnedLoad<'a> {
    cache: &'a OrderCache,
    ticket: Option<Ticket>,
    uid: Box<str>,
    // Dropped after `drop` has run: readers are woken when the slot is free again.
    sender: LoadSender,
}

impl<'a> OwnedLoad<'a> {
    pub(super) fn new(cache: &'a OrderCache, ticket: Ticket, sender: LoadSender) -> Self {
        Self {
            cache,
            uid: ticket.uid().into(),
            ticket: Some(ticket),
            sender,
        }
    }

    pub(super) fn uid(&self) -> &str {
        &self.uid
    }

    /// Stores what was brought, if that is still allowed, and answers everyone who waits.
    pub(super) fn finish(
        mut self,
        result: Result<Option<ReadyOrder>, StoreError>,
        placement: Placement,
    ) {
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        let order = result.map(|order| order.map(Arc::new));
        let loaded = match &order {
            Ok(Some(order)) => Loaded::Found(Arc::clone(order), order.weight_bytes()),
            Ok(None) => Loaded::NotFound,
            Err(_) => Loaded::Failed,
        };
        let stored = self.cache.core.complete(ticket, loaded, placement);
        self.sender
            .send_replace(Some(order.map(|order| (order, stored))));
    }
}

impl Drop for OwnedLoad<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.cache
                .core
                .complete(ticket, Loaded::Failed, Placement::Hot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use shared::config::{DatabaseSettings, Secret, SslMode};
    use shared::db::{PoolLimits, pool};

    use super::*;
    use crate::config::CacheSettings;
    use crate::repository::Repository;

    /// A cache whose database is never asked.
    fn cache() -> OrderCache {
        let database = DatabaseSettings {
            host: "127.0.0.1".to_owned(),
            port: 1,
            user: String::new(),
            password: Secret::new(""),
            name: String::new(),
            sslmode: SslMode::Disable,
            sslrootcert: None,
        };
        let limit = Duration::from_secs(1);
        let limits = PoolLimits {
            size: 1,
            wait: limit,
            statement_timeout: limit,
        };
        let pool = pool(&database, "test", limits).unwrap();
        let repository = Repository::new(pool.clone(), pool, limit);
        let settings = CacheSettings {
            capacity: NonZeroUsize::new(10).unwrap(),
            warmup: 0,
            lease: limit,
        };
        let cache = OrderCache::new(&settings, repository);
        cache.core.open_fills();
        cache.core.set_serving(true);
        cache
    }

    #[tokio::test]
    async fn load_that_panics_answers_its_readers_and_frees_its_slot() {
        let cache = Arc::new(cache());
        let Lookup::Load(ticket, sender) = cache.core.look_up("a", true, load_channel) else {
            panic!("nothing was loading");
        };
        let Lookup::Join(waiter) = cache.core.look_up("a", true, load_channel) else {
            panic!("the load is there to be joined");
        };
        let panicking = Arc::clone(&cache);
        let load = tokio::spawn(async move {
            let _load = OwnedLoad::new(&panicking, ticket, sender);
            panic!("a bug");
        });
        assert_eq!(
            wait_for_load(waiter).await.unwrap_err(),
            StoreError::Internal
        );
        assert!(load.await.is_err());
        assert!(matches!(
            cache.core.look_up("a", true, load_channel),
            Lookup::Load(..)
        ));
        assert_eq!(cache.core.counters().loads_failed.get(), 1);
    }
}
