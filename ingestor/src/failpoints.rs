//! Places at which tests stop or kill the program, and faults that they plant in it.
//!
//! Only with the feature `failpoints`, which test builds have and releases have not: without it every function here
//! does nothing and is compiled away. The variable `FAILPOINTS` arms them, in the language of the crate `fail`:
//! `before_commit=7*off->1*return(kill)` kills the process when it is there for the eighth time.

#[cfg(not(feature = "failpoints"))]
mod absent;
#[cfg(feature = "failpoints")]
mod armed;

#[cfg(not(feature = "failpoints"))]
pub use absent::*;
#[cfg(feature = "failpoints")]
pub use armed::*;

/// Where the program is. Between `COMMIT` sent and its answer read there is no line of ours: tests hold the answer back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A partition is claimed; nothing of it was fetched yet.
    Start,
    /// A batch goes from the poll thread to its writer.
    Steady,
    /// All rows of a batch are sent, its COMMIT is not.
    BeforeCommit,
    /// A batch is committed; the process has not taken note of it.
    Committed,
    /// The group takes partitions away; the answer is owed.
    Rebalance,
    /// The process stops; its last batches are with the writers.
    Drain,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 6] = [
        Self::Start,
        Self::Steady,
        Self::BeforeCommit,
        Self::Committed,
        Self::Rebalance,
        Self::Drain,
    ];

    /// Its name in `FAILPOINTS`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Steady => "steady",
            Self::BeforeCommit => "before_commit",
            Self::Committed => "committed",
            Self::Rebalance => "rebalance",
            Self::Drain => "drain",
        }
    }
}

/// A bug of the kind that loses or repeats orders; `FAILPOINTS` plants it by `name=return`. The tests' checker must find
/// each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// The offset is committed before the rows.
    OffsetFirst,
    /// Rows that the database did not take are passed over.
    SkipOnError,
    /// The offset is moved without a look at who owns the partition and where it stands.
    NoFence,
    /// Refused messages are dropped.
    SwallowDeadLetters,
    /// A batch that is stored is stored once more.
    ReapplyBatch,
}

impl Plant {
    /// Its name in `FAILPOINTS`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OffsetFirst => "offset_first",
            Self::SkipOnError => "skip_on_error",
            Self::NoFence => "no_fence",
            Self::SwallowDeadLetters => "swallow_dead_letters",
            Self::ReapplyBatch => "reapply_batch",
        }
    }
}
