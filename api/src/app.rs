//! The state that all handlers share.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use shared::db::{self, PoolLimits};
use shared::order::{Decoder, Envelope};
use tracing::warn;

use crate::cache::OrderCache;
use crate::cache::core::Capacity;
use crate::config::Config;
use crate::http::authority::Authority;
use crate::http::budget::Budget;
use crate::http::problem::ApiError;
use crate::http::token_file::TokenFile;
use crate::metrics::Metrics;
use crate::repository::{APPLICATION_NAME, EXPORT_APPLICATION_NAME, Repository};
use crate::shares::{Exhausted, Portion, Shares};
use crate::stopping::Stopping;

/// The maximum number of concurrent exports. Each holds a connection, and a snapshot that keeps dead rows from being removed;
/// only the oldest snapshot counts for that. With four, two clients that take all they can get leave no place, and three do
/// not wait for each other if each takes one.
const MAX_EXPORTS: u32 = 4;
/// The most exports of one client address.
const MAX_EXPORTS_OF_CLIENT: u32 = 2;

/// The state of the process, shared by all requests.
#[derive(Debug)]
pub struct App {
    /// Who may do what.
    pub authority: Authority,
    /// The tokens in force; `None` if the server has none.
    pub tokens: Option<Arc<TokenFile>>,
    /// How the bodies of orders are read.
    pub decoder: Decoder,
    /// Orders in PostgreSQL.
    pub repository: Repository,
    /// Orders in memory.
    pub cache: Arc<OrderCache>,
    /// The memory of answers.
    pub budget: Budget,
    /// How many orders a warm-up loads by default.
    pub warmup_limit: usize,
    /// What operators count.
    pub metrics: Arc<Metrics>,
    /// When the process started.
    pub started_at: DateTime<Utc>,
    /// How far the process has come in stopping.
    pub stopping: Stopping,
    /// How long a body may take to arrive.
    pub body_deadline: Duration,
    answer_deadline: Duration,
    export_places: Arc<Shares>,
    /// How long to wait for a place, as long as for a connection.
    patience: Duration,
    has_schema: AtomicBool,
}

impl App {
    /// Sets up the state. It does not connect to the database yet.
    ///
    /// # Errors
    /// Returns an error if a pool cannot be set up, or if the tokens cannot be read.
    pub fn new(
        config: &Config,
        address: SocketAddr,
        stopping: Stopping,
    ) -> anyhow::Result<Arc<Self>> {
        let limits = PoolLimits {
            size: config.pool.size,
            wait: config.pool.wait,
            statement_timeout: config.pool.statement_timeout,
        };
        let export_limits = PoolLimits {
            size: MAX_EXPORTS as usize,
            ..limits
        };
        let repository = Repository::new(
            db::pool(&config.database, APPLICATION_NAME, limits)?,
            db::pool(&config.database, EXPORT_APPLICATION_NAME, export_limits)?,
            config.pool.statement_timeout,
        );
        let capacity = Capacity {
            entries: config.cache.capacity,
            weight_bytes: config.cache.capacity_bytes(),
        };
        let cache = Arc::new(OrderCache::new(
            capacity,
            config.cache.lease,
            repository.clone(),
        ));
        let metrics = Arc::new(Metrics::new(&cache, &repository));
        let tokens = TokenFile::open(
            config.api_token.clone(),
            config.api_tokens_file.clone(),
            metrics.tokens.clone(),
        )?;
        Ok(Arc::new(Self {
            authority: Authority::new(config, address, tokens.clone()),
            tokens,
            decoder: Decoder {
                rules: config.order_rules,
                envelope: Envelope::None,
            },
            body_deadline: config.server.deadlines.body,
            answer_deadline: config.pool.answer_deadline,
            budget: Budget::new(config.pool.wait, &metrics.answers),
            export_places: Shares::new(MAX_EXPORTS, MAX_EXPORTS_OF_CLIENT),
            patience: config.pool.wait,
            repository,
            metrics,
            cache,
            warmup_limit: config.cache.warmup,
            started_at: Utc::now(),
            stopping,
            has_schema: AtomicBool::new(false),
        }))
    }

    /// Returns whether the tables have been seen.
    pub fn has_schema(&self) -> bool {
        self.has_schema.load(Ordering::Relaxed)
    }

    /// Records that the tables have been seen.
    pub(crate) fn set_has_schema(&self) {
        self.has_schema.store(true, Ordering::Relaxed);
    }

    /// Runs work, and gives it up when the client has waited for long enough. Only the database can be so slow.
    ///
    /// # Errors
    /// Returns the error of the work, or `DatabaseTimeout` if the work took too long.
    pub async fn in_time<T, E: Into<ApiError>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, ApiError> {
        let deadline = self.answer_deadline;
        let outcome = tokio::time::timeout(deadline, work).await;
        let outcome = outcome.map_err(|_| {
            warn!("the database did not answer within {deadline:?}");
            ApiError::DatabaseTimeout
        })?;
        outcome.map_err(Into::into)
    }

    /// Waits for a place for an export of a client.
    ///
    /// # Errors
    /// Returns `Overloaded` if none has become free in time.
    pub async fn export_place(&self, client: IpAddr) -> Result<Portion, ApiError> {
        let place = self.export_places.take(client, 1, self.patience).await;
        place.map_err(|exhausted| {
            ApiError::Overloaded(match exhausted {
                Exhausted::Share => {
                    "this address has two exports under way, which is all that one address may, try again when one has ended"
                }
                Exhausted::All => "all four places for exports are taken, try again when one is free",
            })
        })
    }

    /// Checks that the tables have been seen.
    ///
    /// # Errors
    /// Returns `DatabaseUnavailable` if they have not.
    pub fn require_schema(&self) -> Result<(), ApiError> {
        let detail = "waiting for the database and its schema, try again";
        let refused = ApiError::DatabaseUnavailable(detail);
        self.has_schema().then_some(()).ok_or(refused)
    }
}
