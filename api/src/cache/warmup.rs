//! Warm-up: the newest orders into the cache before anybody asks.
//!
//! It follows the rules of every load: the slot is taken before the statement runs, an event takes it away. What it
//! brings never pushes out or overtakes what readers asked for.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{Stream, TryStreamExt, stream};
use tokio::sync::watch;
use tracing::{info, warn};

use super::OrderCache;
use super::core::Placement;
use super::loader::{OwnedLoad, load_channel};
use crate::repository::{Position, StoreError};

/// Orders a statement: some milliseconds of one connection, so that readers get between.
const CHUNK_SIZE: usize = 500;

/// Chunks that are loaded side by side: the database works at one while the api works at the other.
const CHUNKS_UNDER_WAY: usize = 2;
/// How often the log tells how far it is.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// What a warm-up did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WarmedUp {
    /// How many of the newest orders are cached now.
    pub loaded: usize,
    /// How long it took.
    pub duration: Duration,
}

/// How far a warm-up is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WarmupProgress {
    /// How many of the newest orders it has looked at.
    pub seen: usize,
    /// At how many it will have looked, if there are so many.
    pub limit: usize,
}

type WarmupResult = Result<WarmedUp, StoreError>;

/// The warm-up that runs, if one does.
#[derive(Debug, Default)]
pub(super) struct Warmup {
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    /// The cache's epoch at its start: after a reconnect it has to be done again.
    epoch: u64,
    progress_rx: watch::Receiver<WarmupProgress>,
    result_rx: watch::Receiver<Option<WarmupResult>>,
}

impl Running {
    fn goes_on(&self) -> bool {
        self.result_rx.borrow().is_none() && self.result_rx.has_changed().is_ok()
    }
}

impl OrderCache {
    /// Loads the newest orders, at most as many as the cache holds; joins a warm-up that is already running.
    ///
    /// # Errors
    /// [`StoreError`] where the database gave no answer, or the cache stores nothing because its listener is away.
    pub async fn warm_up(self: &Arc<Self>, limit: usize) -> WarmupResult {
        let mut result_rx = self.start_warmup(limit);
        match result_rx.wait_for(Option::is_some).await {
            Ok(result) => result.unwrap_or(Err(StoreError::Internal)),
            Err(_) => Err(StoreError::Internal),
        }
    }

    /// As [`Self::warm_up`], without waiting for it.
    pub(super) fn start_warmup(
        self: &Arc<Self>,
        limit: usize,
    ) -> watch::Receiver<Option<WarmupResult>> {
        let mut running = self
            .warmup
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let epoch = self.core.epoch();
        if let Some(running) = running.as_ref()
            && running.epoch == epoch
            && running.goes_on()
        {
            return running.result_rx.clone();
        }
        let limit = limit.min(self.core.capacity());
        let (progress_tx, progress_rx) = watch::channel(WarmupProgress { seen: 0, limit });
        let (result_tx, result_rx) = watch::channel(None);
        *running = Some(Running {
            epoch,
            progress_rx,
            result_rx: result_rx.clone(),
        });
        let cache = Arc::clone(self);
        tokio::spawn(async move {
            let result = cache.run_warmup(progress_tx, epoch).await;
            match &result {
                Ok(done) => info!(
                    loaded = done.loaded,
                    duration_ms = done.duration.as_millis(),
                    "cache warmed up"
                ),
                Err(error) => warn!("cache not warmed up: {error}"),
            }
            result_tx.send_replace(Some(result));
        });
        result_rx
    }

    /// How far the warm-up is, if one runs.
    pub fn warmup_progress(&self) -> Option<WarmupProgress> {
        let running = self.warmup.running.lock();
        let running = running.unwrap_or_else(PoisonError::into_inner);
        let running = running.as_ref().filter(|running| running.goes_on())?;
        Some(*running.progress_rx.borrow())
    }

    async fn run_warmup(
        self: &Arc<Self>,
        progress_tx: watch::Sender<WarmupProgress>,
        epoch: u64,
    ) -> WarmupResult {
        let started = Instant::now();
        let mut last_report = started;
        let limit = progress_tx.borrow().limit;
        let mut loaded = 0;
        let mut seen = 0;
        let chunks = self
            .newest_pages(limit, epoch)
            .map_ok(|page| self.spawn_chunk(page));
        let mut chunks = pin!(chunks.try_buffered(CHUNKS_UNDER_WAY));
        while let Some((asked_for, cached)) = chunks.try_next().await? {
            seen += asked_for;
            loaded += cached;
            progress_tx.send_replace(WarmupProgress { seen, limit });
            if last_report.elapsed() >= REPORT_INTERVAL {
                info!(seen, limit, "warming up the cache");
                last_report = Instant::now();
            }
        }
        Ok(WarmedUp {
            loaded,
            duration: started.elapsed(),
        })
    }

    fn newest_pages(
        &self,
        limit: usize,
        epoch: u64,
    ) -> impl Stream<Item = Result<Vec<Position>, StoreError>> {
        stream::try_unfold(
            (limit, None),
            move |(left, after): (usize, Option<Position>)| async move {
                if left == 0 {
                    return Ok(None);
                }
                if self.core.epoch() != epoch || !self.core.accepts_fills() {
                    return Err(StoreError::Unavailable);
                }
                let wanted = CHUNK_SIZE.min(left);
                let page = self.repository.newest_uids(wanted, after.as_ref()).await?;
                let left = match page.len() < wanted {
                    true => 0,
                    false => left - wanted,
                };
                let last = page.last().cloned();
                Ok(Some((page, (left, last))))
            },
        )
    }

    /// Loads a chunk in a task of its own; gives how many were asked for and how many of them are cached then.
    fn spawn_chunk(
        self: &Arc<Self>,
        page: Vec<Position>,
    ) -> impl Future<Output = Result<(usize, usize), StoreError>> + use<> {
        let cache = Arc::clone(self);
        let chunk = tokio::spawn(async move {
            let uids: Vec<&str> = page.iter().map(|(_, uid)| uid.as_str()).collect();
            let cached = cache.warm_up_chunk(&uids).await?;
            Ok((uids.len(), cached))
        });
        async { chunk.await.unwrap_or(Err(StoreError::Internal)) }
    }

    async fn warm_up_chunk(self: &Arc<Self>, uids: &[&str]) -> Result<usize, StoreError> {
        let loads: Vec<OwnedLoad> = uids
            .iter()
            // A full cache would take none of them.
            .filter(|_| !self.core.is_full())
            .filter_map(|uid| self.core.begin_warmup(uid, load_channel))
            .map(|(ticket, sender)| OwnedLoad::new(self, ticket, sender))
            .collect();
        if !loads.is_empty() {
            self.load_together(loads, Placement::Cold).await?;
        }
        Ok(uids.iter().filter(|uid| self.core.contains(uid)).count())
    }
}
