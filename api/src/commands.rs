//! What the program does instead of serving.

mod token;

use crate::config::Cli;
use crate::config::command::Command;
use crate::doctor::doctor;

/// Does what the command line asks for.
///
/// # Errors
/// Returns one line for the user if that is not possible.
pub async fn execute(command: Command, cli: Cli) -> anyhow::Result<()> {
    match command {
        Command::Doctor { json } => doctor(&cli.config()?, json).await,
        Command::Token(command) => token::token(&command),
        Command::Livez(address) => {
            let (host, port) = address.resolve()?;
            shared::commands::livez(&host, port).await
        }
        Command::Completions { shell } => shared::commands::completions::<Cli>(shell),
    }
}
