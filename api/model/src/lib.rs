//! The core of the cache (`api/src/cache/core.rs`) in a small world, for the model checker shuttle.
//!
//! The core's own files, and what decides about proofs (`api/src/cache/proof.rs`), are compiled here against [`sync`], whose
//! locks and atomics let shuttle decide which thread goes on. `tests/proof.rs` runs the threads of [`world`] through many
//! schedules. The core must pass all of them. With a classic mistake planted it must fail there, or in a story of
//! [`directed`].
//!
//! | module | what it is for | uses |
//! |---|---|---|
//! | [`sync`] | locks and atomics that shuttle controls, and the mistakes | |
//! | [`cache`] | the core and the rule of the proof: the files of the api | |
//! | [`world`] | servers, writers, readers, loads, a listener and an auditor around the core | [`sync`], [`cache`] |
//! | [`directed`] | short stories for mistakes that are rare in the world | [`cache`] |

#![expect(
    clippy::unwrap_used,
    reason = "the world fails by panicking, as a test does"
)]

pub mod directed;
pub mod sync;
pub mod world;

/// The files of the api that make up the core.
#[path = "../../src/cache"]
#[expect(dead_code, reason = "the world needs less of the core than the api")]
pub mod cache {
    use crate::sync;

    pub(crate) mod core;
    pub(crate) mod counters;
    pub(crate) mod proof;
}
