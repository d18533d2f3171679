//! The migrations of a folder, in the order in which they run.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use migrations_internals::TomlMetadata;

/// A migration as it is in its folder.
#[derive(Clone, Debug)]
pub(crate) struct Migration {
    /// The name of the folder.
    pub name: String,
    /// The text of `up.sql`.
    pub up: String,
    /// False if `metadata.toml` says so.
    pub runs_in_transaction: bool,
}

/// Reads all migrations of a folder.
///
/// `down.sql` is not read: no program of ours runs it.
///
/// # Errors
/// Returns an error if the folder or a file cannot be read.
pub(crate) fn read_all(folder: &Path) -> Result<Vec<Migration>> {
    let cannot_read = || format!("cannot read {}", folder.display());
    let mut migrations = Vec::new();
    for entry in fs::read_dir(folder).with_context(cannot_read)? {
        let path = entry.with_context(cannot_read)?.path();
        if path.is_dir() {
            migrations.push(read(&path)?);
        }
    }
    migrations.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(migrations)
}

fn read(folder: &Path) -> Result<Migration> {
    let file = folder.join("up.sql");
    let metadata = folder.join("metadata.toml");
    let runs_in_transaction = if metadata.exists() {
        let metadata = TomlMetadata::read_from_file(&metadata)
            .map_err(|error| anyhow!("{}: {error}", metadata.display()))?;
        metadata.run_in_transaction
    } else {
        true
    };
    Ok(Migration {
        name: folder
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        up: fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?,
        runs_in_transaction,
    })
}
