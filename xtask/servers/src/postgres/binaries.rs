//! Which of PostgreSQL's programs are used: those that the developer has chosen, or those of the system.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::process::find_program;
use crate::project;

/// Returns the folder of the server's binaries: the one that `POSTGRES_BIN` names, or else that of the system's newest
/// PostgreSQL.
///
/// # Errors
/// Fails if they are not there. If `POSTGRES_BIN` is wrong or empty, as after a `$(...)` that failed, the system's PostgreSQL
/// does not take its place.
pub fn find_binaries() -> Result<PathBuf> {
    match chosen_binaries() {
        Some(folder) if is_complete(&folder) => Ok(folder),
        Some(folder) => bail!(
            "POSTGRES_BIN names {}, which has no PostgreSQL server binaries (initdb, postgres): correct or unset it",
            folder.display()
        ),
        None => find_installed(),
    }
}

/// Returns the folder that `POSTGRES_BIN` names. A relative path starts at the root of the workspace, because the tests of
/// each crate run in another folder.
pub fn chosen_binaries() -> Option<PathBuf> {
    std::env::var_os("POSTGRES_BIN").map(|folder| project::root().join(folder))
}

/// Returns the path of a client such as `psql`: beside the server's binaries, or else on the PATH. Some packages of servers
/// have no clients.
pub fn find_client(binaries: &Path, name: &str) -> PathBuf {
    let beside = binaries.join(name);
    if beside.is_file() {
        beside
    } else {
        PathBuf::from(name)
    }
}

/// Debian does not have the server's binaries on the PATH.
fn find_installed() -> Result<PathBuf> {
    let mut candidates: Vec<(u32, PathBuf)> = Vec::new();
    if let Ok(entries) = fs::read_dir("/usr/lib/postgresql") {
        for entry in entries.flatten() {
            if let Some(version) = entry.file_name().to_str().and_then(major_version) {
                candidates.push((version, entry.path().join("bin")));
            }
        }
    }
    candidates.sort();
    let newest = candidates
        .into_iter()
        .rev()
        .map(|(_, folder)| folder)
        .find(|folder| is_complete(folder));
    if let Some(folder) = newest {
        return Ok(folder);
    }
    if let Some(folder) = find_program("initdb").and_then(|file| file.parent().map(Path::to_owned))
        && is_complete(&folder)
    {
        return Ok(folder);
    }
    bail!(
        "no PostgreSQL server binaries (initdb, postgres) in /usr/lib/postgresql/*/bin or on the PATH"
    )
}

fn is_complete(folder: &Path) -> bool {
    folder.join("initdb").is_file() && folder.join("postgres").is_file()
}

fn major_version(text: &str) -> Option<u32> {
    // Versions such as 9.6 are too old.
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(major_version("15"), Some(15));
        assert!(major_version("9") < major_version("15"));
        assert_eq!(major_version("9.6"), None);
        assert_eq!(major_version("bin"), None);
    }
}
