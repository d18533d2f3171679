//! Loads by statements that they share: what is asked for while the database works goes into the next statement.
//!
//! A lone load waits for no other. Many at a time cost a statement's round trip, plan and wake-ups once for all of them, and
//! take few connections, however many readers miss. Each has its slot before its statement begins, as the core wants it.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use compact_str::CompactString;
use futures_util::FutureExt;
use shared::db::models::VersionedOrder;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::core::Placement;
use super::loader::OwnedLoad;
use super::{OrderCache, ReadyOrder};
use crate::repository::StoreError;

/// Statements that run side by side: while the rows of one are made into answers, the database works at the other.
const STATEMENTS: usize = 2;
/// Most orders a statement: a millisecond or two, so that nobody waits for long behind others.
const MAX_LOADS: usize = 64;

/// The loads that wait for a statement. It is as long as there are readers who wait: one a connection.
#[derive(Debug)]
pub(super) struct LoadQueue {
    sender: UnboundedSender<OwnedLoad>,
    receiver: Mutex<UnboundedReceiver<OwnedLoad>>,
}

impl LoadQueue {
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self {
            sender,
            receiver: Mutex::new(receiver),
        }
    }

    /// To be run by [`OrderCache::run_loads`].
    pub(super) fn push(&self, load: OwnedLoad) {
        if self.sender.send(load).is_err() {
            error!("nothing is loaded any more: the queue of loads is closed");
        }
    }

    async fn next_batch(&self) -> Vec<OwnedLoad> {
        let mut loads = Vec::new();
        let mut receiver = self.receiver.lock().await;
        receiver.recv_many(&mut loads, MAX_LOADS).await;
        // Behind those who are about to ask, too: after an answer to many they come back together.
        tokio::task::yield_now().await;
        while loads.len() < MAX_LOADS
            && let Ok(load) = receiver.try_recv()
        {
            loads.push(load);
        }
        loads
    }
}

impl OrderCache {
    /// Runs the loads that readers begin, until `shutdown`.
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
            let batch = self.load_together(loads, Placement::Hot);
            // Each load answers those who wait for it, however it ends.
            match AssertUnwindSafe(batch).catch_unwind().await {
                Ok(Ok(()) | Err(_)) => {}
                Err(_) => error!("a load panicked"),
            }
        }
    }

    /// Ends every load with what one statement brings for all of them. An order that cannot be read costs the others no
    /// more than a statement.
    ///
    /// # Errors
    /// [`StoreError`] where the database gave no answer; it is logged, and the loads have ended with it.
    pub(super) async fn load_together(
        self: &Arc<Self>,
        loads: Vec<OwnedLoad>,
        placement: Placement,
    ) -> Result<(), StoreError> {
        match self.find_for(&loads).await {
            Ok(mut orders) => {
                for load in loads {
                    let order = orders.remove(load.uid());
                    load.finish(Ok(order), placement);
                }
                Ok(())
            }
            Err(StoreError::Internal) if loads.len() > 1 => {
                for load in loads {
                    let order = self.repository.find_order(load.uid()).await;
                    load.finish(order.map(|order| order.map(ReadyOrder::from)), placement);
                }
                Ok(())
            }
            Err(error) => {
                for load in loads {
                    load.finish(Err(error), placement);
                }
                Err(error)
            }
        }
    }

    async fn find_for(
        &self,
        loads: &[OwnedLoad],
    ) -> Result<HashMap<CompactString, ReadyOrder>, StoreError> {
        let uids: Vec<&str> = loads.iter().map(OwnedLoad::uid).collect();
        let found = self.repository.find_orders(&uids).await?;
        let ready = |versioned: VersionedOrder| {
            let uid = CompactString::from(versioned.order.order_uid.as_str());
            (uid, versioned.into())
        };
        Ok(found.into_iter().map(ready).collect())
    }
}
