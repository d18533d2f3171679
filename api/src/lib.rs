//! The `api` process: answers for orders over HTTP from a cache that the database's events keep correct.
//!
//! ```text
//! client -> shared::server -> http::envelope -> routes -> handlers -> cache -> repository -> PostgreSQL
//!                                                                     ^--- events of writers ---'
//! ```
//!
//! A module uses only modules above it in this table:
//!
//! | module | what it is for | uses |
//! |---|---|---|
//! | [`config`] | the command line and the environment | |
//! | [`shares`] | what clients share, and the part of each | |
//! | [`stopping`] | the phases of the process's end | |
//! | [`repository`] | the queries, and what their failures mean | |
//! | [`feed`] | the live feed: which orders have changed | [`shares`] |
//! | [`cache`] | orders in memory, and the protocols that keep them correct | [`repository`], [`feed`] |
//! | [`metrics`] | what operators count | [`repository`], [`cache`] |
//! | [`export`] | all matching orders as one stream | [`shares`], [`repository`], [`metrics`] |
//! | [`doctor`] | checks of what the api needs: machine, settings, database | [`config`] |
//! | [`commands`] | what the program does instead of serving | [`config`], [`doctor`] |
//! | [`http`] | what speaks HTTP and knows no route: envelope, problems, checks of requests | [`config`], [`shares`], [`stopping`], [`repository`], [`cache`], [`metrics`] |
//! | [`app`] | the state that all handlers share | [`config`], [`shares`], [`stopping`], [`repository`], [`cache`], [`metrics`], [`http`] |
//! | [`handlers`] | what each route does | [`shares`], [`repository`], [`feed`], [`cache`], [`http`], [`app`], [`export`] |
//! | [`routes`] | the table of routes, which dispatches | [`config`], [`http`], [`app`], [`handlers`] |
//!
//! `openapi.json`, beside `src`, is the contract for machines. Tests compare it with the routes and the codes.

pub mod app;
pub mod cache;
pub mod commands;
pub mod config;
pub mod doctor;
pub mod export;
pub mod feed;
pub mod handlers;
pub mod http;
pub mod metrics;
pub mod repository;
pub mod routes;
pub mod shares;
pub mod stopping;

use std::sync::Arc;

use anyhow::Context;
use shared::backoff::Backoff;
use shared::db;
use shared::server::{self, ConnectionMetrics, Limits, Stop};
use shared::shutdown::Countdown;
use shared::throttle::Throttle;
use shared::traces::Traces;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::app::App;
use crate::cache::listener::Listener;
use crate::config::Config;
use crate::http::envelope::{Envelope, Routes};
use crate::http::token_file;
use crate::repository::APPLICATION_NAME;
use crate::stopping::Stopping;

/// The sockets on which the process listens.
#[derive(Debug)]
pub struct Listeners {
    /// For all clients.
    pub clients: TcpListener,
    /// For operators: the health and the metrics of the process. It has connections of its own, so clients that take all of
    /// theirs cannot take it away.
    pub operators: Option<TcpListener>,
}

impl From<TcpListener> for Listeners {
    /// Listens without an operators' port.
    fn from(clients: TcpListener) -> Self {
        Self {
            clients,
            operators: None,
        }
    }
}

/// Serves on the listeners until `shutdown`. The ports answer at once; while the database cannot be reached or has no
/// schema, they answer 503.
///
/// # Errors
/// Returns a message if only a person can help, for example because the database has refused the password.
pub async fn run(
    config: Config,
    listeners: impl Into<Listeners>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let Listeners { clients, operators } = listeners.into();
    let address = clients
        .local_addr()
        .context("cannot get the address of the listener")?;
    // A child token: a failure in the background stops the server without cancelling the caller's token.
    let stop = shutdown.child_token();
    let stopping = Stopping::default();
    let app = App::new(&config, address, stopping.clone())?;
    let traces = Traces::start(&config.traces, &app.metrics.traces)?;
    let countdown = Countdown::new(stopping.closing.clone(), config.shutdown.timeout());
    info!("listening on http://{address}");
    // Events are followed for as long as requests are answered, also while the server drains.
    let finished = CancellationToken::new();
    let background = async {
        let keeping = keep_cache_correct(&app, &config, &finished);
        let outcome = tokio::try_join!(keeping, follow_tokens(&app, &finished));
        if outcome.is_err() {
            stop.cancel();
        }
        outcome
    };
    let ending = async {
        stop.cancelled().await;
        stopping.run(config.shutdown_drain).await;
    };
    let server = async {
        serve_clients(&config, &app, traces.clone(), clients).await;
        finished.cancel();
    };
    let ops_server = async {
        if let Some(listener) = operators {
            serve_operators(&config, &app, listener, finished.clone()).await;
        }
    };
    let ((), (), (), outcome) = tokio::join!(ending, server, ops_server, background);
    if let Some(traces) = traces {
        traces.finish(countdown.left()).await;
    }
    info!("stopped");
    outcome.map(|((), ())| ())
}

async fn serve_clients(
    config: &Config,
    app: &Arc<App>,
    traces: Option<Traces>,
    listener: TcpListener,
) {
    let stop = Stop {
        signal: app.stopping.closing.clone(),
        timeout: config.shutdown.timeout(),
    };
    let limits = config.server.limits();
    let envelope = envelope(config, app, routes::router(app)).with_traces(traces);
    let connections = &app.metrics.connections;
    serve(envelope, listener, (limits, stop), connections).await;
}

/// Serves the operators' port until the work is finished. Its requests are not traced: they come every few seconds, and nobody
/// waits for them.
async fn serve_operators(
    config: &Config,
    app: &Arc<App>,
    listener: TcpListener,
    finished: CancellationToken,
) {
    let (limits, stop) = (Limits::for_operators(), Stop::when_finished(finished));
    let envelope = envelope(config, app, routes::ops_router(app));
    let connections = &app.metrics.ops_connections;
    serve(envelope, listener, (limits, stop), connections).await;
}

/// Encloses routes in what all answers have in common.
fn envelope(config: &Config, app: &App, routes: Routes) -> Envelope {
    let (metrics, stopping) = (Arc::clone(&app.metrics), app.stopping.clone());
    Envelope::new(config, metrics, stopping, routes)
}

/// Serves what an envelope encloses.
async fn serve(
    envelope: Envelope,
    listener: TcpListener,
    (limits, stop): (Limits, Stop),
    connections: &ConnectionMetrics,
) {
    let envelope = Arc::new(envelope);
    let refusing = Arc::clone(&envelope);
    let answer = move |peer, request| envelope.answer(peer, request);
    let refuse = move |peer, unreadable| refusing.refuse(peer, unreadable);
    let connections = connections.clone();
    server::serve(listener, limits, connections, stop, answer, refuse).await;
}

async fn keep_cache_correct(
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
    let feed = app.cache.feed.run(stop.clone());
    let loads = Arc::clone(&app.cache).run_loads(stop.clone());
    tokio::join!(listener.run(stop.clone()), feed, audit, loads);
    Ok(())
}

async fn follow_tokens(app: &App, stop: &CancellationToken) -> anyhow::Result<()> {
    match &app.tokens {
        Some(tokens) => tokens.follow(stop).await,
        None => token_file::ignore_hangups(stop).await,
    }
}

/// Waits until the ingestor has created the schema. Returns `false` if the process should stop.
async fn wait_for_schema(app: &App, stop: &CancellationToken) -> bool {
    let mut backoff = Backoff::for_database();
    let mut reports = Throttle::for_reports();
    loop {
        // A failure is already in the log.
        if app.repository.has_schema().await == Ok(true) {
            // The connections were made before there was a history to read.
            app.repository.distrust_connections();
            app.set_has_schema();
            return true;
        }
        if reports.is_due() {
            warn!("waiting for the schema: run `ingestor migrate` or `ingestor run`");
        }
        tokio::select! {
            () = stop.cancelled() => return false,
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
}
