//! Runs cargo for the workspace.

use std::ffi::OsString;
use std::path::PathBuf;

use servers::process::Launch;
use servers::project;

/// Cargo in the workspace's root, the same one that runs us.
pub fn cargo(name: &str) -> Launch {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut launch = Launch::new(name, program).directory(project::root());
    // Set by `cargo run` for our own package; a build script that reads them must not see ours.
    for (variable, _) in std::env::vars_os() {
        if let Some(variable) = variable.to_str()
            && (variable.starts_with("CARGO_PKG_") || variable.starts_with("CARGO_MANIFEST_"))
        {
            launch = launch.env_remove(variable);
        }
    }
    launch
}

/// Where cargo puts what it builds.
pub fn target_folder(release: bool) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| project::root().join("target"), PathBuf::from);
    let target = if target.is_relative() {
        project::root().join(target)
    } else {
        target
    };
    target.join(if release { "release" } else { "debug" })
}
