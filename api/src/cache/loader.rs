//! Readers of the cache, and the loads that they share.
//!
//! A load does not run in the task of the reader who began it (see `batches`). A client that hangs up must not take the answer
//! from the others, and after a panic in a load all of its readers must get an answer. The core decides which load may be
//! joined and stored.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::Either;
use shared::db::HistoryId;
use shared::traces::{self, Span, SpanContext};
use tokio::sync::watch;

use super::core::{Demand, Loaded, Lookup, Placement, Stored, Ticket};
use super::{OrderCache, ReadyOrder};
use crate::repository::{Answered, StoreError};

/// The result of a load: the order or its absence, and whether it was stored.
type LoadResult = Result<(Option<ReadyOrder>, bool), StoreError>;

/// What readers wait on while a load runs.
#[derive(Clone, Debug)]
pub struct LoadWaiter {
    result_rx: watch::Receiver<Option<LoadResult>>,
    /// The span of the load, if the reader who began it is traced. Other readers link to it.
    span: Option<SpanContext>,
}

/// The load's end of the channel. Dropping it without sending also wakes the readers.
#[derive(Debug)]
pub struct LoadSender {
    result_tx: watch::Sender<Option<LoadResult>>,
    /// The span of the load, as above. It also covers the time in which the load waits for its turn.
    span: Option<Span>,
}

/// An answer, and where it came from.
#[derive(Debug)]
pub struct Fetched {
    /// The order, or `None` if it does not exist.
    pub order: Option<ReadyOrder>,
    /// Where the answer came from.
    pub source: Source,
}

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From the cache.
    Cache {
        /// The age of the listener's proof.
        proof_age: Duration,
    },
    /// From the database by a load, because nothing was cached or the client demanded it.
    Database(Demand, Share),
    /// From the database past the cache, because the cache is blind.
    Blind,
}

/// A reader's share in a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// The load began for this reader, and its result was stored.
    Stored,
    /// The load began for this reader. Its result was not stored, because an event or a loss of the listener came in between
    /// or because the order is too large for the cache.
    Discarded,
    /// The load began for another reader.
    Collapsed,
}

/// Makes the channel of a load that is not traced.
pub(super) fn load_channel() -> (LoadWaiter, LoadSender) {
    load_channel_of(None)
}

fn load_channel_of(span: Option<Span>) -> (LoadWaiter, LoadSender) {
    let (result_tx, result_rx) = watch::channel(None);
    let waiter = LoadWaiter {
        result_rx,
        span: span.as_ref().map(Span::context),
    };
    (waiter, LoadSender { result_tx, span })
}

impl OrderCache {
    /// Reads an order. Returns a cached answer at once, and any other answer as a future.
    ///
    /// # Errors
    /// The future returns a [`StoreError`] if the database gave no answer or the order cannot be read.
    pub fn get(
        self: &Arc<Self>,
        uid: &str,
        demand: Demand,
    ) -> Either<Fetched, impl Future<Output = Result<Fetched, StoreError>> + Send + use<>> {
        let proof_age = self.listener.fresh_proof_age();
        let cached = |order| Fetched {
            order,
            source: Source::Cache {
                proof_age: proof_age.unwrap_or_default(),
            },
        };
        let make_waiter = || load_channel_of(traces::part("load an order"));
        let looked_up = self
            .core
            .look_up(uid, demand, proof_age.is_some(), make_waiter);
        let (waiter, is_shared) = match looked_up {
            Lookup::Hit(order) => return Either::Left(cached(Some(order))),
            Lookup::Missing => return Either::Left(cached(None)),
            Lookup::Bypass => return Either::Right(Either::Left(self.read_past(uid))),
            Lookup::Join(waiter) => (waiter, true),
            Lookup::Next(waiter) => (waiter, false),
            Lookup::Load(ticket, sender) => {
                let waiter = sender.subscribe();
                self.queue.push(OwnedLoad::new(self, ticket, sender));
                (waiter, false)
            }
        };
        Either::Right(Either::Right(async move {
            if let Some(load) = waiter.span.clone().filter(|_| is_shared)
                && let Some(reader) = traces::current()
            {
                reader.link_to(load);
            }
            let (order, is_stored) = wait_for_load(waiter).await?;
            let share = match (is_shared, is_stored) {
                (true, _) => Share::Collapsed,
                (false, true) => Share::Stored,
                (false, false) => Share::Discarded,
            };
            let source = Source::Database(demand, share);
            Ok(Fetched { order, source })
        }))
    }

    fn read_past(
        self: &Arc<Self>,
        uid: &str,
    ) -> impl Future<Output = Result<Fetched, StoreError>> + Send + use<> {
        let (cache, uid) = (Arc::clone(self), uid.to_owned());
        async move {
            let Answered { content, history } = cache.repository.find_order(&uid).await?;
            cache
                .core
                .supersede(&uid, content.as_ref().map(|order| order.version));
            Ok(Fetched {
                order: content.map(|order| ReadyOrder::read_in(history, &order)),
                source: Source::Blind,
            })
        }
    }
}

impl LoadSender {
    fn subscribe(&self) -> LoadWaiter {
        LoadWaiter {
            result_rx: self.result_tx.subscribe(),
            span: self.span.as_ref().map(Span::context),
        }
    }
}

async fn wait_for_load(mut waiter: LoadWaiter) -> LoadResult {
    match waiter.result_rx.wait_for(Option::is_some).await {
        Ok(result) => result.clone().unwrap_or(Err(StoreError::Internal)),
        // The load panicked, and this is in the log.
        Err(_) => Err(StoreError::Internal),
    }
}

/// A load that gives its slot back however it ends, and begins the next load if readers wait for one.
#[derive(Debug)]
pub(super) struct OwnedLoad {
    cache: Arc<OrderCache>,
    /// Taken when the load ends.
    ticket: Option<Ticket>,
    // The fields are dropped after `drop` has run, so the readers are woken after the slot is free again.
    sender: LoadSender,
}

impl OwnedLoad {
    pub(super) fn new(cache: &Arc<OrderCache>, ticket: Ticket, sender: LoadSender) -> Self {
        Self {
            cache: Arc::clone(cache),
            ticket: Some(ticket),
            sender,
        }
    }

    /// Returns its span, if it is traced.
    pub(super) fn span(&self) -> Option<&Span> {
        self.sender.span.as_ref()
    }

    pub(super) fn uid(&self) -> &str {
        self.ticket.as_ref().map_or("", Ticket::uid)
    }

    /// Returns whether every reader has left. The core itself holds one receiver, for readers who come.
    pub(super) fn is_abandoned(&self) -> bool {
        self.sender.result_tx.receiver_count() <= 1
    }

    /// Ends the load with an answer of the database: stores it if that is still allowed, and answers every reader who waits.
    /// Returns what became of the answer.
    pub(super) fn finish(
        mut self,
        answer: Answered<Result<Option<ReadyOrder>, StoreError>>,
        placement: Placement,
    ) -> Stored {
        let Answered { content, history } = answer;
        let loaded = match &content {
            Ok(Some(order)) => Loaded::Found(order.clone(), order.weight_bytes()),
            Ok(None) => Loaded::NotFound,
            Err(_) => Loaded::Failed,
        };
        let stored = self.complete(loaded, history, placement);
        let result = content.map(|order| (order, stored == Stored::Yes));
        self.sender.result_tx.send_replace(Some(result));
        stored
    }

    /// Ends the load without an answer.
    pub(super) fn fail(mut self, error: StoreError) {
        self.complete(Loaded::Failed, HistoryId::NONE, Placement::Hot);
        self.sender.result_tx.send_replace(Some(Err(error)));
    }

    fn complete(
        &mut self,
        loaded: Loaded<ReadyOrder>,
        HistoryId(history): HistoryId,
        placement: Placement,
    ) -> Stored {
        let Some(ticket) = self.ticket.take() else {
            return Stored::Discarded;
        };
        if let Some(span) = self.span() {
            if matches!(loaded, Loaded::Failed) {
                span.fail("");
            }
            span.end();
        }
        let core = &self.cache.core;
        let completed = core.complete(ticket, loaded, history, placement);
        if let Some((ticket, sender)) = completed.next {
            let next = Self::new(&self.cache, ticket, sender);
            self.cache.queue.push(next);
        }
        completed.stored
    }
}

impl Drop for OwnedLoad {
    fn drop(&mut self) {
        self.complete(Loaded::Failed, HistoryId::NONE, Placement::Hot);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use shared::config::{DatabaseSettings, Secret, SslMode};
    use shared::db::{PoolLimits, pool};

    use super::*;
    use crate::cache::core::Capacity;
    use crate::repository::Repository;

    /// A cache that never asks its database.
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
        let capacity = Capacity::of_entries(NonZeroUsize::new(10).unwrap());
        let cache = OrderCache::new(capacity, limit, repository);
        cache.core.open_fills(1);
        cache.core.set_serving(true);
        cache
    }

    #[tokio::test]
    async fn load_that_panics_answers_its_readers_and_frees_its_slot() {
        let cache = Arc::new(cache());
        let Lookup::Load(ticket, sender) =
            cache.core.look_up("a", Demand::Proven, true, load_channel)
        else {
            panic!("nothing was loading");
        };
        let Lookup::Join(waiter) = cache.core.look_up("a", Demand::Proven, true, load_channel)
        else {
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
            cache.core.look_up("a", Demand::Proven, true, load_channel),
            Lookup::Load(..)
        ));
        assert_eq!(cache.core.counters().loads.failed.get(), 1);
    }
}
