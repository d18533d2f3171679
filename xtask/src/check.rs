//! `cargo xtask check`: what is quick to check and must hold for every commit. `.ci/run` runs it too, so there is no drift.

mod gates;

use anyhow::{Result, bail};

use servers::process::Launch;
use servers::{progress, project};

use crate::cargo::cargo;
use crate::packages;

/// Runs all checks, the quick ones first, and stops at the first that fails.
pub fn run() -> Result<()> {
    packages::ensure(&[packages::Purpose::Build])?;
    progress::step("gates: no SQL by format!, no paths of a developer's machine");
    let findings = gates::findings(project::root())?;
    if !findings.is_empty() {
        bail!("{}", findings.join("\n"));
    }
    progress::step("cargo tree: no failpoints outside of tests");
    if has_failpoints(&tree_of_builds()?) {
        bail!(
            "the crate `fail` is in builds that are no tests: see the feature `failpoints` of ingestor"
        );
    }
    progress::step("cargo fmt");
    cargo("cargo fmt").args(["fmt", "--all", "--check"]).run()?;
    cargo("cargo fmt of the fuzz targets")
        .args(["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"])
        .run()?;
    progress::step("cargo clippy");
    cargo("cargo clippy")
        .args(["clippy", "--workspace", "--all-targets", "--all-features"])
        .args(["--", "-D", "warnings"])
        .run()?;
    // As it is shipped, without failpoints; and the tests of `cargo xtask faults`, which are in no list of all targets.
    for target in [
        &["-p", "ingestor", "--lib", "--bins"][..],
        &["-p", "ingestor", "-p", "api", "--test", "faults"],
    ] {
        cargo("cargo clippy")
            .arg("clippy")
            .args(target)
            .args(["--", "-D", "warnings"])
            .run()?;
    }
    progress::step("cargo doc");
    cargo("cargo doc")
        .args([
            "doc",
            "--workspace",
            "--no-deps",
            "--all-features",
            "--document-private-items",
        ])
        .env("RUSTDOCFLAGS", "-D warnings")
        .run()?;
    progress::step("all checks have passed");
    Ok(())
}

/// What is built when no tests are: a line for each crate and its features.
fn tree_of_builds() -> Result<String> {
    cargo("cargo tree")
        .args(["tree", "--workspace", "--edges", "no-dev"])
        .args(["--prefix", "none", "--format", "{p} {f}"])
        .output_of("")
}

fn has_failpoints(tree: &str) -> bool {
    tree.lines().any(|line| line.starts_with("fail "))
}

/// `cargo xtask check-deploy`: the static checks of what cannot be run here (compose, Dockerfile).
pub fn run_deploy() -> Result<()> {
    progress::step("deploy/check.sh");
    Launch::new("deploy/check.sh", "bash")
        .arg("deploy/check.sh")
        .directory(project::root())
        .run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failpoints_are_found_in_a_tree() {
        assert!(has_failpoints(
            "ingestor v0.1.0 failpoints\nfail v0.5.1 failpoints\n"
        ));
        assert!(!has_failpoints("ingestor v0.1.0 \nfailure v0.1.0 \n"));
    }
}
