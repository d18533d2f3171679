//! Temporary folders that name their owner, so that the folders of killed processes can be found and removed.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::proc::is_running;

/// The rest of the name is the purpose, the owner's process id and a number.
const PREFIX: &str = "order-service-private-";

/// Returns the path of a folder that nobody else has, and removes the folders that killed processes have left.
pub fn folder(purpose: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let parent = std::env::temp_dir();
    for entry in fs::read_dir(&parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner_opt = name.to_str().and_then(owner);
        if owner_opt.is_some_and(|pid| !is_running(pid)) {
            // Another user's folder cannot be removed, and that is fine.
            fs::remove_dir_all(entry.path()).ok();
        }
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let process_id = std::process::id();
    parent.join(format!("{PREFIX}{purpose}-{process_id}-{number}"))
}

fn owner(name: &str) -> Option<u32> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-').skip(1);
    parts.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_folders_name_their_owner() {
        assert_eq!(owner("order-service-private-postgres-17-0"), Some(17));
        assert_eq!(owner("order-service-private-postgres"), None);
        assert_eq!(owner("order-service-0123456789abcdef"), None);
    }
}
