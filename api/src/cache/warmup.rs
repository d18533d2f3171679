//! Warm-up: loads the newest orders into the cache before anybody asks for them.
//!
//! It follows the rules of every load: the slot is taken before the statement runs, and an event takes the slot away. What
//! warm-up brings never pushes out or replaces what readers asked for.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::{Stream, TryStreamExt, stream};
use parking_lot::Mutex;
use shared::throttle::Throttle;
use tokio::sync::watch;
use tracing::{info, warn};

use super::OrderCache;
use super::core::Placement;
use super::loader::{OwnedLoad, load_channel};
use crate::repository::{Position, StoreError};

/// The largest number of orders per statement. They take one connection for some milliseconds, so that readers can come in
/// between.
const MAX_CHUNK: usize = 500;
/// The number of orders per statement before it is known how large they are.
const FIRST_CHUNK: usize = 64;
/// About how many bytes of orders a statement reads. Large ones would otherwise take it longer than a statement may.
const CHUNK_BYTES: usize = 8 * 1024 * 1024;
/// The number of chunks that are loaded at the same time: the database works on one while the api works on the other.
const CHUNKS_UNDER_WAY: usize = 2;
/// How often the log says how far a warm-up is.
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
    /// How many orders it will have looked at in the end, if there are so many.
    pub limit: usize,
}

type WarmupResult = Result<WarmedUp, StoreError>;

/// The last warm-up, if there was one.
#[derive(Debug, Default)]
pub(super) struct Warmup(Mutex<Option<Run>>);

#[derive(Debug)]
struct Run {
    /// The cache's epoch when it began. After a reconnect the warm-up has to be done again.
    epoch: u64,
    state_rx: watch::Receiver<State>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    progress: WarmupProgress,
    /// `None` while the warm-up runs.
    result: Option<WarmupResult>,
}

impl Run {
    fn goes_on(&self) -> bool {
        self.state_rx.borrow().result.is_none() && self.state_rx.has_changed().is_ok()
    }
}

impl OrderCache {
    /// Loads the `limit` newest orders, or as many as the cache holds. Joins a warm-up that is already running.
    ///
    /// # Errors
    /// Returns a [`StoreError`] if the database gave no answer, or the cache stores nothing because it is blind.
    pub async fn warm_up(self: &Arc<Self>, limit: usize) -> WarmupResult {
        let mut state_rx = self.start_warmup(limit);
        match state_rx.wait_for(|state| state.result.is_some()).await {
            Ok(state) => state.result.unwrap_or(Err(StoreError::Internal)),
            Err(_) => Err(StoreError::Internal),
        }
    }

    /// Does what [`Self::warm_up`] does, without waiting for the end.
    pub(super) fn start_warmup(self: &Arc<Self>, limit: usize) -> watch::Receiver<State> {
        let mut last = self.warmup.0.lock();
        let epoch = self.core.epoch();
        if let Some(run) = last.as_ref()
            && run.epoch == epoch
            && run.goes_on()
        {
            return run.state_rx.clone();
        }
        let limit = limit.min(self.core.capacity().entries.get());
        let (state_tx, state_rx) = watch::channel(State {
            progress: WarmupProgress { seen: 0, limit },
            result: None,
        });
        *last = Some(Run {
            epoch,
            state_rx: state_rx.clone(),
        });
        let cache = Arc::clone(self);
        tokio::spawn(async move {
            let result = cache.run_warmup(&state_tx, limit, epoch).await;
            match &result {
                Ok(done) => info!(
                    loaded = done.loaded,
                    duration_ms = done.duration.as_millis(),
                    "cache warmed up"
                ),
                Err(error) => warn!("cache not warmed up: {error}"),
            }
            state_tx.send_modify(|state| state.result = Some(result));
        });
        state_rx
    }

    /// Returns how far the warm-up is, if one runs.
    pub fn warmup_progress(&self) -> Option<WarmupProgress> {
        let last = self.warmup.0.lock();
        let run = last.as_ref().filter(|run| run.goes_on())?;
        Some(run.state_rx.borrow().progress)
    }

    async fn run_warmup(
        self: &Arc<Self>,
        state_tx: &watch::Sender<State>,
        limit: usize,
        epoch: u64,
    ) -> WarmupResult {
        let started = Instant::now();
        let mut reports = Throttle::every(REPORT_INTERVAL);
        // A short warm-up reports only its end.
        reports.is_due();
        let (mut loaded, mut seen) = (0, 0);
        let has_room = Arc::new(AtomicBool::new(true));
        let chunks = self
            .newest_pages(limit, epoch)
            .map_ok(|page| {
                let chunk = Arc::clone(self).warm_up_chunk(page, Arc::clone(&has_room));
                tokio::spawn(chunk)
            })
            .map_ok(|chunk| async move { chunk.await.unwrap_or(Err(StoreError::Internal)) });
        let mut chunks = pin!(chunks.try_buffered(CHUNKS_UNDER_WAY));
        while let Some((asked_for, cached)) = chunks.try_next().await? {
            seen += asked_for;
            loaded += cached;
            state_tx.send_modify(|state| state.progress.seen = seen);
            if reports.is_due() {
                info!(seen, limit, "warming up the cache");
            }
        }
        Ok(WarmedUp {
            loaded,
            duration: started.elapsed(),
        })
    }

    /// The positions of the `limit` newest orders, in chunks, for as long as the epoch lasts.
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
                let wanted = self.chunk_size().min(left);
                let page = self.repository.newest_uids(wanted, after.as_ref()).await?;
                let left = if page.len() < wanted {
                    0
                } else {
                    left - wanted
                };
                let last = page.last().cloned();
                Ok(Some((page, (left, last))))
            },
        )
    }

    /// How many orders the next statement should read, by the size of those that are cached.
    fn chunk_size(&self) -> usize {
        let (size, _, weight_bytes) = self.core.sizes();
        let average_bytes = weight_bytes.checked_div(size);
        average_bytes.map_or(FIRST_CHUNK, |bytes| {
            (CHUNK_BYTES / bytes.max(1)).clamp(1, MAX_CHUNK)
        })
    }

    /// Loads a chunk, while there is room for it. Gives how many orders it has, and how many of them are cached afterwards.
    async fn warm_up_chunk(
        self: Arc<Self>,
        page: Vec<Position>,
        has_room: Arc<AtomicBool>,
    ) -> Result<(usize, usize), StoreError> {
        let loads: Vec<OwnedLoad> = page
            .iter()
            // A full cache would store none of them.
            .filter(|_| has_room.load(Ordering::Relaxed) && !self.core.is_full())
            .filter_map(|(_, uid)| self.core.begin_warmup(uid, load_channel))
            .map(|(ticket, sender)| OwnedLoad::new(&self, ticket, sender))
            .collect();
        if !loads.is_empty() && !self.load_together(loads, Placement::Cold).await? {
            has_room.store(false, Ordering::Relaxed);
        }
        let cached = page.iter().filter(|(_, uid)| self.core.contains(uid));
        Ok((page.len(), cached.count()))
    }
}
