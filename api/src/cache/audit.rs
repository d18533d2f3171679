//! The auditor: compares what clients get with the database, for a few random entries and known absences per second.
//!
//! A change may come without an event: if its writer skips the triggers (`session_replication_role = replica`, a disabled
//! trigger, a restore), or if our programs have a bug. Such a writer draws no new version either, so the auditor compares the
//! answers themselves. It evicts what is wrong, raises an alarm, and draws the missing version: otherwise a client would keep
//! its old answer, because the `ETag` would still match.
//!
//! A mismatch alone proves nothing, because the event may still be on its way. It counts only if the same answer is still
//! cached after a heartbeat has returned that was sent after the mismatch was seen. By then every event of that time has been
//! applied.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::core::Sampled;
use super::counters::Count;
use super::{OrderCache, ReadyOrder, core};
use crate::repository::{Answered, StoreError};

/// How often the auditor looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// How many entries the auditor looks at each time, and how many known absences.
const SAMPLE: usize = 10;
/// How long the auditor waits before the second look. A heartbeat is sent and returns in less time.
const SECOND_LOOK: Duration = Duration::from_secs(2);
/// For how long `/health` reports a mismatch.
const ALARM: Duration = Duration::from_secs(600);

/// What the auditor has seen.
#[derive(Debug, Default, Serialize)]
pub struct AuditStatus {
    /// The number of entries and known absences that were compared.
    pub checked: Count,
    /// The number of them that were wrong, and would have stayed wrong if the auditor had not evicted them.
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
        if !self.listener.is_fresh() {
            return Ok(());
        }
        let mut sample = self.core.sample(SAMPLE, fastrand::u64(..));
        sample.extend(self.core.sample_absences(SAMPLE, fastrand::u64(..)));
        let count = sample.len();
        let suspects = self.differing(sample).await?;
        let first_look = Instant::now();
        self.audit_status.checked.add(count as u64);
        if suspects.is_empty() {
            return Ok(());
        }
        sleep(SECOND_LOOK).await;
        let suspects = suspects.into_iter().map(|suspect| suspect.cached).collect();
        let differing = self.differing(suspects).await?;
        let is_proven_since = self.listener.is_fresh()
            && (self.listener.proof_age()).is_some_and(|age| age < first_look.elapsed());
        if !is_proven_since {
            return Ok(());
        }
        let mut outcome = Ok(());
        for difference in differing {
            // All of them are evicted, even if the database draws no version.
            outcome = outcome.and(self.correct(difference).await);
        }
        outcome
    }

    async fn correct(&self, difference: Difference) -> Result<(), StoreError> {
        let Difference {
            cached,
            stored_version,
        } = difference;
        if !self.core.evict_wrong(&cached) {
            return Ok(());
        }
        let Sampled { uid, value, .. } = cached;
        let version = value.map(|order| order.revision.version);
        self.audit_status.add_mismatch();
        error!(
            order.id = uid.as_str(),
            version, "a cached answer was wrong: no event had told of a change"
        );
        match version {
            Some(version) if stored_version == Some(version) => {
                self.repository.redraw_version(&uid, version).await
            }
            _ => Ok(()),
        }
    }

    /// Those of the sample that differ from what the database holds.
    async fn differing(
        &self,
        sample: Vec<Sampled<ReadyOrder>>,
    ) -> Result<Vec<Difference>, StoreError> {
        if sample.is_empty() {
            return Ok(Vec::new());
        }
        let uids: Vec<&str> = sample.iter().map(|cached| &*cached.uid).collect();
        let Answered { content, history } = self.repository.find_orders(&uids).await?;
        if history.0 != self.core.history() {
            return Ok(Vec::new());
        }
        let difference = |cached: Sampled<ReadyOrder>| {
            let stored = match content.get(&cached.uid) {
                Some(Ok(stored)) => Some(ReadyOrder::read_in(history, stored)),
                // Nobody can say what a client should get. It is in the log already.
                Some(Err(_)) => return None,
                None => None,
            };
            let differs = core::differs(cached.value.as_ref(), stored.as_ref());
            let stored_version = stored.map(|stored| stored.revision.version);
            differs.then_some(Difference {
                cached,
                stored_version,
            })
        };
        Ok(sample.into_iter().filter_map(difference).collect())
    }
}

/// A cached answer that the database would not give.
struct Difference {
    cached: Sampled<ReadyOrder>,
    /// The version in the database; `None` if there is no such order.
    stored_version: Option<i64>,
}
