//! `completions`: the script by which a shell completes the program's commands and flags.

use std::io::{self, Write};

use anyhow::Context;
use clap::CommandFactory;
pub use clap_complete::Shell;

/// Prints the script for a shell.
///
/// # Errors
/// Returns an error if it cannot be printed.
pub fn completions<T: CommandFactory>(shell: Shell) -> anyhow::Result<()> {
    let mut command = T::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    (io::stdout().write_all(&script)).context("cannot print the script")
}
