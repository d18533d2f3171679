//! Removes the bytes of old dead letters, as `DEAD_LETTER_RETENTION_DAYS` says, on a thread of its own and in small steps.

use std::sync::Arc;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use shared::config::DatabaseSettings;
use shared::throttle::Throttle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::database::Connection;
use crate::dead_letters::stored;
use crate::metrics::Metrics;
use crate::periodic;

/// The time between two looks at the table while no letter is old enough.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// The rest after a step while there are more.
const REST: Duration = Duration::from_millis(200);
/// The most letters of one step. Each may have a mebibyte.
const LETTERS_PER_STEP: i64 = 100;
/// A step finds its rows by an index.
const SESSION: &str = "SET statement_timeout = '30s'; SET enable_seqscan = off";

/// What the thread needs.
pub struct Retention {
    days: u32,
    connection: Connection,
    metrics: Arc<Metrics>,
    reports: Throttle,
}

impl Retention {
    /// Nothing is connected yet. `days` is how long the bytes are kept.
    pub fn new(days: u32, database: DatabaseSettings, metrics: Arc<Metrics>) -> Self {
        Self {
            days,
            connection: Connection::new(database, SESSION),
            metrics,
            reports: Throttle::for_reports(),
        }
    }

    /// Works from now on until shutdown.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub fn start(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        periodic::start("retention", shutdown, move || match self.step() {
            Ok(0) => LOOK_INTERVAL,
            Ok(_) => REST,
            Err(error) => {
                self.connection.close();
                self.metrics.dead_letters_retention_failures.inc();
                if self.reports.is_due() {
                    warn!("cannot remove the bytes of old dead letters, retrying: {error:#}");
                }
                LOOK_INTERVAL
            }
        })
    }

    /// Blanks some letters, and returns how many.
    fn step(&mut self) -> anyhow::Result<usize> {
        let before = Utc::now() - TimeDelta::days(self.days.into());
        let connection = self.connection.get()?;
        let states = stored::blank_expired(connection, before, LETTERS_PER_STEP)?;
        for state in &states {
            self.metrics.letter_expired(state);
        }
        if !states.is_empty() {
            let undecided = states.iter().filter(|state| *state == "new").count();
            info!(
                letters = states.len(),
                undecided, "the bytes of old dead letters were removed"
            );
        }
        Ok(states.len())
    }
}
