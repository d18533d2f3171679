//! Who PostgreSQL runs as, and where that user can have its data.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::find_binaries;
use crate::process::Launch;
use crate::{progress, project};

/// A user to run a program as; only root can.
///
/// PostgreSQL refuses to run as root, so root runs it as the `postgres` user of the system's package. That user often
/// cannot enter the project's folder (`/root` is closed to it): the cluster then lives in the system's temporary folder,
/// under a name derived from the folder that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Account {
    /// The `postgres` user if we are root; `None` if the server can run as whoever we are.
    pub fn for_postgres() -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        Ok(Some(Self {
            uid: id_of_postgres("-u")?,
            gid: id_of_postgres("-g")?,
        }))
    }

    /// Its user and group id.
    pub fn ids(self) -> (u32, u32) {
        (self.uid, self.gid)
    }

    /// Gives a file or folder to the account.
    pub(super) fn own(self, path: &Path) -> Result<()> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))
            .with_context(|| format!("cannot give {} to the postgres user", path.display()))
    }

    /// Whether the account can enter a folder.
    fn can_enter(self, folder: &Path) -> bool {
        Launch::new("ls", "ls")
            .arg("-d")
            .arg(folder.join("."))
            .directory("/")
            .account(Some(self))
            .output_of("")
            .is_ok()
    }
}

/// Makes the folder of a cluster, empty and owned by the account, at the place asked for or, failing that, at [`fallback`].
pub(super) fn make_folder(wanted: &Path, account: Option<Account>) -> Result<PathBuf> {
    remove_cluster_folder(wanted)?;
    create(wanted, account)?;
    let Some(account) = account else {
        return Ok(wanted.to_owned());
    };
    if account.can_enter(wanted) {
        return Ok(wanted.to_owned());
    }
    fs::remove_dir(wanted).ok();
    let folder = fallback(wanted);
    if let Some(parent) = folder.parent() {
        make_own_parent(parent)?;
    }
    create(&folder, Some(account))?;
    if !account.can_enter(&folder) {
        bail!(
            "the postgres user can enter neither {} nor {}",
            wanted.display(),
            folder.display()
        );
    }
    progress::step(&format!(
        "the postgres user cannot enter {}: PostgreSQL's data is in {}",
        wanted.display(),
        folder.display()
    ));
    Ok(folder)
}

/// Removes a cluster's folder, wherever it came to be.
pub fn remove_cluster_folder(wanted: &Path) -> Result<()> {
    for folder in [wanted.to_owned(), fallback(wanted)] {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
            }
            _ => {}
        }
    }
    // Only if this was the last one in it.
    fallback(wanted).parent().map(fs::remove_dir);
    Ok(())
}

/// Where a cluster lives if the postgres user cannot enter the folder that was asked for.
fn fallback(wanted: &Path) -> PathBuf {
    std::env::temp_dir()
        .join(format!(
            "order-service-{:016x}",
            fingerprint(project::root())
        ))
        .join(format!("{:016x}", fingerprint(wanted)))
}

/// A number for a path, the same in every run (FNV-1a: std's hasher promises no such thing over versions).
fn fingerprint(path: &Path) -> u64 {
    crate::fingerprint(path.as_os_str().as_encoded_bytes())
}

/// Others can write to the temporary folder too: a folder that somebody else made beforehand is refused.
fn make_own_parent(parent: &Path) -> Result<()> {
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let metadata = fs::symlink_metadata(parent)
        .with_context(|| format!("cannot look at {}", parent.display()))?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
        bail!("{} is not ours: remove it", parent.display());
    }
    fs::set_permissions(parent, fs::Permissions::from_mode(0o711))
        .with_context(|| format!("cannot open {} to the postgres user", parent.display()))
}

fn create(folder: &Path, account: Option<Account>) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("cannot close {}", folder.display()))?;
    account.map_or(Ok(()), |account| account.own(folder))
}

fn id_of_postgres(option: &str) -> Result<u32> {
    let output = Command::new("id")
        .args([option, "postgres"])
        .output()
        .context("cannot run id")?;
    if !output.status.success() {
        bail!(
            "PostgreSQL cannot run as root and this system has no user `postgres`; its server binaries are in {}",
            find_binaries()?.display()
        );
    }
    String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .context("id printed no number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wanted_folder_has_a_fallback_of_its_own() {
        let one = fallback(Path::new("/a/b"));
        assert_eq!(one, fallback(Path::new("/a/b")));
        assert_ne!(one, fallback(Path::new("/a/c")));
        assert_eq!(one.parent(), fallback(Path::new("/a/c")).parent());
    }
}
