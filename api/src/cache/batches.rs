//! Loads that share statements: what is asked for while the database works goes into the next statement.
//!
//! A single load waits for no other. Many loads at a time share the cost of one statement: its round trip, its plan and its
//! wake-ups. They take few connections, however many readers miss. Each load has its slot before its statement begins, as
//! the core demands.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use compact_str::CompactString;
use futures_util::FutureExt;
use shared::db::models::VersionedOrder;
use shared::traces::{self, Span};
use tokio::sync::Mutex;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error};

use super::core::{Placement, Stored};
use super::loader::OwnedLoad;
use super::{OrderCache, ReadyOrder};
use crate::repository::{Answered, StoreError};

/// The number of statements that run at the same time. While the rows of one are made into answers, the database works on the
/// other.
const STATEMENTS: usize = 2;
/// The largest number of orders per statement. They take a millisecond or two, so that nobody waits long behind others.
const MAX_LOADS: usize = 64;

/// The loads that wait for a statement. Each has a reader who waits on a connection of its own, so the number of connections
/// bounds the length.
#[derive(Debug)]
pub(super) struct LoadQueue {
    loads_tx: UnboundedSender<OwnedLoad>,
    loads_rx: Mutex<UnboundedReceiver<OwnedLoad>>,
}

impl LoadQueue {
    pub(super) fn new() -> Self {
        let (loads_tx, loads_rx) = mpsc::unbounded_channel();
        Self {
            loads_tx,
            loads_rx: Mutex::new(loads_rx),
        }
    }

    /// Adds a load, which [`OrderCache::run_loads`] runs.
    pub(super) fn push(&self, load: OwnedLoad) {
        if self.loads_tx.send(load).is_err() {
            error!("orders can no longer be loaded: the queue of loads is closed");
        }
    }

    async fn next_batch(&self) -> Vec<OwnedLoad> {
        let mut loads = Vec::new();
        let mut loads_rx = self.loads_rx.lock().await;
        loads_rx.recv_many(&mut loads, MAX_LOADS).await;
        // Readers who are about to ask come first: after an answer to many of them, they come back together.
        tokio::task::yield_now().await;
        while loads.len() < MAX_LOADS
            && let Ok(load) = loads_rx.try_recv()
        {
            loads.push(load);
        }
        loads
    }
}

impl OrderCache {
    /// Runs the loads that readers began, until `shutdown`.
    pub async fn run_loads(self: Arc<Self>, shutdown: CancellationToken) {
        let mut workers = JoinSet::new();
        for _ in 0..STATEMENTS {
            workers.spawn(Arc::clone(&self).run_batches());
        }
        shutdown.cancelled().await;
    }

    async fn run_batches(self: Arc<Self>) {
        loop {
            let loads = self.queue.next_batch().await;
            // A database that hangs must not be asked afterwards for what nobody waits for any more.
            let (abandoned, loads): (Vec<_>, Vec<_>) =
                loads.into_iter().partition(OwnedLoad::is_abandoned);
            for load in abandoned {
                // A reader who has come in this moment is told to try again.
                load.fail(StoreError::Overloaded);
            }
            if loads.is_empty() {
                continue;
            }
            let batch = self.load_together(loads, Placement::Hot);
            // Each load answers the readers who wait for it, however it ends.
            if AssertUnwindSafe(batch).catch_unwind().await.is_err() {
                error!("a load panicked");
            }
        }
    }

    /// Ends every load with what one statement brings for all of them. An order that cannot be read fails only its own load.
    ///
    /// Each load ends as soon as its order has arrived. So the orders of the statement are never in memory together, and a
    /// reader need not wait until all answers are made: when 64 of them did, they got 8 % fewer answers (`bench read`).
    ///
    /// Returns whether there was room for all orders. If a cold one finds none, the rest of them is not read.
    ///
    /// # Errors
    /// Returns a [`StoreError`] if the database gave no answer. All loads have then ended with this error.
    pub(super) async fn load_together(
        self: &Arc<Self>,
        loads: Vec<OwnedLoad>,
        placement: Placement,
    ) -> Result<bool, StoreError> {
        let span = common_span(&loads);
        let uids: Vec<CompactString> = loads.iter().map(|load| load.uid().into()).collect();
        let uids: Vec<&str> = uids.iter().map(CompactString::as_str).collect();
        let by_uid = loads.into_iter().map(|load| (load.uid().into(), load));
        let mut waiting: HashMap<CompactString, OwnedLoad> = by_uid.collect();
        let mut has_room = true;
        let finish = |uid: CompactString, answer: Answered<Result<VersionedOrder, StoreError>>| {
            let answer = answer.with_history(|history, order| {
                order.map(|order| Some(ReadyOrder::read_in(history, &order)))
            });
            let stored = waiting
                .remove(&uid)
                .map(|load| load.finish(answer, placement));
            let is_refused = placement == Placement::Cold && stored == Some(Stored::NoRoom);
            has_room &= !is_refused;
            match is_refused {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let reading = self.repository.each_order(&uids, finish);
        let reading = traces::within(span.as_ref(), reading);
        let log_span = span.map_or_else(tracing::Span::none, |span| span.log_span());
        let history = match reading.instrument(log_span).await {
            Ok(history) => history,
            Err(error) => {
                waiting.into_values().for_each(|load| load.fail(error));
                return Err(error);
            }
        };
        for load in waiting.into_values() {
            if has_room {
                let content = Ok(None);
                load.finish(Answered { content, history }, placement);
            } else if load.is_abandoned() {
                load.fail(StoreError::Overloaded);
            } else {
                // A reader has come meanwhile.
                self.queue.push(load);
            }
        }
        Ok(has_room)
    }
}

/// Returns the span that the common statement of loads belongs to: that of the first load that is traced. The others link to it.
fn common_span(loads: &[OwnedLoad]) -> Option<Span> {
    let mut spans = loads.iter().filter_map(OwnedLoad::span);
    let first = spans.next()?.clone();
    for other in spans {
        other.link_to(first.context());
    }
    first.set(
        "orders.load.count",
        i64::try_from(loads.len()).unwrap_or(i64::MAX),
    );
    Some(first)
}
