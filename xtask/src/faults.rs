//! `cargo xtask faults`: the tests that take minutes, with their own PostgreSQL and Kafka.

use std::process::ExitStatus;

use anyhow::Result;

use crate::testing;

/// Six tests run at once, because most of the time they wait for session timeouts and restarts.
const ARGUMENTS: &str = "-p ingestor -p api --test faults -- --test-threads 6";

/// Runs the tests whose names contain one of the filters, or all tests, and returns how they ended.
pub(crate) fn run(filters: &[String]) -> Result<ExitStatus> {
    let arguments = ARGUMENTS.split(' ').map(str::to_owned);
    testing::run(&arguments.chain(filters.iter().cloned()).collect::<Vec<_>>())
}
