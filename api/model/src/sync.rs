//! What the core is synchronised with here: shuttle's locks and atomics, and mistakes that can be planted.
//!
//! It has the interface of the module of this name in `api/src/cache`.

use std::cell::Cell;

pub(crate) use shuttle::sync::MutexGuard;
pub(crate) use shuttle::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

#[derive(Debug)]
pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }
}

/// A classic mistake. The core's source says at each `sound!` what it consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Mistake {
    StoreWithoutSlot,
    JoinAfterEvent,
    LoadWithoutEpoch,
    LoadFromBeforeListen,
    HitWithoutEpoch,
    AbsenceSurvivesALoss,
    VerifyAnyVersion,
    DemandJoinsOlderLoad,
    OlderEntryAfterABlindRead,
    OlderEntryAfterADiscardedLoad,
    NextLoadForgotten,
    LossKeepsTheEpoch,
    AbsenceLeftBehindByAStore,
    StoreOfAnyHistory,
    VerifyInAnyHistory,
    OtherVersionsByTheirSize,
    AuditOfAnUnverifiedEntry,
    AuditOfVersionsOnly,
    AuditWithoutAbsences,
    AuditInOneLook,
    AuditOfALaterAbsence,
    ProofWithoutTheHistory,
    ProofWithoutTheEcho,
    ProofDuringADelayedFlush,
    EntriesSurviveANewHistory,
}

thread_local! {
    // shuttle runs all threads of a model on the thread that started it.
    static PLANTED: Cell<Option<Mistake>> = const { Cell::new(None) };
}

/// Plants a mistake into the core, for every model that this thread runs from now on.
pub fn plant(mistake: Mistake) {
    PLANTED.set(Some(mistake));
}

pub(crate) fn is_planted(mistake: Mistake) -> bool {
    PLANTED.get() == Some(mistake)
}

macro_rules! sound {
    ($decision:expr, $mistake:ident, $wrong:expr) => {
        if $crate::sync::is_planted($crate::sync::Mistake::$mistake) {
            $wrong
        } else {
            $decision
        }
    };
}
pub(crate) use sound;
