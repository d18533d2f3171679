//! The ingestor: from a Kafka topic into PostgreSQL, each order exactly once.
//!
//! Threads and what flows between them:
//! ```text
//!  Kafka -> poll thread ([`poller`]) --- batches, claims --> writer threads ([`writer`]) -> PostgreSQL
//!                 ^------------- committed, claimed, lost ---------'
//! ```
//! - [`consumer`]: the Kafka client: settings, rebalance events, watermarks.
//! - [`poller`]: owns the consumer and the state of every assigned partition.
//! - [`current`]: which reading of each partition counts, known to both sides.
//! - [`batch`]: records into batches; no I/O.
//! - [`writer`]: one batch, one transaction; [`offsets`]: claims and incidents; [`dead_letters`]: messages refused.
//! - [`headers`]: what is kept of a refused message's headers.
//! - [`status`], [`metrics`], [`observer`], [`ops_server`]: what operators see; [`watch`]: the lag, and whether it is
//!   still our topic.
//! - [`failpoints`]: where tests stop, kill and break it; not in releases.

pub mod batch;
pub mod commands;
pub mod config;
pub mod consumer;
pub mod current;
pub mod dead_letters;
pub mod failpoints;
pub mod headers;
pub mod metrics;
pub mod observer;
pub mod offsets;
pub mod ops_server;
pub mod poller;
pub mod status;
pub mod watch;
pub mod writer;

use std::sync::Arc;

use anyhow::Context;
use shared::db;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::RunConfig;
use crate::metrics::Metrics;
use crate::status::Status;

/// The name under which our sessions show in `pg_stat_activity`.
pub const APPLICATION_NAME: &str = "orders-ingestor";

/// Runs the daemon until `shutdown`; the operators' port is served from the first moment.
///
/// # Errors
/// Fails with one clear line where only a person can help: a refused password, a wrong CA, an unknown Kafka setting.
pub async fn run(
    config: RunConfig,
    ops_listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    headers::print_no_expected_panics();
    let metrics = Arc::new(Metrics::new());
    let status = Arc::new(Status::new());
    // The port goes on answering while the work is finished, so that /readyz can say that we are stopping.
    let finished = CancellationToken::new();
    let server = tokio::spawn(ops_server::serve(
        ops_listener,
        status.clone(),
        metrics.clone(),
        finished.clone(),
    ));

    let outcome = run_until_shutdown(config, &status, &metrics, shutdown).await;
    finished.cancel();
    server.await.context("the operators' port panicked")?;
    outcome
}

async fn run_until_shutdown(
    config: RunConfig,
    status: &Arc<Status>,
    metrics: &Arc<Metrics>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    // Made before anything waits: a setting that Kafka's client refuses must end the process at once.
    let clients = consumer::Clients::new(&config.kafka, config.memory)?;
    if !db::wait_until_reachable(&config.database, APPLICATION_NAME, &shutdown).await? {
        return Ok(());
    }
    let migration = commands::MigrateConfig {
        database: config.database.clone(),
        allowed: config.migrate,
    };
    tokio::task::spawn_blocking(move || commands::bring_schema_up_to_date(&migration))
        .await
        .context("the migration panicked")??;
    status.set_database_seen();

    let timeout = config.shutdown.timeout();
    let poller = poller::Poller::start(
        config,
        clients,
        status.clone(),
        metrics.clone(),
        shutdown.clone(),
    )?;
    let mut poll_thread = tokio::task::spawn_blocking(move || poller.run());
    tokio::select! {
        outcome = &mut poll_thread => return outcome.context("the poll thread panicked")?,
        () = shutdown.cancelled() => status.set_stopping(),
    }
    match tokio::time::timeout(timeout, poll_thread).await {
        Ok(outcome) => outcome.context("the poll thread panicked")??,
        // What was under way is rolled back and read again at the next start: nothing is lost.
        Err(_) => anyhow::bail!(
            "not finished within {timeout:?} of the signal; what was under way is read again later"
        ),
    }
    info!("stopped");
    Ok(())
}
