//! What the core is synchronised with.
//!
//! `api/model` compiles the core with another module of this name. There the model checker decides at each lock and atomic
//! which thread goes on, and it can plant mistakes.

pub(super) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

// These locks know no poison. A panic under a lock can only come from a failed allocation, after which the maps are usable.
pub(super) use parking_lot::{Mutex, MutexGuard};

/// A decision of the core, the name of a classic mistake, and the decision with this mistake.
///
/// Here only the decision is compiled. In `api/model` it is replaced while the mistake is planted, and the model checker must
/// then find a broken promise.
macro_rules! sound {
    ($decision:expr, $mistake:ident, $wrong:expr) => {
        $decision
    };
}
pub(super) use sound;
