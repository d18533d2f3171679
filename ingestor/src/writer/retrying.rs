//! What a writer does about a failed attempt.
//!
//! If the connection is to blame, all of the writer's partitions wait. Everything else concerns one partition, which waits
//! alone.

use std::time::{Duration, Instant};

use tracing::{error, info};

use super::Writer;
use super::job::{Due, Hold};
use super::trouble::Trouble;
use crate::board;
use crate::offsets::{self, LOCK_PATIENCE, LOCK_POLL_INTERVAL, Patience};
use crate::record::Reading;

/// How often somebody looks who holds a locked row.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// The time between two attempts to lock a row that has been held for long.
const SLOW_POLL_INTERVAL: Duration = Duration::from_millis(200);

impl Writer {
    /// Counts a failed attempt that began at `started_at`, reports it from time to time, and returns when the job is tried
    /// again.
    pub(super) fn in_trouble(
        &mut self,
        reading: Reading,
        trouble: &Trouble,
        doing: &str,
        hold: &mut Hold,
        started_at: Instant,
    ) -> Due {
        hold.has_failed = true;
        self.context.metrics.retried(trouble.class());
        if matches!(trouble, Trouble::Connect(_) | Trouble::Query(_)) {
            // Nobody knows what state it is in.
            self.connection.close();
        }
        if trouble.concerns_all_partitions() {
            self.context.board.set_database_ok(self.number, false);
            if self.reports.is_due() {
                error!("cannot {doing}, retrying: {trouble}");
            }
            self.not_before = Some(Instant::now() + self.backoff.next_delay());
            return Due::now();
        }
        let noted = board::Trouble {
            reason: trouble.to_string(),
            is_refused_by_database: matches!(trouble, Trouble::Query(_)),
        };
        self.context.board.set_trouble(reading, noted);
        if hold.reports.is_due() {
            error!(
                kafka.partition = reading.partition.0,
                "cannot {doing}, retrying: {trouble}"
            );
        }
        if matches!(trouble, Trouble::RowLocked(..)) {
            return Due::after(SLOW_POLL_INTERVAL);
        }
        // An attempt that waited for a lock within the database has kept the other partitions waiting. They get at least as
        // much time.
        Due::after(hold.backoff.next_delay().max(started_at.elapsed()))
    }

    /// Another session holds the partition's row: looks who it is if that lasts, and returns when to try again.
    pub(super) fn wait_for_row(
        &mut self,
        reading: Reading,
        patience: Patience,
        doing: &str,
        hold: &mut Hold,
    ) -> Due {
        self.healthy();
        hold.has_failed = true;
        let started_at = Instant::now();
        let partition = reading.partition;
        if hold.locked_since.get_or_insert(started_at).elapsed() < LOCK_PATIENCE {
            return Due::after(LOCK_POLL_INTERVAL);
        }
        if (hold.looked_at).is_some_and(|looked_at| looked_at.elapsed() < LOOK_INTERVAL) {
            return Due::after(SLOW_POLL_INTERVAL);
        }
        hold.looked_at = Some(started_at);
        let consumer = &self.context.consumer;
        let holders = self
            .connection
            .get()
            .map_err(Trouble::from)
            .and_then(|connection| {
                offsets::deal_with_holders(connection, consumer, partition, patience)
                    .map_err(Trouble::from)
            });
        match holders {
            Ok(holders) if holders.iter().any(|holder| holder.is_ended) => {
                Due::after(LOCK_POLL_INTERVAL)
            }
            Ok(holders) => {
                let trouble = Trouble::RowLocked(partition, holders);
                self.in_trouble(reading, &trouble, doing, hold, started_at)
            }
            Err(trouble) => self.in_trouble(reading, &trouble, doing, hold, started_at),
        }
    }

    /// The database has answered.
    pub(super) fn healthy(&mut self) {
        self.context.board.set_database_ok(self.number, true);
        self.backoff.reset();
        if self.reports.has_reported() {
            self.reports.reset();
            info!("the database works again");
        }
    }
}
