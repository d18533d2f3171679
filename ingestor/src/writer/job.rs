//! What a writer does for a partition, and what failed attempts at it have left.

use std::time::{Duration, Instant};

use shared::backoff::Backoff;
use shared::throttle::Throttle;

use super::trace::BatchTrace;
use super::trouble::Trouble;
use crate::batch::Batch;
use crate::offsets::Sighting;
use crate::record::{Offset, Partition, Reading};

/// Something to do for a partition.
#[derive(Debug)]
pub(super) enum Job {
    Claim(ClaimJob),
    Store(StoreJob),
    /// Read the row of an idle partition again.
    Reread(Reading),
}

impl Job {
    pub(super) fn reading(&self) -> Reading {
        match self {
            Self::Claim(job) => job.reading,
            Self::Store(job) => job.batch.reading,
            Self::Reread(reading) => *reading,
        }
    }
}

/// What the failed attempts at a job have left.
#[derive(Debug)]
pub(super) struct Hold {
    /// Whether an attempt has failed.
    pub(super) has_failed: bool,
    /// Since when another session has held the row.
    pub(super) locked_since: Option<Instant>,
    /// When somebody last looked who holds it.
    pub(super) looked_at: Option<Instant>,
    /// How often another process has inserted an order of the batch first.
    pub(super) collisions: u32,
    pub(super) backoff: Backoff,
    pub(super) reports: Throttle,
}

impl Hold {
    pub(super) fn new() -> Self {
        Self {
            has_failed: false,
            locked_since: None,
            looked_at: None,
            collisions: 0,
            backoff: Backoff::for_database(),
            reports: Throttle::for_reports(),
        }
    }

    /// The row was locked, so nobody else holds it.
    pub(super) fn row_is_free(&mut self) {
        self.locked_since = None;
        self.looked_at = None;
    }
}

/// When a job is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Not before this.
    At(Instant),
    /// When the brokers' answer is here.
    WithAnswer,
}

impl Due {
    pub(super) fn now() -> Self {
        Self::At(Instant::now())
    }

    pub(super) fn after(delay: Duration) -> Self {
        Self::At(Instant::now() + delay)
    }

    pub(super) fn time(self) -> Option<Instant> {
        match self {
            Self::At(time) => Some(time),
            Self::WithAnswer => None,
        }
    }
}

/// A partition that is to be claimed.
#[derive(Debug)]
pub(super) struct ClaimJob {
    pub(super) reading: Reading,
    /// What the brokers have answered, until it is used.
    pub(super) answer: Option<Result<Answer, Trouble>>,
    /// Whether this is the second look at watermarks that do not match.
    pub(super) is_confirmed: bool,
}

impl ClaimJob {
    pub(super) fn new(reading: Reading) -> Self {
        Self {
            reading,
            answer: None,
            is_confirmed: false,
        }
    }
}

/// The brokers' answer.
#[derive(Debug)]
pub(super) enum Answer {
    Lows(Vec<(Partition, Offset)>),
    Sighting(Sighting),
}

/// A batch that is to be stored.
#[derive(Debug)]
pub(super) struct StoreJob {
    pub(super) batch: Batch,
    /// Whether the partition's row must tell first whether the batch is stored.
    pub(super) must_settle: bool,
    /// Its span, if it is traced.
    pub(super) trace: Option<BatchTrace>,
}

impl StoreJob {
    pub(super) fn new(batch: Batch, trace: Option<BatchTrace>) -> Self {
        Self {
            batch,
            must_settle: false,
            trace,
        }
    }
}
