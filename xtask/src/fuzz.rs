//! `cargo xtask fuzz`: hostile inputs for what reads strangers' bytes, for a short while, from the saved corpus on.
//!
//! libFuzzer is a library here. What cargo-fuzz would do is passing a few flags, which stable compilers take, so that
//! nothing has to be installed.

use std::fs;

use anyhow::{Context as _, Result, bail};

use servers::process::Launch;
use servers::{progress, project};

use crate::cargo::cargo;
use crate::packages;

const TARGETS: [&str; 5] = ["order", "order_uid", "cursor", "if_match", "event"];
/// With five targets a minute in all.
const DEFAULT_SECONDS: u64 = 12;
/// No input that is read is larger than an order, and none that is accepted is much larger.
const MAX_INPUT_BYTES: &str = "-max_len=300000";

/// Coverage that libFuzzer reads. No sanitizer: there is no `unsafe` in this workspace.
const INSTRUMENTATION: &str = "--cfg fuzzing -Cdebug-assertions -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Runs the named targets, or all, for so many seconds each (`--seconds N`).
pub fn run(arguments: &[String]) -> Result<()> {
    let (targets, seconds) = options(arguments)?;
    packages::ensure(&[packages::Purpose::Build])?;
    let host = host_triple()?;
    progress::step("building the fuzz targets (the first time takes some minutes)");
    cargo("cargo build of the fuzz targets")
        .args(["build", "--bins", "--manifest-path", "fuzz/Cargo.toml"])
        // Named, so that build scripts are not instrumented: they would not link.
        .args(["--target", &host, "--target-dir", "target/fuzz"])
        .env("RUSTFLAGS", INSTRUMENTATION)
        .run()?;
    let built = project::root()
        .join("target/fuzz")
        .join(&host)
        .join("debug");
    for target in targets {
        progress::step(&format!("fuzzing {target} for {seconds} s"));
        // What is found goes to a folder that git ignores; the saved corpus is only read.
        let found = project::root().join("target/fuzz/corpus").join(target);
        fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
        Launch::new(target, built.join(target))
            .directory(project::root())
            .arg(&found)
            .arg(project::root().join("fuzz/corpus").join(target))
            .arg(format!("-max_total_time={seconds}"))
            .args([
                MAX_INPUT_BYTES,
                "-timeout=10",
                "-rss_limit_mb=1024",
                "-print_final_stats=1",
            ])
            .arg(format!("-artifact_prefix={}/crash-", found.display()))
            .run()?;
    }
    progress::step("no input broke a target");
    Ok(())
}

fn options(arguments: &[String]) -> Result<(Vec<&'static str>, u64)> {
    let (mut targets, mut seconds) = (Vec::new(), DEFAULT_SECONDS);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--seconds" {
            let given = arguments.next().context("--seconds needs a number")?;
            seconds = given
                .parse()
                .with_context(|| format!("--seconds {given}: no number"))?;
        } else if let Some(target) = TARGETS.iter().find(|target| *target == argument) {
            targets.push(*target);
        } else {
            bail!(
                "no such fuzz target: {argument}, there are {}",
                TARGETS.join(", ")
            );
        }
    }
    if targets.is_empty() {
        targets.extend(TARGETS);
    }
    Ok((targets, seconds))
}

fn host_triple() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Launch::new("rustc", rustc)
        .directory(project::root())
        .arg("-vV")
        .output_of("")?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_corpus_and_is_run_unless_told_otherwise() {
        for target in TARGETS {
            let corpus = project::root().join("fuzz/corpus").join(target);
            assert!(fs::read_dir(corpus).unwrap().next().is_some(), "{target}");
        }
        assert_eq!(options(&[]).unwrap(), (TARGETS.to_vec(), DEFAULT_SECONDS));
        let some = ["event", "--seconds", "60"].map(str::to_owned);
        assert_eq!(options(&some).unwrap(), (vec!["event"], 60));
        assert!(options(&["nothing".to_owned()]).is_err());
    }
}
