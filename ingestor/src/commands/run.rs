//! `ingestor run`.

use anyhow::Context;
use shared::db::{self, StartupError};
use tokio::net::TcpListener;
use tracing::info;

use crate::config::{APPLICATION_NAME, Settings};
use crate::daemon;

pub(super) async fn run(settings: Settings, migrate: bool) -> anyhow::Result<()> {
    shared::telemetry::init(&settings.log)?;
    shared::files::raise_limit();
    let shutdown = shared::shutdown::on_signal()?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        settings = shared::config::to_lines(&settings.shown()).replace('\n', " "),
        "starting"
    );
    // Checked before the port is bound: what only a person can correct ends the process here.
    let checking = db::check(&settings.database, APPLICATION_NAME);
    match shutdown.run_until_cancelled(checking).await {
        None => return Ok(()),
        Some(Err(StartupError::Fatal(message))) => anyhow::bail!(message),
        Some(Ok(()) | Err(StartupError::Unreachable(_))) => {}
    }
    let (host, port) = &settings.ops_address;
    let listener = TcpListener::bind((host.as_str(), *port))
        .await
        .with_context(|| {
            format!("cannot bind {host}:{port}; see INGESTOR_HOST and INGESTOR_PORT")
        })?;
    daemon::run(settings.into_run_config(migrate), listener, shutdown).await
}
