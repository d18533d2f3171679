//! `ingestor offsets ...` on the command line.

use clap::{Args, Subcommand};

use crate::record::{Offset, Partition};

/// What can be done with offsets.
#[derive(Subcommand, Clone, Debug, PartialEq, Eq)]
pub enum OffsetsCommand {
    /// Show the offset of each partition, its lag, and what stops it
    Show {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Set where a group that has not read the topic yet starts
    Init {
        /// Where to start
        #[arg(long, value_name = "earliest|latest|OFFSET")]
        from: Start,
        /// Only this partition; the others are read from offset 0 later
        #[arg(long, value_parser = Partition::parser())]
        partition: Option<Partition>,
        /// Do not ask for confirmation
        #[arg(long)]
        yes: bool,
    },
    /// Accept the open incident of a partition as it is recorded, or as the flags say, and continue
    AcceptGap {
        /// Which partition
        #[arg(long, value_parser = Partition::parser())]
        partition: Partition,
        /// Where to continue
        #[command(flatten)]
        how: How,
        /// Do not ask for confirmation
        #[arg(long)]
        yes: bool,
    },
    /// Read records again; an order that is newer than its record is kept, and one that was deleted since stays deleted
    Rewind {
        /// Which partitions
        #[command(flatten)]
        which: Which,
        /// Where to read from
        #[arg(long, value_name = "earliest|OFFSET", value_parser = parse_rewind_target)]
        to: Start,
        /// Do not ask for confirmation
        #[arg(long)]
        yes: bool,
    },
    /// Resume partitions that halted after too many bad messages in a row
    Resume {
        /// Which partitions
        #[command(flatten)]
        which: Which,
        /// Do not ask for confirmation
        #[arg(long)]
        yes: bool,
    },
}

/// How an incident is accepted.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[group(required = false, multiple = false)]
pub struct How {
    /// Continue at this offset of the log as it is now
    #[arg(long, value_name = "OFFSET")]
    pub resume_at: Option<Offset>,
    /// The topic was made anew and its records were never read: read all of them
    #[arg(long)]
    pub new_topic: bool,
}

/// Which partitions a command is for.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// One partition
    #[arg(long, value_parser = Partition::parser())]
    pub partition: Option<Partition>,
    /// Every partition of the group and topic
    #[arg(long)]
    pub all: bool,
}

/// An offset, or an end of what the broker holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The first record that the broker holds.
    Earliest,
    /// After the last record.
    Latest,
    /// This one.
    Offset(Offset),
}

impl std::str::FromStr for Start {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            _ => match text.parse() {
                Ok(offset) if offset >= Offset(0) => Ok(Self::Offset(offset)),
                _ => Err("give earliest, latest, or an offset of 0 or more".to_owned()),
            },
        }
    }
}

fn parse_rewind_target(text: &str) -> Result<Start, String> {
    match text.parse() {
        Ok(Start::Latest) => Err("a rewind goes back: give earliest or an offset".to_owned()),
        other => other,
    }
}
