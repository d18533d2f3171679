//! Places at which tests stop or kill the program, and faults that they plant in it.
//!
//! They exist only with the feature `failpoints`, which test builds have and releases do not have: without it every
//! function here does nothing and is compiled away. The variable `FAILPOINTS` arms them, in the language of the crate
//! `fail`: `before_commit=7*off->1*return(kill)` kills the process when it gets there for the eighth time.

#[cfg(not(feature = "failpoints"))]
mod absent;
#[cfg(feature = "failpoints")]
mod armed;

#[cfg(not(feature = "failpoints"))]
pub use absent::*;
#[cfg(feature = "failpoints")]
pub use armed::*;

/// A place in the program. There is none between sending `COMMIT` and reading its answer: tests hold the answer back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Phase {
    /// A partition is claimed, and none of its records was fetched yet.
    Start,
    /// A resumed partition is about to be moved once more. Meanwhile it can be fetched from its present offset.
    Moving,
    /// A batch goes from the poll thread to its writer.
    Steady,
    /// All rows of a batch are sent, but its COMMIT is not.
    BeforeCommit,
    /// A batch is committed, but the process has not noted that yet.
    Committed,
    /// The group takes partitions away and waits for the answer.
    Rebalance,
    /// The process stops, and the writers have its last batches.
    Drain,
}

/// A bug that loses or repeats orders. `FAILPOINTS` plants it by `name=return`. The tests' checker must find each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Plant {
    /// The offset is committed before the rows.
    OffsetFirst,
    /// Rows that the database did not accept are skipped.
    SkipOnError,
    /// The offset is moved without checking who owns the partition and what its offset is.
    NoFence,
    /// Refused messages are dropped.
    SwallowDeadLetters,
    /// A stored batch is stored again.
    ReapplyBatch,
}
