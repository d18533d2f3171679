//! `ingestor offsets ...` on the command line.

use clap::{Args, Subcommand};

/// What can be done with offsets.
#[derive(Subcommand, Clone, Debug, PartialEq, Eq)]
pub enum OffsetsCommand {
    /// Show where each partition stands, how far behind it is, and what stops it
    Show {
        /// Print JSON in place of a table
        #[arg(long)]
        json: bool,
    },
    /// Say where a group starts that has not read the topic yet
    Init {
        /// Where to start
        #[arg(long, value_name = "earliest|latest|OFFSET")]
        from: Start,
        /// One partition only; those without a row are read from 0 later
        #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
        partition: Option<i32>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Accept the open incident of a partition, exactly as it is recorded, and go on
    AcceptGap {
        /// Which partition
        #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
        partition: i32,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Read again what was read; newer state of an order is kept
    Rewind {
        /// Which partitions
        #[command(flatten)]
        which: Which,
        /// Where to go back to
        #[arg(long, value_name = "earliest|OFFSET", value_parser = parse_rewind_target)]
        to: Start,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Let partitions run again that were halted by too many bad messages in a row
    Resume {
        /// Which partitions
        #[command(flatten)]
        which: Which,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// Which partitions a command is for.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// One partition
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    pub partition: Option<i32>,
    /// Every partition of the group and topic
    #[arg(long)]
    pub all: bool,
}

/// An offset, or an end of what the broker holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The first record that is there.
    Earliest,
    /// Behind the last record.
    Latest,
    /// This one.
    Offset(i64),
}

impl std::str::FromStr for Start {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            _ => match text.parse() {
                Ok(offset) if offset >= 0 => Ok(Self::Offset(offset)),
                _ => Err("say earliest, latest, or an offset from 0".to_owned()),
            },
        }
    }
}

fn parse_rewind_target(text: &str) -> Result<Start, String> {
    match text.parse() {
        Ok(Start::Latest) => Err("a rewind goes back: say earliest, or an offset".to_owned()),
        other => other,
    }
}
