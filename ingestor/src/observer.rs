//! Looks at the database for the metrics, on a connection of its own: a writer may be busy or wait for long.
//!
//! The rows of `consumer_offsets` tell the lag of partitions that nobody reads: stopped ones have no writer. A database
//! that is away is the writers' business to report; here the last values stay.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use chrono::Utc;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use shared::config::DatabaseSettings;
use shared::db;
use shared::db::schema::consumer_offsets;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::APPLICATION_NAME;
use crate::metrics::Metrics;
use crate::offsets::Consumer;
use crate::status::{Status, StoredPosition};

/// Between two looks, as often as the brokers are asked for the lag.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Between two looks at whether the process stops.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Most time for a statement: a look that takes longer is given up.
const STATEMENT_TIMEOUT: &str = "SET statement_timeout = '5s'";

/// The queue holds 8 GB and is empty while every listener keeps up; this much is minutes of a listener that does not.
const NOTIFY_USAGE_WARNING: f64 = 0.05;
/// How often a queue that fills up is reported while it does.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// The thread that looks.
pub struct Observer {
    database: DatabaseSettings,
    consumer: Consumer,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
    connection: Option<PgConnection>,
    queue_alarm: QueueAlarm,
}

impl Observer {
    /// Nothing is connected yet.
    pub fn new(
        database: DatabaseSettings,
        consumer: Consumer,
        status: Arc<Status>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            database,
            consumer,
            status,
            metrics,
            connection: None,
            queue_alarm: QueueAlarm::default(),
        }
    }

    /// Looks from now on until shutdown.
    ///
    /// # Errors
    /// Fails where the thread cannot be started.
    pub fn start(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let thread = std::thread::Builder::new().name("observer".to_owned());
        let observe = move || {
            let mut waited = LOOK_INTERVAL;
            while !shutdown.is_cancelled() {
                if waited >= LOOK_INTERVAL {
                    if let Err(error) = self.look() {
                        self.connection = None;
                        debug!("cannot look at the database for the metrics: {error:#}");
                    }
                    waited = Duration::ZERO;
                }
                std::thread::sleep(STOP_POLL_INTERVAL);
                waited += STOP_POLL_INTERVAL;
            }
        };
        thread
            .spawn(observe)
            .map(drop)
            .context("cannot start the thread that looks at the database")
    }

    fn look(&mut self) -> anyhow::Result<()> {
        let Consumer {
            group_id, topic, ..
        } = self.consumer.clone();
        let connection = self.connection()?;
        let rows: Vec<(i32, i64, Option<i64>)> = consumer_offsets::table
            .filter(consumer_offsets::group_id.eq(group_id))
            .filter(consumer_offsets::topic.eq(topic))
            .select((
                consumer_offsets::partition,
                consumer_offsets::next_offset,
                consumer_offsets::last_timestamp,
            ))
            .load(connection)?;
        let usage: f64 = diesel::select(pg_notification_queue_usage()).get_result(connection)?;
        let now_ms = Utc::now().timestamp_millis();
        for (partition, next_offset, last_timestamp_ms) in rows {
            let stored = StoredPosition {
                next_offset,
                last_timestamp_ms,
            };
            self.status.fill_in_position(partition, stored, now_ms);
        }
        self.metrics.notify_queue_usage_ratio.set(usage);
        if self.queue_alarm.is_due(usage) {
            warn!(
                "PostgreSQL's queue of notifications is {:.0} % full, and when it is full no batch can commit: a session \
                 that LISTENs holds a transaction open; find it in pg_stat_activity by the oldest xact_start, and end it",
                usage * 100.0
            );
        }
        Ok(())
    }

    fn connection(&mut self) -> anyhow::Result<&mut PgConnection> {
        if self.connection.is_none() {
            let mut connection = db::connect_blocking(&self.database, APPLICATION_NAME)?;
            connection.batch_execute(STATEMENT_TIMEOUT)?;
            self.connection = Some(connection);
        }
        self.connection.as_mut().context("no connection")
    }
}

/// When a queue that fills up is reported: once in a while.
#[derive(Debug, Default)]
struct QueueAlarm {
    last_warning_at: Option<Instant>,
}

impl QueueAlarm {
    fn is_due(&mut self, usage: f64) -> bool {
        let reported = self
            .last_warning_at
            .is_some_and(|at| at.elapsed() < WARNING_INTERVAL);
        let due = usage > NOTIFY_USAGE_WARNING && !reported;
        if due {
            self.last_warning_at = Some(Instant::now());
        }
        due
    }
}

#[diesel::declare_sql_function]
extern "SQL" {
    /// How full the queue of the whole server is, 0..=1.
    fn pg_notification_queue_usage() -> Double;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_fills_up_is_reported_once_in_a_while() {
        let mut alarm = QueueAlarm::default();
        assert!(!alarm.is_due(NOTIFY_USAGE_WARNING));
        assert!(alarm.is_due(0.06) && !alarm.is_due(0.07));
        alarm.last_warning_at = Instant::now().checked_sub(WARNING_INTERVAL);
        assert!(!alarm.is_due(0.01) && alarm.is_due(0.07));
    }
}
