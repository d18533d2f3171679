//! The folder for the servers of one run.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use servers::interrupt::Interrupted;
use servers::{postgres, project};

/// A folder under `.stack` that one process holds for as long as it runs.
#[derive(Debug)]
pub(crate) struct StackFolder {
    path: PathBuf,
    /// The locked file. The kernel releases the lock however the process ends.
    _lock: File,
    is_removed_at_end: bool,
}

impl StackFolder {
    /// Takes the folder of that name and empties it.
    ///
    /// # Errors
    /// Fails if another process has it.
    pub(crate) fn take(name: &str) -> Result<Self> {
        let path = project::stack_folder().join(name);
        let Some(lock) = lock(&lock_path(&path))? else {
            bail!(
                "another `{name}` runs in this clone (.stack/{name}.env names its servers): stop it first"
            );
        };
        remove_stack_folder(&path)?;
        // The file that a killed run has left names servers that are gone.
        fs::remove_file(super::env_file(name)).ok();
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self {
            path,
            _lock: lock,
            is_removed_at_end: false,
        })
    }

    /// Takes a folder that belongs to this process and is removed at the end. It first removes what killed processes have left.
    pub(crate) fn take_own(name: &str) -> Result<Self> {
        remove_stale(name);
        let mut folder = Self::take(&format!("{name}-{}", std::process::id()))?;
        folder.is_removed_at_end = true;
        Ok(folder)
    }

    /// Removes it at the end, unless the run has failed. Then somebody will want to look at it.
    pub(crate) fn remove_at_end_unless_failed(&mut self, outcome: &Result<()>) {
        self.is_removed_at_end = match outcome {
            Ok(()) => true,
            Err(error) => error.is::<Interrupted>(),
        };
    }

    /// Returns its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for StackFolder {
    fn drop(&mut self) {
        if self.is_removed_at_end {
            remove_stack_folder(&self.path).ok();
            fs::remove_file(lock_path(&self.path)).ok();
        }
    }
}

/// Removes the folders of that name whose process has ended.
fn remove_stale(name: &str) {
    let prefix = format!("{name}-");
    for entry in fs::read_dir(project::stack_folder())
        .into_iter()
        .flatten()
        .flatten()
    {
        let file_name = entry.file_name();
        let Some(stem) = file_name
            .to_str()
            .and_then(|file_name| file_name.strip_suffix(".lock"))
        else {
            continue;
        };
        if stem.starts_with(&prefix)
            && let Ok(lock) = open_lock(&entry.path())
            && lock.try_lock().is_ok()
        {
            remove_stack_folder(&entry.path().with_extension("")).ok();
            fs::remove_file(entry.path()).ok();
        }
    }
}

fn remove_stack_folder(path: &Path) -> Result<()> {
    postgres::remove_folder(&path.join("postgres"))?;
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

fn lock_path(folder: &Path) -> PathBuf {
    folder.with_extension("lock")
}

/// Locks a file for as long as the process lives; `None` if another process has locked it.
fn lock(path: &Path) -> Result<Option<File>> {
    for _ in 0..20 {
        let lock = open_lock(path)?;
        match lock.try_lock() {
            // If another process removes the file between our open and our lock, the lock protects nothing.
            Ok(()) if is_still_at(&lock, path) => return Ok(Some(lock)),
            Ok(()) => {}
            // Perhaps the other process only looks for stale folders.
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
    }
    Ok(None)
}

fn is_still_at(file: &File, path: &Path) -> bool {
    let inode = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    file.metadata()
        .and_then(|held| Ok(inode(held) == inode(fs::metadata(path)?)))
        .unwrap_or(false)
}

fn open_lock(path: &Path) -> Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
    }
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_owner_and_what_a_dead_owner_left_is_removed() {
        let name = format!("unit-{}", std::process::id());
        let first = StackFolder::take(&name).unwrap();
        let path = first.path().to_owned();
        fs::write(path.join("data"), "something").unwrap();
        let error = StackFolder::take(&name).unwrap_err().to_string();
        assert!(error.contains("runs in this clone"), "{error}");
        remove_stale("unit");
        assert!(path.join("data").exists());

        drop(first);
        assert!(path.join("data").exists());
        let mut again = StackFolder::take(&name).unwrap();
        assert!(!path.join("data").exists());
        again.remove_at_end_unless_failed(&Err(Interrupted.into()));
        drop(again);
        assert!(!path.exists());
        assert!(!lock_path(&path).exists());

        drop(StackFolder::take(&name).unwrap());
        remove_stale("unit");
        assert!(!path.exists());
    }
}
