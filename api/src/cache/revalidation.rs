//! Revalidation: after the listener was away, the database says which entries still hold.
//!
//! Dropping them all would send every reader to the database at once. Comparing versions costs one look into an index for
//! each key. It is right because LISTEN has committed before the first statement runs: what was committed before that is
//! seen by the statement, and what is committed later comes as an event.

use std::collections::HashMap;
use std::time::Instant;

use compact_str::CompactString;
use shared::backoff::Backoff;
use tracing::{info, warn};

use super::OrderCache;

/// Keys a statement: some milliseconds of one connection, so that readers get between.
const CHUNK_SIZE: usize = 1000;

impl OrderCache {
    /// Verifies or drops every unverified entry, however often the database gives no answer meanwhile.
    ///
    /// To be called after [`Core::open_fills`](super::core::Core::open_fills), and dropped with the connection that listens.
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
        let found = loop {
            match self.repository.find_versions(&uids).await {
                Ok(found) => break found,
                Err(error) => {
                    warn!("entries stay unverified, and are not served, for now: {error}");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        };
        let versions: HashMap<String, i64> = found.into_iter().collect();
        for uid in uids {
            self.core.verify(uid, epoch, versions.get(uid).copied());
        }
    }
}
