//! What the command line can ask for, besides serving.

use clap::Subcommand;
use shared::commands::Shell;

use super::OpsArgs;
use super::tokens::{Scopes, TokenName};

/// What to do instead of serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Make tokens for clients
    #[command(subcommand, arg_required_else_help = false)]
    Token(TokenCommand),
    /// Check everything that the api needs: machine, settings, PostgreSQL; exit status 1 if something must be mended
    Doctor {
        /// Print one JSON document with every check
        #[arg(long)]
        json: bool,
    },
    /// Ask the running api whether it lives: exit status 0 or 1, for health checks; needs no other setting
    Livez(OpsArgs),
    /// Print the script by which a shell completes commands and flags
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// What to do with tokens.
#[derive(Clone, Debug, Subcommand)]
#[expect(
    clippy::doc_markdown,
    reason = "the doc comments are help texts for a terminal"
)]
pub enum TokenCommand {
    /// Print a new token, and the line for API_TOKENS_FILE that makes it valid
    New {
        /// Name that the log shows for whoever uses the token
        name: TokenName,
        /// What the token allows: read, write, operate; comma-separated
        scopes: Scopes,
    },
}
