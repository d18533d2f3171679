//! `cargo xtask check`: checks that are quick and must pass for every commit. `.ci/run` runs them too, so the two cannot
//! drift apart.

mod gates;

use anyhow::{Result, bail};
use servers::process::Launch;
use servers::{progress, project};

use crate::cargo::cargo;
use crate::packages::{self, Purpose};

/// Runs all checks, the quick ones first, and stops at the first one that fails.
pub(crate) fn run() -> Result<()> {
    packages::ensure(&[Purpose::Build])?;
    progress::step("gates: no SQL by format!, no paths of a developer's machine");
    let findings = gates::findings(project::root())?;
    if !findings.is_empty() {
        bail!("{}", findings.join("\n"));
    }
    progress::step("cargo tree: no failpoints outside of tests");
    if has_failpoints(&tree_of_builds()?) {
        bail!(
            "a build without tests contains the crate `fail`: only dev-dependencies may enable the feature `failpoints` \
             of ingestor"
        );
    }
    progress::step("cargo fmt");
    run_cargo(&["fmt", "--all", "--check"])?;
    run_cargo(&["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"])?;
    progress::step("modules: no circles, and true tables");
    let roots = gates::crate_roots(project::root())?;
    let roots: Vec<&str> = roots.iter().map(String::as_str).collect();
    run_cargo(&[&["run", "--quiet", "-p", "modules", "--"], &roots[..]].concat())?;
    progress::step("migrations: none stops reads or ingestion");
    run_cargo(&["run", "--quiet", "-p", "migrations", "--", "migrations"])?;
    progress::step("cargo clippy");
    for targets in [
        &["--workspace", "--all-targets", "--all-features"][..],
        // As it is shipped, without failpoints. `cargo doc` needs the same dependencies.
        &["--workspace", "--lib", "--bins"],
        // The tests of `cargo xtask faults`, which `--all-targets` leaves out.
        &["-p", "ingestor", "-p", "api", "--test", "faults"],
    ] {
        run_cargo(&[&["clippy"], targets, &["--", "-D", "warnings"]].concat())?;
    }
    progress::step("cargo doc");
    cargo("cargo doc")
        .args(["doc", "--workspace", "--no-deps", "--all-features"])
        .arg("--document-private-items")
        .env("RUSTDOCFLAGS", "-D warnings")
        .run()?;
    progress::step("all checks have passed");
    Ok(())
}

fn run_cargo(arguments: &[&str]) -> Result<()> {
    let name = format!("cargo {}", arguments.join(" "));
    cargo(&name).args(arguments).run()
}

/// Returns what is built without tests: a line for each crate and its features.
fn tree_of_builds() -> Result<String> {
    cargo("cargo tree")
        .args(["tree", "--workspace", "--edges", "no-dev"])
        .args(["--prefix", "none", "--format", "{p} {f}"])
        .output_of("")
}

fn has_failpoints(tree: &str) -> bool {
    tree.lines().any(|line| line.starts_with("fail "))
}

/// `cargo xtask check-deploy`: static checks of the compose file and the Dockerfile, which cannot be run here.
pub(crate) fn run_deploy() -> Result<()> {
    packages::ensure(&[Purpose::Deploy])?;
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
