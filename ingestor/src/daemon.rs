//! The daemon: starts every thread and the operators' port, and stops them.

use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;
use shared::config::DatabaseSettings;
use shared::db;
use shared::shutdown::{Countdown, finish_in_time};
use shared::traces::Traces;
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::board::Board;
use crate::config::{APPLICATION_NAME, RunConfig, Settings};
use crate::database;
use crate::history::HistoryKeeper;
use crate::kafka::Clients;
use crate::metrics::Metrics;
use crate::ops_server;
use crate::poller::{Farewell, Poller};
use crate::record::headers;
use crate::relay::Relay;
use crate::retention::Retention;
use crate::watch::database::DatabaseWatch;
use crate::watch::topic::TopicWatch;
use crate::writer::WriterContext;

/// Runs the daemon until `shutdown`. The operators' port is served from the beginning.
///
/// # Errors
/// Returns one clear line if only a person can help: a wrong password, a wrong CA, an unknown setting of Kafka.
pub async fn run(
    config: RunConfig,
    ops_listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    headers::silence_expected_panics();
    let metrics = Arc::new(Metrics::new());
    let board = Arc::new(Board::default());
    // The port keeps answering while the work is finished, so that /readyz can say that the process is stopping.
    let finished = CancellationToken::new();
    let server = tokio::spawn(ops_server::serve(
        ops_listener,
        Arc::clone(&board),
        Arc::clone(&metrics),
        finished.clone(),
    ));
    // The threads end with this function, even if it returns an error.
    let shutdown = shutdown.child_token();
    let _end = shutdown.clone().drop_guard();

    let traces = Traces::start(&config.settings.traces, &metrics.traces)?;
    let countdown = Countdown::new(shutdown.clone(), config.settings.shutdown.timeout());
    let outcome = run_until_shutdown(config, &board, &metrics, traces.clone(), shutdown).await;
    if let Some(traces) = traces {
        traces.finish(countdown.left()).await;
    }
    finished.cancel();
    server.await.context("the operators' port panicked")?;
    outcome
}

async fn run_until_shutdown(
    RunConfig { settings, migrate }: RunConfig,
    board: &Arc<Board>,
    metrics: &Arc<Metrics>,
    traces: Option<Traces>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    // Made before anything waits: a setting that Kafka's client rejects must end the process at once.
    let clients = Clients::new(&settings.kafka, settings.memory)?;
    if !db::wait_until_reachable(&settings.database, APPLICATION_NAME, &shutdown).await? {
        return Ok(());
    }
    let (database, stopping) = (settings.database.clone(), shutdown.clone());
    let work = move || prepare_database(&database, migrate, &stopping);
    let timeout = settings.shutdown.timeout();
    let migrated = finish_in_time(spawn_blocking(work), &shutdown, timeout).await?;
    if shutdown.is_cancelled() {
        return Ok(());
    }
    migrated?;
    board.set_database_seen();

    let poller = start_threads(&settings, clients, board, metrics, traces, &shutdown)?;
    let polling = spawn_blocking(|| poller.run());
    let mut polling = pin!(finish_in_time(polling, &shutdown, timeout));
    let mut stopping_at = None;
    let polled = tokio::select! {
        polled = &mut polling => polled,
        () = shutdown.cancelled() => {
            stopping_at = Some(Instant::now());
            board.set_stopping();
            polling.await
        }
    };
    let farewell =
        polled.context("what was under way is rolled back, and read again at the next start")??;
    let taken = stopping_at.map_or(Duration::ZERO, |at| at.elapsed());
    leave_kafka(farewell, timeout.saturating_sub(taken)).await?;
    info!("stopped");
    Ok(())
}

/// Gives Kafka the rest of the time. Everything is stored, so a Kafka that does not answer is no failure.
async fn leave_kafka(farewell: Farewell, time_left: Duration) -> anyhow::Result<()> {
    match tokio::time::timeout(time_left, spawn_blocking(|| farewell.say())).await {
        Ok(left) => left.context("the poll thread panicked"),
        Err(_) => {
            warn!(
                "everything is stored, but Kafka did not answer in time: its copy of the offsets may be behind, and the \
                 group waits for the end of this member's session"
            );
            Ok(())
        }
    }
}

/// Brings the schema up to date, and then the history, before any order is stored.
fn prepare_database(
    settings: &DatabaseSettings,
    migrate: bool,
    stopping: &CancellationToken,
) -> anyhow::Result<()> {
    database::bring_schema_up_to_date(settings, migrate, stopping)?;
    match db::connect_blocking(settings, APPLICATION_NAME) {
        Ok(mut connection) => HistoryKeeper::default().look(&mut connection),
        Err(error) => warn!("the history of the database is looked at later: {error}"),
    }
    Ok(())
}

fn start_threads(
    settings: &Settings,
    clients: Clients,
    board: &Arc<Board>,
    metrics: &Arc<Metrics>,
    traces: Option<Traces>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Poller> {
    let context = WriterContext {
        consumer: settings.kafka.new_consumer(),
        database: settings.database.clone(),
        max_consecutive_bad: settings.batch.max_consecutive_bad,
        probe: Arc::clone(&clients.probe),
        board: Arc::clone(board),
        metrics: Arc::clone(metrics),
        traces,
    };
    DatabaseWatch::new(
        settings.database.clone(),
        context.consumer.clone(),
        Arc::clone(board),
        Arc::clone(metrics),
    )
    .start(shutdown.clone())?;
    if let Some(topic) = settings.kafka.dlq_topic.clone() {
        Relay::new(
            topic,
            &settings.kafka,
            context.consumer.clone(),
            settings.database.clone(),
            Arc::clone(board),
            Arc::clone(metrics),
            shutdown.clone(),
        )?
        .start()?;
    }
    if let Some(days) = settings.dead_letter_retention_days {
        Retention::new(days.get(), settings.database.clone(), Arc::clone(metrics))
            .start(shutdown.clone())?;
    }
    // A channel of its own: the one of the writers must close when they have died.
    let (suspicions_tx, suspicions_rx) = mpsc::channel();
    let watch = TopicWatch {
        board: Arc::clone(board),
        probe: clients.probe,
        metrics: Arc::clone(metrics),
        topic: settings.kafka.topic.clone(),
        suspicions_tx,
    };
    watch.start(shutdown.clone())?;
    Poller::start(
        settings,
        clients.group,
        &context,
        suspicions_rx,
        shutdown.clone(),
    )
}
