//! The real `ingestor` program against faults that take minutes: `make faults` runs these, `make test` does not.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod cut_connections;
mod database_away;
mod decompression_bomb;
mod frozen_servers;
mod memory;
mod random_kills;
mod rebalance_storm;
mod recreated_topic;
mod watching;
mod zombies;

/// What the suite's tests use, too. It is an inline module, so that the files below it are found.
#[path = "../suite"]
mod suite {
    #[allow(dead_code, unused_imports, reason = "some of it only the suite needs")]
    pub mod support;
}

use suite::support;
