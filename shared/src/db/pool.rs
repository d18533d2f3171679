//! The pool of asynchronous sessions.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use anyhow::Context;
use deadpool::managed::{Manager, Metrics, Pool, RecycleError, RecycleResult};
use diesel::dsl::sql;
use diesel::sql_types::Bool;
use diesel::{OptionalExtension, QueryResult};
use diesel_async::pooled_connection::PoolableConnection;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use tokio_postgres::Config;

use super::{
    HistoryId, NOT_A_PRIMARY, STANDING, Standing, TlsConnector, describe, set_up_session,
    tls_connector, tokio_config,
};
use crate::config::DatabaseSettings;

/// How long a session is used. Then its memory in the server is given back, and changed settings of its role take effect.
const MAX_AGE: Duration = Duration::from_secs(1800);
/// How long a request to cancel a statement may take.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// The pool of asynchronous sessions.
pub type AsyncPool = Pool<SessionManager>;

/// The bounds of a pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// The most connections.
    pub size: usize,
    /// The longest wait for a connection. It includes the time to open one.
    pub wait: Duration,
    /// The longest time that a statement may run or wait for a lock. The server enforces it.
    pub statement_timeout: Duration,
}

/// Why there is no new session.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SessionError(String);

impl From<diesel::result::Error> for SessionError {
    fn from(error: diesel::result::Error) -> Self {
        Self(error.to_string())
    }
}

/// A connection with the history that was read on it.
pub struct PooledSession {
    connection: AsyncPgConnection,
    history: HistoryId,
    tls: TlsConnector,
}

impl PooledSession {
    /// Returns the history of the server's content when the session began; [`HistoryId::NONE`] if there was no schema yet.
    pub fn history(&self) -> HistoryId {
        self.history
    }

    /// Ends the session, also if the server hangs in its statement: a server looks at a connection only between statements.
    ///
    /// It happens in a task of its own, so nobody waits for it.
    pub fn cancel_and_close(self) {
        tokio::spawn(async move {
            let cancel_token = self.connection.cancel_token();
            let cancelling = cancel_token.cancel_query(self.tls);
            // Without an answer, `lock_timeout` or `statement_timeout` ends the statement later.
            tokio::time::timeout(CANCEL_TIMEOUT, cancelling).await.ok();
            drop(self.connection);
        });
    }

    async fn read_history(connection: &mut AsyncPgConnection) -> QueryResult<HistoryId> {
        let look = sql::<Bool>("to_regclass('service_history') IS NOT NULL");
        if !diesel::select(look).get_result(connection).await? {
            return Ok(HistoryId::NONE);
        }
        let standing = diesel::sql_query(STANDING).get_result::<Standing>(connection);
        let standing = standing.await.optional()?;
        Ok(standing.map_or(HistoryId::NONE, |standing| standing.history.hash_id()))
    }
}

impl Deref for PooledSession {
    type Target = AsyncPgConnection;

    fn deref(&self) -> &AsyncPgConnection {
        &self.connection
    }
}

impl DerefMut for PooledSession {
    fn deref_mut(&mut self) -> &mut AsyncPgConnection {
        &mut self.connection
    }
}

/// Makes the sessions of a pool.
pub struct SessionManager {
    config: Config,
    tls: TlsConnector,
    /// Statements that give a session its settings, in addition to those that every session gets.
    settings: String,
}

impl Manager for SessionManager {
    type Type = PooledSession;
    type Error = SessionError;

    async fn create(&self) -> Result<PooledSession, SessionError> {
        let tls = self.tls.clone();
        let connected = self.config.connect(tls.clone()).await;
        let failed = |error| SessionError(describe(&error));
        let (client, mut connection) = connected.map_err(failed)?;
        tokio::select! {
            set_up = set_up_session(&client, &self.settings) => {
                set_up.map_err(|error| SessionError(format!("{error:#}")))?;
            }
            // Nothing is sent and received unless the connection is polled.
            ended = &mut connection => {
                ended.map_err(failed)?;
                return Err(SessionError("the connection was closed".to_owned()));
            }
        }
        let connection =
            AsyncPgConnection::try_from_client_and_connection(client, connection).await;
        let mut connection = connection.map_err(|error| SessionError(error.to_string()))?;
        // A read-only primary may be read. The rows of a standby lag behind the events.
        let look = sql::<Bool>("pg_is_in_recovery()");
        if diesel::select(look).get_result(&mut connection).await? {
            return Err(SessionError(NOT_A_PRIMARY.to_owned()));
        }
        let history = PooledSession::read_history(&mut connection).await?;
        Ok(PooledSession {
            connection,
            history,
            tls,
        })
    }

    /// Asks the server nothing: a closed connection is noticed without a query, and a connection that hangs would not answer
    /// one either.
    async fn recycle(
        &self,
        session: &mut PooledSession,
        metrics: &Metrics,
    ) -> RecycleResult<SessionError> {
        if session.connection.is_broken() {
            return Err(RecycleError::message("the connection is broken"));
        }
        if metrics.created.elapsed() > MAX_AGE {
            return Err(RecycleError::message("the connection is old"));
        }
        Ok(())
    }
}

/// Makes a pool. It connects when it is first used.
///
/// # Errors
/// Returns an error if the file of the CA cannot be used.
pub fn pool(
    settings: &DatabaseSettings,
    application_name: &'static str,
    limits: PoolLimits,
) -> anyhow::Result<AsyncPool> {
    let timeout_ms = limits.statement_timeout.as_millis();
    let manager = SessionManager {
        config: tokio_config(settings, application_name),
        tls: tls_connector(settings)?,
        settings: format!("SET statement_timeout = {timeout_ms}; SET lock_timeout = {timeout_ms}"),
    };
    Pool::builder(manager)
        .max_size(limits.size)
        .wait_timeout(Some(limits.wait))
        .create_timeout(Some(limits.wait))
        .recycle_timeout(Some(limits.wait))
        .runtime(deadpool::Runtime::Tokio1)
        .build()
        .context("cannot set up the connection pool")
}
