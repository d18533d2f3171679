//! The log of a database that gives no connection. Without a limit every request would add a line, thousands in a second.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use shared::throttle::Throttle;
use tracing::warn;

/// Often enough to see how the outage goes on.
const INTERVAL: Duration = Duration::from_secs(1);

/// Logs one line in an interval, with the number of lines that were left out.
#[derive(Debug)]
pub(super) struct OutageLog {
    throttle: Mutex<Throttle>,
    left_out: AtomicU64,
}

impl Default for OutageLog {
    fn default() -> Self {
        Self {
            throttle: Mutex::new(Throttle::every(INTERVAL)),
            left_out: AtomicU64::new(0),
        }
    }
}

impl OutageLog {
    pub(super) fn warn(&self, reason: impl Display) {
        if self.throttle.lock().is_due() {
            let left_out = self.left_out.swap(0, Ordering::Relaxed);
            warn!(left_out, "{reason}");
        } else {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}
