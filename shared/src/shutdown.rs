//! When to stop: SIGINT or SIGTERM once to stop cleanly, twice to stop at once.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Exit status after a second signal: 128 + SIGINT, as shells report it.
const EXIT_AT_ONCE: i32 = 130;

/// Watches for signals; the token is cancelled by the first.
///
/// # Errors
/// Fails where the signal handlers cannot be installed.
pub fn on_signal() -> anyhow::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let token = CancellationToken::new();
    let first = token.clone();
    tokio::spawn(async move {
        let mut next_signal = async || {
            tokio::select! {
                _ = interrupt.recv() => "SIGINT",
                _ = terminate.recv() => "SIGTERM",
            }
        };
        // Awaited outside of the macros, which leave out their arguments where the level is not logged.
        let signal = next_signal().await;
        info!("{signal} received, stopping; once more to stop at once");
        first.cancel();
        let signal = next_signal().await;
        warn!("{signal} received again, stopping at once");
        std::process::exit(EXIT_AT_ONCE);
    });
    Ok(token)
}
