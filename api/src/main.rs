//! The `api` program: it reads the configuration, starts the log, checks the database and sets the exit status.

use std::process::ExitCode;

use anyhow::Context;
use api::Listeners;
use api::config::Cli;
use api::config::tokens::Tokens;
use shared::config::to_lines;
use shared::db::{self, StartupError};
use shared::{files, shutdown, telemetry, traces};
use tokio::net::TcpListener;
use tracing::info;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    match execute().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("api: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn execute() -> anyhow::Result<()> {
    let mut cli: Cli = shared::config::parse()?;
    if let Some(command) = cli.command.take() {
        return api::commands::execute(command, cli).await;
    }
    let check_config = cli.check_config;
    let config = cli.config()?;
    let shown = config.shown();
    // Files are part of the configuration.
    db::tls_connector(&config.database)?;
    traces::check_files(&config.traces)?;
    Tokens::load(config.api_token.as_ref(), config.api_tokens_file.as_deref())?;
    if check_config {
        print!("{}", to_lines(&shown));
        return Ok(());
    }
    telemetry::init(&config.log)?;
    info!(
        "settings: {}",
        to_lines(&shown).trim_end().replace('\n', " ")
    );
    files::raise_limit();
    let shutdown = shutdown::on_signal()?;
    // A problem that only a person can solve ends the process before it binds. While the server runs, it waits for the rest.
    let checking = db::check(&config.database, api::repository::APPLICATION_NAME);
    match shutdown.run_until_cancelled(checking).await {
        None => return Ok(()),
        Some(Err(StartupError::Fatal(message))) => anyhow::bail!(message),
        Some(Ok(()) | Err(StartupError::Unreachable(_))) => {}
    }
    let listeners = Listeners {
        clients: listen(&config.address, "SERVER_HOST, SERVER_PORT").await?,
        operators: Some(listen(&config.ops_address, "OPS_HOST, OPS_PORT").await?),
    };
    api::run(config, listeners, shutdown).await
}

async fn listen((host, port): &(String, u16), settings: &str) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind((host.as_str(), *port)).await;
    listener.with_context(|| format!("cannot listen on {host}:{port} ({settings})"))
}
