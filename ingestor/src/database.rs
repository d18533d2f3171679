//! Connections to PostgreSQL of the threads that do not wait asynchronously, and the schema at start.

use anyhow::{Context, bail};
use diesel::connection::SimpleConnection;
use diesel::{ConnectionError, ConnectionResult, PgConnection};
use shared::config::DatabaseSettings;
use shared::db;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::APPLICATION_NAME;

/// One thread's connection, opened when it is needed.
pub struct Connection {
    settings: DatabaseSettings,
    session: &'static str,
    open: Option<PgConnection>,
}

impl Connection {
    /// Nothing is connected yet. `session` are the `SET` statements that a new connection begins with.
    pub fn new(settings: DatabaseSettings, session: &'static str) -> Self {
        Self {
            settings,
            session,
            open: None,
        }
    }

    /// Returns the connection. Connects if there is none.
    ///
    /// # Errors
    /// Returns an error if the server cannot be reached or refuses the connection.
    pub fn get(&mut self) -> ConnectionResult<&mut PgConnection> {
        let connection = match self.open.take() {
            Some(connection) => connection,
            None => {
                let mut connection = db::connect_blocking(&self.settings, APPLICATION_NAME)?;
                connection
                    .batch_execute(self.session)
                    .map_err(ConnectionError::CouldntSetupConfiguration)?;
                connection
            }
        };
        Ok(self.open.insert(connection))
    }

    /// Closes the connection after an error: nobody knows what state it is in.
    pub fn close(&mut self) {
        self.open = None;
    }
}

/// Runs the pending migrations, or only checks that there are none if `is_allowed` is false.
///
/// # Errors
/// Returns an error if the database refuses, or if migrations are pending and not allowed.
pub fn bring_schema_up_to_date(
    settings: &DatabaseSettings,
    is_allowed: bool,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let mut connection = db::connect_blocking(settings, APPLICATION_NAME)
        .context("cannot connect to the database for the migrations")?;
    if is_allowed {
        let applied = db::migrate(&mut connection, || shutdown.is_cancelled())?;
        info!(applied = ?applied, "the schema is up to date");
        return Ok(());
    }
    check_schema(
        &mut connection,
        "run `ingestor migrate`, or leave out --no-migrate",
    )
}

/// Checks that no migration is pending. `remedy` tells the user what to do otherwise.
///
/// # Errors
/// Returns an error that names the pending migrations.
pub fn check_schema(connection: &mut PgConnection, remedy: &str) -> anyhow::Result<()> {
    let pending = db::pending_migrations(connection)?;
    if !pending.is_empty() {
        bail!("migrations are pending ({}): {remedy}", pending.join(", "));
    }
    Ok(())
}
