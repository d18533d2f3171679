//! Runs cargo and git for the workspace.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use servers::process::Launch;
use servers::project;

/// Prepares a run of cargo in the root of the workspace. It is the same cargo that runs xtask.
pub(crate) fn cargo(name: &str) -> Launch {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut launch = Launch::new(name, program).directory(project::root());
    // `cargo run` sets these variables for xtask. The build scripts of other packages must not see them.
    for (variable, _) in std::env::vars_os() {
        if let Some(variable) = variable.to_str()
            && (variable.starts_with("CARGO_PKG_") || variable.starts_with("CARGO_MANIFEST_"))
        {
            launch = launch.env_remove(variable);
        }
    }
    launch
}

/// Runs the rustc of the workspace, and returns what it prints.
pub(crate) fn rustc(arguments: &[&str]) -> Result<String> {
    let program = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    Launch::new("rustc", program)
        .args(arguments)
        .directory(project::root())
        .output_of("")
}

/// Runs git in the root of the workspace, and returns what it prints.
pub(crate) fn git(arguments: &[&str]) -> Result<String> {
    let output = Launch::new("git", "git")
        .args(arguments)
        .directory(project::root())
        .output_of("")?;
    Ok(output.trim().to_owned())
}

/// Returns the folder for what cargo builds.
pub(crate) fn target_folder(is_release: bool) -> PathBuf {
    // If the variable is an absolute path, `join` returns it as it is.
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let profile = if is_release { "release" } else { "debug" };
    project::root().join(target).join(profile)
}
