//! `cargo xtask fuzz`: hostile inputs for the code that reads foreign bytes, for a short time, starting with the saved corpus.
//!
//! libFuzzer is a library here. cargo-fuzz would only pass a few flags, which stable compilers accept, so that nothing has to
//! be installed.

use std::fs;

use anyhow::{Context as _, Result, bail};
use servers::process::Launch;
use servers::{progress, project};

use crate::arguments::take_number;
use crate::cargo::cargo;
use crate::packages::{self, Purpose};

const TARGETS: [&str; 5] = ["order", "order_uid", "cursor", "if_match", "event"];
/// The five targets take one minute together.
const DEFAULT_SECONDS: u64 = 12;
/// No input is larger than an order, and no accepted order is much larger than this.
const MAX_INPUT_BYTES: &str = "-max_len=300000";

/// Coverage that libFuzzer reads. There is no sanitizer, because there is no `unsafe` in this workspace.
const INSTRUMENTATION: &str = "--cfg fuzzing -Cdebug-assertions -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Runs the named targets, or all, for some seconds each (`--seconds N`).
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let (targets, seconds) = options(arguments)?;
    packages::ensure(&[Purpose::Build])?;
    let host = host_triple()?;
    progress::step("building the fuzz targets (the first time this takes some minutes)");
    cargo("cargo build of the fuzz targets")
        .args(["build", "--bins", "--manifest-path", "fuzz/Cargo.toml"])
        // With a target, build scripts are not instrumented. Instrumented ones could not be linked.
        .args(["--target", &host, "--target-dir", "target/fuzz"])
        .env("RUSTFLAGS", INSTRUMENTATION)
        .run()?;
    let folder = project::root().join("target/fuzz");
    for target in targets {
        progress::step(&format!("fuzzing {target} for {seconds} s"));
        // What is found goes to a folder that git ignores. The saved corpus is only read.
        let found = folder.join("corpus").join(&target);
        fs::create_dir_all(&found).with_context(|| format!("cannot create {}", found.display()))?;
        Launch::new(&target, folder.join(&host).join("debug").join(&target))
            .directory(project::root())
            .arg(&found)
            .arg(project::root().join("fuzz/corpus").join(&target))
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
    progress::step("no input has broken a target");
    Ok(())
}

fn options(arguments: &[String]) -> Result<(Vec<String>, u64)> {
    let mut targets = arguments.to_vec();
    let seconds = take_number(&mut targets, "--seconds")?.unwrap_or(DEFAULT_SECONDS);
    if let Some(unknown) = targets
        .iter()
        .find(|name| !TARGETS.contains(&name.as_str()))
    {
        bail!(
            "there is no fuzz target {unknown}; the targets are {}",
            TARGETS.join(", ")
        );
    }
    if targets.is_empty() {
        targets.extend(TARGETS.map(str::to_owned));
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
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
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
        let all = TARGETS.map(str::to_owned).to_vec();
        assert_eq!(options(&[]).unwrap(), (all, DEFAULT_SECONDS));
        let some = ["event", "--seconds", "60"].map(str::to_owned);
        assert_eq!(options(&some).unwrap(), (vec!["event".to_owned()], 60));
        assert!(options(&["nothing".to_owned()]).is_err());
    }
}
