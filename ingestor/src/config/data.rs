//! `ingestor import`, `ingestor erase` and `ingestor purge` on the command line.

use std::path::PathBuf;

use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;

/// The most days that an age may have.
const MAX_DAYS: u32 = 36_500;

/// What to import.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ImportArgs {
    /// A file with one order per line, with a JSON array of orders, or with one order; `-` is standard input
    pub file: PathBuf,
    /// Replace orders that exist, instead of keeping them
    #[arg(long)]
    pub replace: bool,
}

/// What to erase.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct EraseArgs {
    /// Whose orders
    #[command(flatten)]
    pub whose: Whose,
    /// Print what would be erased, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    pub yes: bool,
}

/// Which orders a command erases.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[group(required = true, multiple = false)]
pub struct Whose {
    /// Every order of this customer
    #[arg(long, value_name = "ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub customer: Option<String>,
    /// These orders
    #[arg(long = "order", value_name = "UID", num_args = 1..,
          value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub orders: Vec<String>,
}

/// What to purge.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct PurgeArgs {
    /// The age in days, such as 400d. An order counts from when it was created or stored, whichever is later
    #[arg(long, value_name = "DAYS")]
    pub older_than: Days,
    /// Only orders
    #[arg(long, conflicts_with = "dead_letters")]
    pub orders: bool,
    /// Only dead letters, also those that nobody has decided on
    #[arg(long)]
    pub dead_letters: bool,
    /// Print what would be removed, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    pub yes: bool,
}

/// A number of days, 1..=36500.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Days(u32);

impl Days {
    /// The number of days.
    pub fn count(self) -> u32 {
        self.0
    }

    /// The time that was so many days before another one.
    pub fn before(self, time: DateTime<Utc>) -> DateTime<Utc> {
        time - TimeDelta::days(self.0.into())
    }
}

impl std::fmt::Display for Days {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} days", self.0)
    }
}

impl std::str::FromStr for Days {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let days = text.strip_suffix('d').and_then(|days| days.parse().ok());
        days.filter(|days| (1..=MAX_DAYS).contains(days))
            .map(Self)
            .ok_or_else(|| format!("give a number of days from 1d to {MAX_DAYS}d"))
    }
}
