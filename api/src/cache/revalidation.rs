//! Revalidation: after the listener was lost, the database says which entries are still up to date.
//!
//! If all entries were dropped instead, every reader would go to the database at once. Comparing a version costs one lookup
//! in an index. The comparison is right because LISTEN has committed before the first statement runs: the statement sees what
//! was committed before that, and what is committed later comes as an event.

use std::time::Instant;

use compact_str::CompactString;
use shared::backoff::Backoff;
use tracing::{info, warn};

use super::OrderCache;
use crate::repository::Answered;

/// The number of keys per statement. They take one connection for some milliseconds, so that readers can come in between.
const CHUNK_SIZE: usize = 1000;

impl OrderCache {
    /// Verifies or drops every unverified entry. Tries again for as long as the database gives no answer.
    ///
    /// Must be called after [`Core::open_fills`](super::core::Core::open_fills), and must be dropped with the connection that
    /// listens.
    pub(super) async fn revalidate(&self) {
        let started = Instant::now();
        let epoch = self.core.epoch();
        let mut compared = 0;
        for uids in self.core.unverified() {
            for chunk in uids.chunks(CHUNK_SIZE) {
                self.revalidate_chunk(chunk, epoch).await;
                compared += chunk.len();
            }
        }
        if compared > 0 {
            let duration_ms = started.elapsed().as_millis();
            info!(
                compared,
                kept = self.core.sizes().0,
                duration_ms,
                "cache revalidated"
            );
        }
    }

    async fn revalidate_chunk(&self, chunk: &[CompactString], epoch: u64) {
        let uids: Vec<&str> = chunk.iter().map(AsRef::as_ref).collect();
        let mut backoff = Backoff::for_database();
        let Answered { content, history } = loop {
            match self.repository.find_versions(&uids).await {
                Ok(versions) => break versions,
                Err(error) => {
                    warn!("cached entries cannot be verified, and are not served for now: {error}");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        };
        for uid in uids {
            let version = content.get(uid).copied();
            self.core.verify(uid, epoch, history.0, version);
        }
    }
}
