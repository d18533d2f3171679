//! The auditor, as in `api/src/cache/audit.rs`.

use super::ledger::{Seen, Time};
use super::{Outside, World, key_of};
use crate::cache::core::{Sampled, differs};
use crate::sync::sound;

const SAMPLE: usize = 10;
/// How often the auditor looks whether a heartbeat has returned before it gives up.
const PATIENCE: usize = 20;

/// A cached answer, and what the database holds instead.
type Difference = (Sampled<Seen>, Option<Seen>);

/// What differed at the first look, and when that was.
#[derive(Debug, Default)]
pub(super) struct FirstLook {
    suspects: Vec<Difference>,
    at: Time,
}

impl World {
    pub(super) fn audit(&self) {
        {
            let outside = self.outside();
            if !outside.status.is_fresh(outside.ledger.now) {
                return;
            }
        }
        let first_look = self.first_look();
        if first_look.suspects.is_empty() {
            return;
        }
        for _ in 0..PATIENCE {
            if self.is_proven_since(&first_look) {
                break;
            }
        }
        self.second_look(first_look);
    }

    pub(super) fn first_look(&self) -> FirstLook {
        let mut sample = self.core.sample(SAMPLE, 0);
        sample.extend(self.core.sample_absences(SAMPLE, 0));
        FirstLook {
            suspects: self.differing(sample),
            at: self.outside().ledger.now,
        }
    }

    pub(super) fn second_look(&self, first_look: FirstLook) {
        let suspects = first_look.suspects.iter();
        let differing = self.differing(suspects.map(|(cached, _)| cached.clone()).collect());
        if sound!(!self.is_proven_since(&first_look), AuditInOneLook, false) {
            return;
        }
        for (cached, stored) in differing {
            if !self.core.evict_wrong(&cached) {
                continue;
            }
            let mut outside = self.outside();
            let Outside {
                ledger, servers, ..
            } = &mut *outside;
            let key = key_of(&cached.uid);
            assert!(
                ledger.is_tampered(key),
                "{cached:?} instead of {stored:?} is no mistake"
            );
            let version = cached.value.map(|seen| seen.version);
            match (version, stored) {
                (Some(version), Some(stored)) if stored.version == version => {
                    servers.redraw(ledger, key, version);
                }
                _ => {}
            }
        }
    }

    fn is_proven_since(&self, first_look: &FirstLook) -> bool {
        let outside = self.outside();
        let status = &outside.status;
        status.is_fresh(outside.ledger.now)
            && status.proof.is_some_and(|proof| proof > first_look.at)
    }

    fn differing(&self, sample: Vec<Sampled<Seen>>) -> Vec<Difference> {
        let keys: Vec<usize> = sample.iter().map(|cached| key_of(&cached.uid)).collect();
        let Some(found) = self.select(&keys) else {
            return Vec::new();
        };
        let history = self.core.history();
        if found.iter().any(|found| found.label != history) {
            return Vec::new();
        }
        let found = found.into_iter();
        let stored = found.map(|found| Some(found).filter(|found| found.content.is_some()));
        let compared = sample.into_iter().zip(stored);
        compared
            .filter(|(cached, stored)| differs(cached.value.as_ref(), stored.as_ref()))
            .collect()
    }
}
