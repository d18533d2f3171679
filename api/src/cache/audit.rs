//! The auditor: compares a few random entries per second with the database.
//!
//! A change may come without an event: if its writer skips the triggers (`session_replication_role = replica`, a disabled
//! trigger, a restore), or if our programs have a bug. The auditor finds such changes and raises an alarm.
//!
//! A mismatch alone proves nothing, because the event may still be on its way. It counts only if the same version is still
//! cached after a heartbeat has returned that was sent after the mismatch was seen. By then every event of that time has been
//! applied.

use std::sync::Arc;
use std::time::{Duration, Instant};

use compact_str::CompactString;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::OrderCache;
use super::counters::Count;
use crate::repository::StoreError;

/// How often the auditor looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// How many entries the auditor looks at each time.
const SAMPLE: usize = 10;
/// How long the auditor waits before the second look. A heartbeat is sent and returns in less time.
const SECOND_LOOK: Duration = Duration::from_secs(2);
/// For how long `/health` reports a mismatch.
const ALARM: Duration = Duration::from_secs(600);

/// What the auditor has seen.
#[derive(Debug, Default, Serialize)]
pub struct AuditStatus {
    /// The number of entries that were compared.
    pub checked: Count,
    /// The number of entries that were wrong, and would have stayed wrong if the auditor had not evicted them.
    pub mismatches: Count,
    #[serde(skip)]
    last_mismatch: Mutex<Option<Instant>>,
}

impl AuditStatus {
    /// Returns whether a mismatch was found within the last ten minutes.
    pub fn is_alarmed(&self) -> bool {
        let last_mismatch = *self.last_mismatch.lock();
        last_mismatch.is_some_and(|at| at.elapsed() < ALARM)
    }

    fn add_mismatch(&self) {
        self.mismatches.add(1);
        *self.last_mismatch.lock() = Some(Instant::now());
    }
}

/// A uid and the version that was cached.
type Entry = (CompactString, i64);

impl OrderCache {
    /// Audits the cache until `shutdown`.
    pub async fn audit(self: Arc<Self>, shutdown: CancellationToken) {
        let audit = async {
            let mut ticks = interval(INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                // The repository has logged a failure; the next round tries again.
                self.audit_once().await.ok();
            }
        };
        shutdown.run_until_cancelled(audit).await;
    }

    async fn audit_once(&self) -> Result<(), StoreError> {
        if !self.listener.is_fresh(self.lease) {
            return Ok(());
        }
        let sample = self.core.sample(SAMPLE, fastrand::u64(..)).into_iter();
        let entries: Vec<Entry> = sample.map(|(uid, order)| (uid, order.version)).collect();
        let suspects = self.differing(entries.clone()).await?;
        let first_look = Instant::now();
        self.audit_status.checked.add(entries.len() as u64);
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
                self.audit_status.add_mismatch();
                error!(
                    order.id = uid.as_str(),
                    version, "a cached order was stale: no event had told of its change"
                );
            }
        }
        Ok(())
    }

    /// The entries that have another version in the database, or do not exist there.
    async fn differing(&self, mut entries: Vec<Entry>) -> Result<Vec<Entry>, StoreError> {
        if entries.is_empty() {
            return Ok(entries);
        }
        let uids: Vec<&str> = entries.iter().map(|(uid, _)| &**uid).collect();
        let stored = self.repository.find_versions(&uids).await?;
        entries.retain(|(uid, version)| stored.get(&**uid) != Some(version));
        Ok(entries)
    }
}
