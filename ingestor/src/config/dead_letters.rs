//! `ingestor dead-letters ...` on the command line.

use clap::{Args, Subcommand};

use crate::dead_letters::stored::{Filter, LetterState};

/// What can be done with dead letters.
#[derive(Subcommand, Clone, Debug, PartialEq, Eq)]
pub enum DeadLettersCommand {
    /// List them, newest first
    List {
        /// Which ones
        #[command(flatten)]
        filter: Filter,
        /// Only those in this state
        #[arg(long, value_enum)]
        state: Option<LetterState>,
        /// Only those that the DLQ topic has refused
        #[arg(long)]
        relay_refused: bool,
        /// How many, 1..=1000
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=1000))]
        limit: i64,
        /// Continue after this one, the last of the previous page
        #[arg(long, value_name = "ID")]
        before: Option<i64>,
        /// Print one JSON object per line instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Show one letter in full
    Show {
        /// Its number
        id: i64,
        /// Write only the bytes of the message's value to standard output
        #[arg(long, conflicts_with = "json")]
        payload: bool,
        /// Print JSON, with bytes in base64
        #[arg(long)]
        json: bool,
    },
    /// Store the orders of letters that are valid by now, unless the stored order is newer or was deleted since
    Replay {
        /// Which ones
        #[command(flatten)]
        which: DecideArgs,
        /// Store orders as well that were deleted through the api since. What was erased never comes back
        #[arg(long)]
        revive_deleted: bool,
    },
    /// Give letters up; they stay in the table but cannot be replayed
    Drop(DecideArgs),
    /// Let the relay try letters again that the DLQ topic has refused
    RelayAgain {
        /// Their numbers
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<i64>,
        /// All letters that were refused
        #[arg(long)]
        all: bool,
    },
}

/// Which letters a command decides on.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct DecideArgs {
    /// Their numbers
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub ids: Vec<i64>,
    /// All new letters that match the filters, oldest first
    #[arg(long)]
    pub all: bool,
    /// Which letters `--all` selects
    #[command(flatten)]
    pub filter: Filter,
    /// Print what would happen, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    pub yes: bool,
}
