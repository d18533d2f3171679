//! Reads the database for the metrics, and keeps its history. It has a connection of its own: a writer may be busy or wait for
//! long.
//!
//! The rows of `consumer_offsets` tell the lag of partitions that nobody reads, because stopped ones have no writer. If the
//! database is away, the writers report that. Here the last values stay.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use diesel::prelude::*;
use shared::config::DatabaseSettings;
use shared::throttle::Throttle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::board::{Board, StoredPosition};
use crate::database::Connection;
use crate::history::HistoryKeeper;
use crate::metrics::Metrics;
use crate::offsets::operators;
use crate::periodic;
use crate::record::Consumer;

/// How often the database is read; as often as the brokers are asked for the lag.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// A look that takes longer than this is given up.
const SESSION: &str = "SET statement_timeout = '5s'";

/// The queue holds 8 GB and is empty while every listener keeps up. So much of it means that a listener has not kept up for
/// minutes.
const NOTIFY_USAGE_WARNING: f64 = 0.05;
/// How often a queue that fills up is reported.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// What the watching thread needs.
pub struct DatabaseWatch {
    consumer: Consumer,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    connection: Connection,
    history: HistoryKeeper,
    warnings: Throttle,
}

impl DatabaseWatch {
    /// Nothing is connected yet.
    pub fn new(
        database: DatabaseSettings,
        consumer: Consumer,
        board: Arc<Board>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            consumer,
            board,
            metrics,
            connection: Connection::new(database, SESSION),
            history: HistoryKeeper::default(),
            warnings: Throttle::every(WARNING_INTERVAL),
        }
    }

    /// Watches from now on until shutdown.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub fn start(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        periodic::start("database-watch", shutdown, move || {
            if let Err(error) = self.look() {
                self.connection.close();
                debug!("cannot read the database for the metrics: {error:#}");
            }
            LOOK_INTERVAL
        })
    }

    fn look(&mut self) -> anyhow::Result<()> {
        let connection = self.connection.get()?;
        let rows = operators::list(connection, &self.consumer)?;
        let usage: f64 = diesel::select(pg_notification_queue_usage()).get_result(connection)?;
        let now_ms = Utc::now().timestamp_millis();
        for row in rows {
            let stored = StoredPosition {
                next_offset: row.next_offset,
                last_timestamp_ms: row.last_timestamp,
            };
            self.board.fill_in_position(row.partition, stored, now_ms);
        }
        self.metrics.notify_queue_usage_ratio.set(usage);
        if is_warning_due(usage, &mut self.warnings) {
            warn!(
                "PostgreSQL's queue of notifications is {:.0} % full, and no batch can commit when it is full: a session that \
                 LISTENs holds a transaction open; find it in pg_stat_activity by the oldest xact_start, and end it",
                usage * 100.0
            );
        }
        // A failover may happen while we run. The look comes last, because it would report a lost connection as trouble of its
        // own.
        self.history.look(connection);
        Ok(())
    }
}

fn is_warning_due(usage: f64, warnings: &mut Throttle) -> bool {
    usage > NOTIFY_USAGE_WARNING && warnings.is_due()
}

#[diesel::declare_sql_function]
extern "SQL" {
    /// Returns how full the queue of the whole server is, 0..=1.
    fn pg_notification_queue_usage() -> Double;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_fills_up_is_reported_from_time_to_time() {
        let mut warnings = Throttle::every(WARNING_INTERVAL);
        assert!(!is_warning_due(NOTIFY_USAGE_WARNING, &mut warnings));
        assert!(is_warning_due(0.06, &mut warnings) && !is_warning_due(0.07, &mut warnings));
        warnings.reset();
        assert!(!is_warning_due(0.01, &mut warnings) && is_warning_due(0.07, &mut warnings));
    }
}
