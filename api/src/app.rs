//! What every handler may use.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use shared::db::{self, PoolLimits};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::cache::OrderCache;
use crate::config::Config;
use crate::http::authority::Authority;
use crate::http::problem::ApiError;
use crate::metrics::Metrics;
use crate::repository::{APPLICATION_NAME, EXPORT_APPLICATION_NAME, Repository};

/// Most exports at a time: each holds a connection, and a snapshot that keeps dead rows from being removed.
const MAX_EXPORTS: usize = 2;

/// The process's state, shared by all requests.
#[derive(Debug)]
pub struct App {
    /// Who may write.
    pub authority: Authority,
    /// Orders in PostgreSQL.
    pub repository: Repository,
    /// Orders in memory.
    pub cache: Arc<OrderCache>,
    /// How many orders a warm-up loads where it is not told.
    pub warmup_limit: usize,
    /// What operators count.
    pub metrics: Arc<Metrics>,
    /// When the process started.
    pub started_at: DateTime<Utc>,
    /// Cancelled when the process is to stop.
    pub shutdown: CancellationToken,
    /// How long a body may take to come.
    pub body_deadline: Duration,
    answer_deadline: Duration,
    has_schema: AtomicBool,
}

impl App {
    /// Sets everything up; nothing connects yet.
    ///
    /// # Errors
    /// Fails where the pool cannot be set up.
    pub fn new(
        config: &Config,
        address: SocketAddr,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        let limits = PoolLimits {
            size: config.pool.size,
            wait: config.pool.wait,
            statement_timeout: config.pool.statement_timeout,
        };
        let export_limits = PoolLimits {
            size: MAX_EXPORTS,
            ..limits
        };
        let repository = Repository::new(
            db::pool(&config.database, APPLICATION_NAME, limits)?,
            db::pool(&config.database, EXPORT_APPLICATION_NAME, export_limits)?,
            config.pool.statement_timeout,
        );
        let cache = Arc::new(OrderCache::new(&config.cache, repository.clone()));
        Ok(Arc::new(Self {
            authority: Authority::new(config, address),
            body_deadline: config.server.deadlines.body,
            answer_deadline: config.pool.answer_deadline,
            repository,
            metrics: Arc::new(Metrics::new(&cache)),
            cache,
            warmup_limit: config.cache.warmup,
            started_at: Utc::now(),
            shutdown,
            has_schema: AtomicBool::new(false),
        }))
    }

    /// Whether the tables were seen.
    pub fn has_schema(&self) -> bool {
        self.has_schema.load(Ordering::Relaxed)
    }

    /// The tables were seen.
    pub(crate) fn set_has_schema(&self) {
        self.has_schema.store(true, Ordering::Relaxed);
    }

    /// Gives up on work that a client has waited for long enough; what only the database can be slow at.
    ///
    /// # Errors
    /// The work's own, or `DatabaseTimeout`.
    pub async fn in_time<T, E: Into<ApiError>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, ApiError> {
        match tokio::time::timeout(self.answer_deadline, work).await {
            Ok(outcome) => outcome.map_err(Into::into),
            Err(_) => {
                warn!("no answer within {:?}", self.answer_deadline);
                Err(ApiError::DatabaseTimeout)
            }
        }
    }

    /// Refuses what needs the tables before they were seen.
    ///
    /// # Errors
    /// `DatabaseUnavailable`.
    pub fn require_schema(&self) -> Result<(), ApiError> {
        if self.has_schema() {
            Ok(())
        } else {
            Err(ApiError::DatabaseUnavailable(
                "waiting for the database and its schema, try again",
            ))
        }
    }
}
