//! The real `api` program against what takes minutes: `make faults` runs these, `make test` does not.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod coherence;
mod exports;
mod frozen;
mod hostile;
mod ingestion;
mod pooler;
mod scene;

/// What the suite's tests use too; an inline module, so that files below it are found.
#[path = "../suite"]
mod suite {
    #[allow(dead_code, unused_imports, reason = "some of it only the suite needs")]
    pub mod support;
}

use suite::support;
