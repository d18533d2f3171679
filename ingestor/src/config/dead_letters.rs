//! `ingestor dead-letters ...` on the command line.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};

use crate::dead_letters::stored::{Filter, LetterState};

/// What can be done with dead letters.
#[derive(Subcommand, Clone, Debug, PartialEq, Eq)]
pub enum DeadLettersCommand {
    /// List them, newest first
    List {
        /// Which ones
        #[command(flatten)]
        filter: FilterArgs,
        /// Only those in this state
        #[arg(long, value_enum)]
        state: Option<LetterState>,
        /// How many, 1..=1000
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=1000))]
        limit: i64,
        /// Go on behind this one, the last of the page before
        #[arg(long, value_name = "ID")]
        before: Option<i64>,
        /// Print a JSON object a line in place of a table
        #[arg(long)]
        json: bool,
    },
    /// Show all of one
    Show {
        /// Its number
        id: i64,
        /// Write the message's bytes alone, as they are, to standard output
        #[arg(long, conflicts_with = "json")]
        payload: bool,
        /// Print JSON, bytes in base64
        #[arg(long)]
        json: bool,
    },
    /// Store the orders of letters that are valid by now, unless something newer is there
    Replay(DecideArgs),
    /// Give letters up; they stay in the table
    Drop(DecideArgs),
}

/// Which letters are decided on.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct DecideArgs {
    /// Their numbers
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub ids: Vec<i64>,
    /// All new ones that match, oldest first
    #[arg(long)]
    pub all: bool,
    /// Of `--all`
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Say what would happen, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// Which letters match.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct FilterArgs {
    /// Only those with this reason, a code of the table
    #[arg(long)]
    reason: Option<String>,
    /// Only those of this partition
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,
    /// Only those at this offset or behind it
    #[arg(long, value_name = "OFFSET")]
    from_offset: Option<i64>,
    /// Only those at this offset or before it
    #[arg(long, value_name = "OFFSET")]
    to_offset: Option<i64>,
    /// Only those kept at this time or later, RFC 3339
    #[arg(long, value_name = "TIME")]
    since: Option<DateTime<Utc>>,
    /// Only those kept before this time, RFC 3339
    #[arg(long, value_name = "TIME")]
    until: Option<DateTime<Utc>>,
}

impl FilterArgs {
    /// With a state, of which commands that decide have no choice.
    pub fn into_filter(self, state: Option<LetterState>) -> Filter {
        let Self {
            reason,
            partition,
            from_offset,
            to_offset,
            since,
            until,
        } = self;
        Filter {
            reason,
            state,
            partition,
            from_offset,
            to_offset,
            since,
            until,
        }
    }

    /// Whether anything is asked for.
    pub fn is_empty(&self) -> bool {
        self.clone().into_filter(None) == Filter::default()
    }
}
