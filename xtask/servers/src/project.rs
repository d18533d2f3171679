//! Where the workspace and its files are.

use std::path::{Path, PathBuf};

/// Returns the root of the workspace.
pub fn root() -> &'static Path {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    // This crate is in `xtask/servers`.
    crate_folder.ancestors().nth(2).unwrap_or(crate_folder)
}

/// Returns the folder for everything that the private servers write. Git ignores it.
pub fn stack_folder() -> PathBuf {
    root().join(".stack")
}

/// Returns a number for some bytes, to be used in the name of a folder (FNV-1a).
///
/// The number is the same in every run and with every version of Rust. The hasher of std does not promise that.
pub(crate) fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
