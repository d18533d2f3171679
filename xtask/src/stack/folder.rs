//! The folder that the servers of one run have to themselves.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::{postgres, project};

/// A folder under `.stack` that one process holds as long as it runs.
#[derive(Debug)]
pub struct StackFolder {
    path: PathBuf,
    /// Held for its lock, which the kernel takes away however the process ends.
    _lock: File,
    removed_at_end: bool,
}

impl StackFolder {
    /// Takes the folder of that name, empty; fails if another process has it.
    pub fn take(name: &str) -> Result<Self> {
        let path = project::stack_folder().join(name);
        let lock = open_lock(&lock_path(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("another `{name}` runs in this clone (its servers: .stack/{name}.env)")
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).context("cannot lock the stack's folder");
            }
        }
        remove_stack_folder(&path)?;
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self {
            path,
            _lock: lock,
            removed_at_end: false,
        })
    }

    /// Takes a folder of this process alone, removed at the end; what killed processes left is removed first.
    pub fn take_own(name: &str) -> Result<Self> {
        remove_stale(name);
        let mut folder = Self::take(&format!("{name}-{}", std::process::id()))?;
        folder.removed_at_end = true;
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for StackFolder {
    fn drop(&mut self) {
        if self.removed_at_end {
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

fn open_lock(path: &Path) -> Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}
