//! The api: orders over HTTP, out of a cache that the database's events keep true.
//!
//! ```text
//! client -> [`http::server`] -> [`http::envelope`] -> [`routes`] -> [`handlers`] -> [`cache`] -> [`repository`] -> PostgreSQL
//!                                                                                     ^--- events of writers ---'
//! ```

pub mod app;
pub mod cache;
pub mod config;
pub mod export;
pub mod feed;
pub mod handlers;
pub mod http;
pub mod metrics;
pub mod repository;
pub mod routes;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use shared::backoff::Backoff;
use shared::db;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::app::App;
use crate::cache::listener::Listener;
use crate::config::Config;
use crate::http::server;
use crate::repository::APPLICATION_NAME;

/// How often a wait for the schema says that it goes on.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Serves on `listener` until `shutdown`. The port answers from the first moment; while the database is away or has no
/// schema, it answers 503.
///
/// # Errors
/// Fails with one clear line where only a person can help, such as a refused password.
pub async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let address = listener
        .local_addr()
        .context("cannot tell the listener's address")?;
    // A child: a failure in the background stops the server, and leaves the caller's token alone.
    let stop = shutdown.child_token();
    let app = App::new(&config, address, stop.clone())?;
    info!("listening on http://{address}");
    // Events are followed for as long as anything is answered, the drain included.
    let finished = CancellationToken::new();
    let background = async {
        let outcome = keep_cache_true(&app, &config, &finished).await;
        if outcome.is_err() {
            stop.cancel();
        }
        outcome
    };
    let timeout = config.shutdown.timeout();
    let server = async {
        server::serve(
            Arc::clone(&app),
            listener,
            config.server,
            stop.clone(),
            timeout,
        )
        .await;
        finished.cancel();
    };
    let ((), outcome) = tokio::join!(server, background);
    info!("stopped");
    outcome
}

async fn keep_cache_true(
    app: &Arc<App>,
    config: &Config,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let is_reachable = db::wait_until_reachable(&config.database, APPLICATION_NAME, stop).await?;
    if !is_reachable || !wait_for_schema(app, stop).await {
        return Ok(());
    }
    let listener = Listener::new(
        Arc::clone(&app.cache),
        config.database.clone(),
        config.cache.warmup,
    );
    let audit = Arc::clone(&app.cache).audit(stop.clone());
    let feed = app.cache.feed().run(stop.clone());
    let loads = Arc::clone(&app.cache).run_loads(stop.clone());
    tokio::join!(listener.run(stop.clone()), feed, audit, loads);
    Ok(())
}

/// The ingestor brings the schema; `false` means that the process is to stop.
async fn wait_for_schema(app: &App, stop: &CancellationToken) -> bool {
    let mut backoff = Backoff::for_database();
    let mut last_report: Option<Instant> = None;
    loop {
        // What failed is in the log already.
        if app.repository.has_schema().await == Ok(true) {
            app.set_has_schema();
            return true;
        }
        if last_report.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL) {
            warn!("waiting for the schema: run `ingestor migrate` or `ingestor run`");
            last_report = Some(Instant::now());
        }
        tokio::select! {
            () = stop.cancelled() => return false,
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
}
