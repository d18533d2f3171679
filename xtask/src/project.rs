//! Where things are.

use std::path::{Path, PathBuf};

/// The root of the workspace.
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// The folder, ignored by git, that holds everything the private servers write.
pub fn stack_folder() -> PathBuf {
    root().join(".stack")
}
