//! The programs of the former release.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use servers::process::Launch;
use servers::{progress, project};

use crate::cargo::{cargo, git};

/// Returns the newest tag, or the commit before the present one if there is no tag.
pub(super) fn default_revision() -> Result<String> {
    let tag = git(&["describe", "--tags", "--abbrev=0"]);
    tag.or_else(|_| git(&["rev-parse", "HEAD~"])).context(
        "there is no former revision: name one, or a folder with the programs of a release",
    )
}

/// Returns the folder with the programs of a release. Builds them if `former` is not such a folder but a revision.
///
/// Each revision has a folder of its own, because cargo compares times: the files of an older revision would seem to be built.
/// All of them share what is compiled of other crates.
pub(super) fn programs(former: &str) -> Result<PathBuf> {
    let given = Path::new(former);
    if given.join("ingestor").is_file() && given.join("api").is_file() {
        return given
            .canonicalize()
            .with_context(|| format!("cannot find {former}"));
    }
    let revision =
        git(&["rev-parse", "--verify", &format!("{former}^{{commit}}")]).with_context(|| {
            format!("{former} is neither a revision nor a folder with the programs")
        })?;
    let folder = project::root().join("target/upgrade").join(&revision);
    let programs = folder.join("programs");
    if programs.join("api").is_file() {
        progress::step(&format!("the former release, {former}, is built already"));
        return Ok(programs);
    }
    progress::step(&format!(
        "building the former release, {former} (this takes some minutes)"
    ));
    let source = folder.join("source");
    check_out(&revision, &source)?;
    let target = project::root().join("target/upgrade/build");
    cargo("cargo build of the former release")
        .args(["build", "--locked", "-p", "ingestor", "-p", "api"])
        .directory(&source)
        .env("CARGO_TARGET_DIR", &target)
        .run()?;
    fs::create_dir_all(&programs)
        .with_context(|| format!("cannot create {}", programs.display()))?;
    for program in ["ingestor", "api"] {
        let built = target.join("debug").join(program);
        fs::copy(&built, programs.join(program))
            .with_context(|| format!("cannot copy {}", built.display()))?;
    }
    fs::remove_dir_all(&source).with_context(|| format!("cannot remove {}", source.display()))?;
    Ok(programs)
}

fn check_out(revision: &str, source: &Path) -> Result<()> {
    // A run that was interrupted may have left half of it.
    if source.exists() {
        fs::remove_dir_all(source)
            .with_context(|| format!("cannot remove {}", source.display()))?;
    }
    fs::create_dir_all(source).with_context(|| format!("cannot create {}", source.display()))?;
    let archive = source.with_extension("tar");
    Launch::new("git archive", "git")
        .args(["archive", "--format=tar", "--output"])
        .arg(&archive)
        .arg(revision)
        .directory(project::root())
        .run()?;
    Launch::new("tar", "tar")
        .arg("-xf")
        .arg(&archive)
        .arg("-C")
        .arg(source)
        .run()?;
    fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))
}
