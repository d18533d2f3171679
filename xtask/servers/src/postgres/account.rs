//! Which user PostgreSQL runs as, and where that user can have its data.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process::Launch;
use crate::{progress, project};

/// A user to run a program as. Only root can do that.
///
/// PostgreSQL refuses to run as root, so root runs it as the user `postgres` of the system's package. That user often cannot
/// enter the project's folder, for example under `/root`. The cluster is then in the system's temporary folder, under a name
/// that is derived from the folder that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// Returns the user `postgres` for root; `None` for any other user, as whom the server can run.
    pub fn for_postgres() -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        Ok(Some(Self {
            uid: id_of_postgres("-u")?,
            gid: id_of_postgres("-g")?,
        }))
    }

    /// Returns its user and group id.
    pub fn ids(self) -> (u32, u32) {
        (self.uid, self.gid)
    }

    /// Makes it the owner of a file or folder.
    pub(super) fn own(self, path: &Path) -> Result<()> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid)).with_context(|| {
            format!(
                "cannot make the user postgres the owner of {}",
                path.display()
            )
        })
    }

    /// Returns whether it can enter a folder.
    pub(super) fn can_enter(self, folder: &Path) -> bool {
        Launch::new("ls", "ls")
            .arg("-d")
            .arg(folder.join("."))
            .directory("/")
            .user(Some(self.ids()))
            .output_of("")
            .is_ok()
    }
}

/// Creates the folder of a cluster, empty and owned by the account: `wanted`, or [`fallback`] if the account cannot enter it.
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
            "the user postgres can enter neither {} nor {}",
            wanted.display(),
            folder.display()
        );
    }
    progress::step(&format!(
        "the user postgres cannot enter {}, so PostgreSQL's data is in {}",
        wanted.display(),
        folder.display()
    ));
    Ok(folder)
}

/// Removes a cluster's folder, wherever it is.
pub fn remove_cluster_folder(wanted: &Path) -> Result<()> {
    for folder in [wanted.to_owned(), fallback(wanted)] {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
            }
            _ => {}
        }
    }
    // This removes the parent only if it is empty.
    fallback(wanted).parent().map(fs::remove_dir);
    Ok(())
}

/// Returns the folder for a cluster if the user postgres cannot enter the folder that was asked for.
fn fallback(wanted: &Path) -> PathBuf {
    std::env::temp_dir()
        .join(format!(
            "order-service-{:016x}",
            fingerprint(project::root())
        ))
        .join(format!("{:016x}", fingerprint(wanted)))
}

fn fingerprint(path: &Path) -> u64 {
    project::fingerprint(path.as_os_str().as_encoded_bytes())
}

/// Creates the parent of [`fallback`]. Others can write to the temporary folder too, so a folder of somebody else is refused.
fn make_own_parent(parent: &Path) -> Result<()> {
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let metadata = fs::symlink_metadata(parent)
        .with_context(|| format!("cannot look at {}", parent.display()))?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
        bail!("{} belongs to another user: remove it", parent.display());
    }
    fs::set_permissions(parent, fs::Permissions::from_mode(0o711))
        .with_context(|| format!("cannot open {} to the user postgres", parent.display()))
}

fn create(folder: &Path, account: Option<Account>) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("cannot restrict the access to {}", folder.display()))?;
    account.map_or(Ok(()), |account| account.own(folder))
}

fn id_of_postgres(option: &str) -> Result<u32> {
    let output = Command::new("id")
        .args([option, "postgres"])
        .output()
        .context("cannot run `id`")?;
    if !output.status.success() {
        bail!(
            "PostgreSQL cannot run as root, and this system has no user `postgres`: create it, or run this as another user"
        );
    }
    String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .context("`id` printed no number")
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
