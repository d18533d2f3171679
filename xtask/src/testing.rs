//! `cargo xtask test`: every test, on a PostgreSQL and a Kafka that this run has to itself.
//!
//! Two runs at once do not meet: each has a folder and ports of its own. Everything is removed at the end.

use std::process::ExitStatus;
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};

use servers::progress;
use servers::signals::Signal;

use crate::cargo::cargo;
use crate::packages;
use crate::stack::{self, Stack, StackFolder};

/// How long a test binary that was asked to stop may take.
const GRACE: Duration = Duration::from_secs(5);

/// Runs `cargo test` with further arguments and returns how it ended.
pub fn run(arguments: &[String]) -> Result<ExitStatus> {
    let folder = StackFolder::take_own("test")?;
    stack::install_packages()?;
    packages::ensure(&[packages::Purpose::ApiTests])?;
    let (build_arguments, test_arguments) = cargo_arguments(arguments);
    // The servers start while cargo builds.
    let servers = thread::scope(|scope| {
        let servers = scope.spawn(|| Stack::start(folder.path(), false));
        progress::step("building the tests (the first time takes some minutes)");
        let built = cargo("cargo test --no-run")
            .args(&build_arguments)
            .run()
            .map(|()| progress::step("built"));
        let servers = servers
            .join()
            .map_err(|_| anyhow!("the start of the servers panicked"))?;
        built.and(servers)
    })?;
    let status = cargo("cargo test")
        .args(&test_arguments)
        .envs(&servers.env())
        .env("RUST_BACKTRACE", "1")
        .spawn()?
        .wait(Signal::INT, GRACE);
    // At once: nothing of it is kept. And not a word: the last lines are those of the tests.
    drop(servers);
    status
}

/// What cargo is called with, to build and to test.
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
    // All that is broken is told at once.
    if !arguments
        .iter()
        .any(|argument| argument.contains("fail-fast"))
    {
        test.push("--no-fail-fast".to_owned());
    }
    test.extend(arguments.iter().cloned());
    let mut build = test.clone();
    if let Some(separator) = build.iter().position(|argument| argument == "--") {
        build.truncate(separator);
    }
    // `--no-run` builds doc tests neither now nor later; they are compiled when they are run.
    build.retain(|argument| argument != "--doc");
    build.push("--no-run".to_owned());
    (build, test)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn everything_is_tested_unless_told_otherwise() {
        let (build, test) = cargo_arguments(&[]);
        assert_eq!(test, strings(&["test", "--workspace", "--no-fail-fast"]));
        assert_eq!(
            build,
            strings(&["test", "--workspace", "--no-fail-fast", "--no-run"])
        );
    }

    #[test]
    fn arguments_for_the_test_binaries_do_not_reach_the_build() {
        let (build, test) = cargo_arguments(&strings(&["-p", "api", "cache", "--", "--nocapture"]));
        assert_eq!(
            test,
            strings(&[
                "test",
                "--no-fail-fast",
                "-p",
                "api",
                "cache",
                "--",
                "--nocapture"
            ])
        );
        assert_eq!(
            build,
            strings(&["test", "--no-fail-fast", "-p", "api", "cache", "--no-run"])
        );
    }
}
