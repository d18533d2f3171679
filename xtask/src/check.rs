//! `cargo xtask check`: what is quick to check and must hold for every commit. `.ci/run` runs it too, so there is no drift.

mod gates;

use anyhow::{Result, bail};

use crate::cargo::cargo;
use crate::process::Launch;
use crate::{packages, progress, project};

/// Runs all checks, the quick ones first, and stops at the first that fails.
pub fn run() -> Result<()> {
    packages::ensure(&[packages::Purpose::Build])?;
    progress::step("gates: no SQL by format!, no paths of a developer's machine");
    let findings = gates::findings(project::root())?;
    if !findings.is_empty() {
        bail!("{}", findings.join("\n"));
    }
    progress::step("cargo fmt");
    cargo("cargo fmt").args(["fmt", "--all", "--check"]).run()?;
    progress::step("cargo clippy");
    cargo("cargo clippy")
        .args(["clippy", "--workspace", "--all-targets", "--all-features"])
        .args(["--", "-D", "warnings"])
        .run()?;
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

/// `cargo xtask check-deploy`: the static checks of what cannot be run here (compose, Dockerfile).
pub fn run_deploy() -> Result<()> {
    progress::step("deploy/check.sh");
    Launch::new("deploy/check.sh", "bash")
        .arg("deploy/check.sh")
        .directory(project::root())
        .run()
}
