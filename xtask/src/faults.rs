//! `cargo xtask faults`: the tests that take minutes, on a PostgreSQL and a Kafka that this run has to itself.

use std::process::ExitStatus;

use anyhow::Result;

use crate::packages::{self, Purpose};
use crate::testing;

/// Tests at once. They wait most of the time: for session time-outs, for restarts.
const THREADS: &str = "6";

/// Runs the tests whose names contain one of the filters, or all, and returns how they ended.
pub fn run(filters: &[String]) -> Result<ExitStatus> {
    packages::ensure(&[Purpose::Faults])?;
    let fixed = [
        "-p",
        "ingestor",
        "-p",
        "api",
        "--test",
        "faults",
        "--",
        "--test-threads",
    ];
    let arguments: Vec<String> = (fixed.iter().chain(&[THREADS]))
        .map(|argument| (*argument).to_owned())
        .chain(filters.iter().cloned())
        .collect();
    testing::run(&arguments)
}
