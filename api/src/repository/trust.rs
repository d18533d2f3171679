//! Which sessions of the pools are trusted: those with the server whose events the listener hears.

use std::time::Instant;

use futures_util::FutureExt;
use parking_lot::Mutex;
use shared::db::HistoryId;
use tokio::sync::Notify;

/// What the listener says about its server, and what the pools found.
#[derive(Debug)]
pub(super) struct Trust {
    /// A session that was made before this moment is not used any more.
    since: Mutex<Instant>,
    /// The history that the listener hears of; `None` while it hears nothing.
    heard: Mutex<Option<HistoryId>>,
    mismatch: Notify,
}

impl Trust {
    pub(super) fn new() -> Self {
        Self {
            since: Mutex::new(Instant::now()),
            heard: Mutex::new(None),
            mismatch: Notify::new(),
        }
    }

    pub(super) fn set_heard(&self, history: Option<HistoryId>) {
        *self.heard.lock() = history;
        // A second report of the former mismatch may still wait to be heard.
        self.mismatch.notified().now_or_never();
    }

    /// Distrusts the present sessions. Returns the moment from which on sessions are trusted.
    pub(super) fn distrust(&self) -> Instant {
        let now = Instant::now();
        *self.since.lock() = now;
        now
    }

    pub(super) fn is_trusted(&self, created: Instant) -> bool {
        created >= *self.since.lock()
    }

    /// Whether the listener hears of another history.
    pub(super) fn is_foreign(&self, history: HistoryId) -> bool {
        self.heard.lock().is_some_and(|heard| heard != history)
    }

    pub(super) fn report_mismatch(&self) {
        self.mismatch.notify_one();
    }

    /// Ends when a mismatch has been reported.
    pub(super) async fn mismatch(&self) {
        self.mismatch.notified().await;
    }
}
