//! What is logged of a database that gives no connection: every request would add a line, thousands a second.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

/// How often it is said.
const INTERVAL: Duration = Duration::from_secs(1);

/// Says it once in a while, and how often it was left out.
#[derive(Debug, Default)]
pub(super) struct OutageLog(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    last: Option<Instant>,
    left_out: u64,
}

impl OutageLog {
    pub(super) fn warn(&self, reason: impl Display) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.last.is_some_and(|at| at.elapsed() < INTERVAL) {
            said.left_out += 1;
            return;
        }
        let left_out = std::mem::take(&mut said.left_out);
        said.last = Some(Instant::now());
        drop(said);
        warn!(left_out, "{reason}");
    }
}
