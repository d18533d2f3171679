//! `cargo xtask test`: all tests, with their own PostgreSQL and Kafka.
//!
//! Two runs at the same time do not disturb each other: each has its own folder and ports. At the end everything is removed.

use std::process::ExitStatus;
use std::time::Duration;
use std::{env, thread};

use anyhow::{Context as _, Result};
use servers::progress;
use servers::signals::Signal;

use crate::cargo::cargo;
use crate::packages::{self, Purpose};
use crate::stack::{self, Stack, StackFolder};

/// How long an interrupted test binary may take to end.
const GRACE: Duration = Duration::from_secs(5);
/// Most of the time a test waits for Kafka and PostgreSQL.
const TESTS_PER_CORE: usize = 2;

/// Runs `cargo test` with more arguments and returns how it ended.
pub(crate) fn run(arguments: &[String]) -> Result<ExitStatus> {
    let folder = StackFolder::take_own("test")?;
    stack::install_packages()?;
    packages::ensure(&[Purpose::ApiTests])?;
    let (build_arguments, test_arguments) = cargo_arguments(arguments);
    let (servers, ()) = Stack::start_during(folder.path(), false, || {
        progress::step("building the tests (the first time this takes some minutes)");
        cargo("cargo test --no-run").args(&build_arguments).run()
    })?;
    let status = cargo("cargo test")
        .args(&test_arguments)
        .envs(&servers.env())
        .env("RUST_TEST_THREADS", threads()?)
        .env("RUST_BACKTRACE", "1")
        .spawn()?
        .wait(Signal::INT, GRACE);
    // They are killed, because nothing is kept. This prints nothing: the tests print the last lines.
    drop(servers);
    status
}

/// Returns how many tests of a binary run at once.
fn threads() -> Result<String> {
    env::var("RUST_TEST_THREADS").or_else(|_| {
        let cores = thread::available_parallelism().context("cannot count the cores")?;
        Ok((cores.get() * TESTS_PER_CORE).to_string())
    })
}

/// Returns the arguments of cargo for the build and for the tests.
fn cargo_arguments(arguments: &[String]) -> (Vec<String>, Vec<String>) {
    let mut test = vec!["test".to_owned()];
    let selects_packages = arguments
        .iter()
        .take_while(|argument| *argument != "--")
        .any(|argument| {
            ["-p", "--package", "--workspace", "--manifest-path"].contains(&argument.as_str())
                || argument.starts_with("--package=")
        });
    if !selects_packages {
        test.push("--workspace".to_owned());
    }
    // By default all failures are reported, not only the first one.
    if !arguments
        .iter()
        .any(|argument| argument.contains("fail-fast"))
    {
        test.push("--no-fail-fast".to_owned());
    }
    test.extend_from_slice(arguments);
    let build = test.iter().take_while(|argument| *argument != "--");
    // `--no-run` does not build doc tests: they are compiled when they run.
    let mut build: Vec<_> = build
        .filter(|argument| *argument != "--doc")
        .cloned()
        .collect();
    build.push("--no-run".to_owned());
    (build, test)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn everything_is_tested_unless_told_otherwise() {
        let (build, test) = cargo_arguments(&[]);
        assert_eq!(test, strings("test --workspace --no-fail-fast"));
        assert_eq!(build, strings("test --workspace --no-fail-fast --no-run"));
    }

    #[test]
    fn arguments_for_the_test_binaries_do_not_reach_the_build() {
        let (build, test) = cargo_arguments(&strings("-p api cache -- --nocapture"));
        assert_eq!(
            test,
            strings("test --no-fail-fast -p api cache -- --nocapture")
        );
        assert_eq!(build, strings("test --no-fail-fast -p api cache --no-run"));
    }
}
