//! Connections to PostgreSQL of the threads that do not wait asynchronously, and the schema at start.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use diesel::RunQueryDsl;
use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::sql_types::{Bool, Integer};
use diesel::{ConnectionError, ConnectionResult, PgConnection};
use shared::config::DatabaseSettings;
use shared::db;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::APPLICATION_NAME;

/// How often a thread that waits for the end of a statement looks whether the process is to stop.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

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
        let applied = cancel_on_shutdown(settings, &mut connection, shutdown, |connection| {
            db::migrate(connection, || shutdown.is_cancelled())
        })?;
        info!(applied = ?applied, "the schema is up to date");
        return Ok(());
    }
    check_schema(
        &mut connection,
        "run `ingestor migrate`, or leave out --no-migrate",
    )
}

/// Does some work in the database. If the process is to stop, the statement that runs is cancelled: to build an index can take
/// hours.
///
/// # Errors
/// Returns the error of the work.
pub fn cancel_on_shutdown<T>(
    settings: &DatabaseSettings,
    connection: &mut PgConnection,
    shutdown: &CancellationToken,
    work: impl FnOnce(&mut PgConnection) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let session: i32 = diesel::select(sql::<Integer>("pg_backend_pid()"))
        .get_result(connection)
        .context("cannot ask for the number of the session")?;
    thread::scope(|scope| {
        let (finished_tx, finished_rx) = channel();
        scope.spawn(move || cancel_when_stopping(settings, session, shutdown, &finished_rx));
        let outcome = work(connection);
        drop(finished_tx);
        outcome
    })
}

/// It cancels more than once: between two statements there is nothing to cancel.
fn cancel_when_stopping(
    settings: &DatabaseSettings,
    session: i32,
    shutdown: &CancellationToken,
    finished_rx: &Receiver<()>,
) {
    while finished_rx.recv_timeout(LOOK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
        if !shutdown.is_cancelled() {
            continue;
        }
        let connection = db::connect_blocking(settings, APPLICATION_NAME);
        let cancelled = connection
            .map_err(anyhow::Error::from)
            .and_then(|mut connection| cancel(&mut connection, session));
        if let Err(error) = cancelled {
            warn!("cannot cancel the statement that runs: {error:#}");
        }
    }
}

fn cancel(connection: &mut PgConnection, session: i32) -> anyhow::Result<bool> {
    let query = sql::<Bool>("pg_cancel_backend(")
        .bind::<Integer, _>(session)
        .sql(")");
    Ok(diesel::select(query).get_result(connection)?)
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
