//! Where the system keeps PostgreSQL's server binaries.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::process::find_program;

/// Returns the folder of the newest PostgreSQL. Debian does not have the server's binaries on the PATH.
pub fn find_binaries() -> Result<PathBuf> {
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
