//! A connection in use: how long the work on it may take, and what a failure means.
//!
//! diesel hides SQLSTATEs, and the server's texts are in the server's language. Failures are therefore told apart by what
//! depends on neither: the kinds of diesel, whether the connection is broken, and whether a statement ran for as long as it
//! may. The last one stands for the statement time-out (57014). Whether the role lacks a right (42501) is asked afterwards.

use std::time::{Duration, Instant};

use deadpool::managed::Object;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::sql_types::Bool;
use diesel_async::pooled_connection::PoolableConnection;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use shared::db::{HistoryId, SessionManager};
use shared::traces::{self, Span, SpanKind};
use tokio::time::timeout;
use tracing::{error, warn};

use super::StoreError;
use super::rights::Rights;

/// How much longer than the server's own limit an answer is waited for. A server that has not answered by then hangs.
const ANSWER_GRACE: Duration = Duration::from_secs(1);

/// A connection that was taken out of its pool. It goes back when the session is dropped.
pub(super) struct Session {
    /// `None` once the connection must not be used again.
    connection: Option<Object<SessionManager>>,
    history: HistoryId,
    statement_timeout: Duration,
}

impl Session {
    pub(super) fn new(connection: Object<SessionManager>, statement_timeout: Duration) -> Self {
        Self {
            history: connection.history(),
            connection: Some(connection),
            statement_timeout,
        }
    }

    /// The history of the server's content when the session began.
    pub(super) fn history(&self) -> HistoryId {
        self.history
    }

    /// Runs `work`, of which at most `slow_statements` may each run for the whole statement time-out. `name` names it in traces:
    /// the SQL command and the table.
    ///
    /// Logs a failure. Closes the connection if no answer has come in time, because it may still come, and if the session can
    /// do no good any more.
    pub(super) async fn run<T>(
        &mut self,
        name: &'static str,
        slow_statements: u32,
        work: impl AsyncFnOnce(&mut AsyncPgConnection) -> QueryResult<T>,
    ) -> Result<T, StoreError> {
        self.run_needing(&Rights::NONE, name, slow_statements, work)
            .await
    }

    /// Does the same with work that needs rights which the role may lack.
    pub(super) async fn run_needing<T>(
        &mut self,
        rights: &Rights,
        name: &'static str,
        slow_statements: u32,
        work: impl AsyncFnOnce(&mut AsyncPgConnection) -> QueryResult<T>,
    ) -> Result<T, StoreError> {
        let span = traces::current().map(|span| span.child(name, SpanKind::Client));
        let outcome = self.run_within(span.as_ref(), rights, slow_statements, work);
        let outcome = outcome.await;
        if let Some(span) = span {
            span.set("db.system.name", "postgresql");
            if let Err(error) = &outcome {
                span.fail(error.to_string());
            }
        }
        outcome
    }

    async fn run_within<T>(
        &mut self,
        span: Option<&Span>,
        rights: &Rights,
        slow_statements: u32,
        work: impl AsyncFnOnce(&mut AsyncPgConnection) -> QueryResult<T>,
    ) -> Result<T, StoreError> {
        let limit = slow_statements * self.statement_timeout + ANSWER_GRACE;
        let connection = self
            .connection
            .as_deref_mut()
            .ok_or(StoreError::Unavailable)?;
        let started = Instant::now();
        // Boxed, because it is large: several layers would keep it in themselves.
        let working = traces::within(span, Box::pin(work(connection)));
        match timeout(limit, working).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.meaning(error, started.elapsed(), rights).await),
            Err(_) => {
                let duration_ms = started.elapsed().as_millis();
                warn!(duration_ms, "no answer from the database");
                self.close();
                Err(StoreError::Timeout)
            }
        }
    }

    /// Closes the connection instead of giving it back to the pool, and cancels what it does.
    pub(super) fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            Object::take(connection).cancel_and_close();
        }
    }

    /// Says what a failure means, and logs it.
    async fn meaning(
        &mut self,
        error: DieselError,
        elapsed: Duration,
        rights: &Rights,
    ) -> StoreError {
        let connection = self.connection.as_deref_mut();
        let is_broken = connection.is_none_or(|session| session.is_broken());
        let meaning = match &error {
            _ if is_broken => StoreError::Unavailable,
            DieselError::BrokenTransactionManager => StoreError::Unavailable,
            DieselError::DatabaseError(kind, _) => match kind {
                DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection => {
                    StoreError::Unavailable
                }
                DatabaseErrorKind::ReadOnlyTransaction => StoreError::ReadOnly,
                DatabaseErrorKind::Unknown if elapsed >= self.statement_timeout => {
                    StoreError::Timeout
                }
                // 57P01 and similar codes come as an ordinary error, just before the connection closes.
                DatabaseErrorKind::Unknown if !self.is_alive().await => StoreError::Unavailable,
                DatabaseErrorKind::Unknown if self.lacks(rights).await => StoreError::Forbidden,
                _ => StoreError::Internal,
            },
            _ => StoreError::Internal,
        };
        if matches!(meaning, StoreError::Unavailable | StoreError::ReadOnly) {
            self.close();
        }
        if meaning == StoreError::Internal {
            // With the causes, which diesel's own text leaves out.
            error!("query failed: {:#}", anyhow::Error::from(error));
        } else {
            let duration_ms = elapsed.as_millis();
            warn!(duration_ms, "{meaning}: {error}");
        }
        meaning
    }

    async fn is_alive(&mut self) -> bool {
        let Some(connection) = self.connection.as_deref_mut() else {
            return false;
        };
        let query = diesel::select(sql::<Bool>("true"));
        let answer = timeout(
            self.statement_timeout + ANSWER_GRACE,
            query.execute(connection),
        );
        matches!(answer.await, Ok(Ok(_)))
    }
    /// Returns whether the role lacks one of the rights, and logs which.
    async fn lacks(&mut self, rights: &Rights) -> bool {
        let Some(connection) = self.connection.as_deref_mut() else {
            return false;
        };
        let limit = self.statement_timeout + ANSWER_GRACE;
        match timeout(limit, rights.find_lacking(connection)).await {
            Ok(Ok(lacking)) if !lacking.is_empty() => {
                warn!("the database role lacks {lacking}: see Roles in docs/OPERATIONS.md");
                true
            }
            // Without an answer nothing is known of the rights. The failure itself is logged.
            _ => false,
        }
    }
}
