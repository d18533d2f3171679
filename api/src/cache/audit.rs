//! The auditor: holds a few random entries a second against the database.
//!
//! Events may be missing for writes that skip them (`session_replication_role = replica`, a disabled trigger, a restore),
//! or by a bug of ours. What nobody announced is found here, and told.
//!
//! A difference is nothing yet: the event may be under way. It counts where the same version is still cached after a
//! heartbeat that was sent later came back, because by then every event of that time has been applied.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use compact_str::CompactString;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::counters::Count;
use super::{OrderCache, ReadyOrder};
use crate::repository::StoreError;

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// How many entries it looks at each time.
const SAMPLE: usize = 10;
/// How long it waits before the second look; longer than it takes for a heartbeat to be sent and to come back.
const SECOND_LOOK: Duration = Duration::from_secs(2);
/// How long `/health` tells of a mismatch.
const ALARM: Duration = Duration::from_secs(600);

/// What the auditor has seen.
#[derive(Debug, Default)]
pub struct AuditStatus {
    /// Entries compared.
    pub checked: Count,
    /// Entries that were wrong for good, until the auditor evicted them.
    pub mismatches: Count,
    last_mismatch: Mutex<Option<Instant>>,
}

impl AuditStatus {
    /// Whether a mismatch was found lately.
    pub fn is_alarmed(&self) -> bool {
        self.last_mismatch().is_some_and(|at| at.elapsed() < ALARM)
    }

    fn add_mismatch(&self) {
        self.mismatches.add(1);
        *self.last_mismatch() = Some(Instant::now());
    }

    fn last_mismatch(&self) -> MutexGuard<'_, Option<Instant>> {
        let last = self.last_mismatch.lock();
        last.unwrap_or_else(PoisonError::into_inner)
    }
}

/// A uid and the version that was cached.
type Entry = (CompactString, i64);

impl OrderCache {
    /// Audits until `shutdown`.
    pub async fn audit(self: Arc<Self>, shutdown: CancellationToken) {
        let audit = async {
            let mut ticks = interval(INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                // Where the database gives no answer, its failure is in the log and the next round tries again.
                self.audit_once().await.ok();
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = audit => {}
        }
    }

    async fn audit_once(&self) -> Result<(), StoreError> {
        if !self.listener.is_fresh(self.lease) {
            return Ok(());
        }
        let sample = self.core.sample(SAMPLE, fastrand::u64(..));
        let entries: Vec<Entry> = sample.into_iter().map(with_version).collect();
        let suspects = self.differing(entries.clone()).await?;
        let first_look = Instant::now();
        self.audit.checked.add(entries.len() as u64);
        if suspects.is_empty() {
            return Ok(());
        }
        sleep(SECOND_LOOK).await;
        let differing = self.differing(suspects).await?;
        let is_proven_since = self.listener.is_fresh(self.lease)
            && (self.listener.proof_age()).is_some_and(|age| age < first_look.elapsed());
        if !is_proven_since {
            return Ok(());
        }
        for (uid, version) in differing {
            if self.core.evict_wrong(&uid, version) {
                self.audit.add_mismatch();
                error!(
                    order_uid = uid.as_str(),
                    version, "a cached order was stale, no event had told of its change"
                );
            }
        }
        Ok(())
    }

    /// Those whose version in the database is another, or that are not there.
    async fn differing(&self, mut entries: Vec<Entry>) -> Result<Vec<Entry>, StoreError> {
        if entries.is_empty() {
            return Ok(entries);
        }
        let uids: Vec<&str> = entries.iter().map(|(uid, _)| &**uid).collect();
        let stored: HashMap<String, i64> = self
            .repository
            .find_versions(&uids)
            .await?
            .into_iter()
            .collect();
        entries.retain(|(uid, version)| stored.get(&**uid) != Some(version));
        Ok(entries)
    }
}

fn with_version((uid, order): (CompactString, ReadyOrder)) -> Entry {
    (uid, order.version)
}
