//! Tests of the real `api` program that take minutes. `make faults` runs them, `make test` does not.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod coherence;
mod exports;
mod frozen;
mod hanging_commits;
mod hostile;
mod ingestion;
mod pooler;
mod scene;
mod split_brain;

/// What the tests of the suite use as well. It is an inline module, so that the files below it are found.
#[path = "../suite"]
mod suite {
    #[allow(dead_code, unused_imports, reason = "some of it only the suite needs")]
    pub mod support;
}

use suite::support;
