//! `ingestor dead-letters ...` on the command line.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};

use crate::dead_letters::stored::{Filter, LetterState};
use crate::record::{Offset, Partition};

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
    /// Store the orders of letters that are valid by now, unless the stored order is newer
    Replay(DecideArgs),
    /// Give letters up; they stay in the table but cannot be replayed
    Drop(DecideArgs),
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
    pub filter: FilterArgs,
    /// Print what would happen, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    pub yes: bool,
}

/// Which letters match.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct FilterArgs {
    /// Only those with this reason, as the list shows it
    #[arg(long)]
    reason: Option<String>,
    /// Only those of this partition
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,
    /// Only those at this offset or after it
    #[arg(long, value_name = "OFFSET")]
    from_offset: Option<i64>,
    /// Only those at this offset or before it
    #[arg(long, value_name = "OFFSET")]
    to_offset: Option<i64>,
    /// Only those created at this time or later, RFC 3339
    #[arg(long, value_name = "TIME")]
    since: Option<DateTime<Utc>>,
    /// Only those created before this time, RFC 3339
    #[arg(long, value_name = "TIME")]
    until: Option<DateTime<Utc>>,
}

impl FilterArgs {
    /// The filter with this state. Commands that decide on letters accept no other state than `new`.
    pub fn into_filter(self, state: Option<LetterState>) -> Filter {
        Filter {
            reason: self.reason,
            state,
            partition: self.partition.map(Partition),
            from_offset: self.from_offset.map(Offset),
            to_offset: self.to_offset.map(Offset),
            since: self.since,
            until: self.until,
        }
    }

    /// Returns whether no filter is given.
    pub fn is_empty(&self) -> bool {
        self.clone().into_filter(None) == Filter::default()
    }
}
