//! Stops the process on a signal. The first SIGINT or SIGTERM stops it cleanly, the second one at once.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The exit status after a second signal: 128 + SIGINT, as shells report it.
const EXIT_AT_ONCE: i32 = 130;

/// Watches for signals. The first one cancels the token.
///
/// # Errors
/// Returns an error if the signal handlers cannot be installed.
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
        // Awaited outside of the macros: they skip their arguments if the level is not logged.
        let signal = next_signal().await;
        info!("{signal} received, stopping; send it again to stop at once");
        first.cancel();
        let signal = next_signal().await;
        warn!("{signal} received again, stopping at once");
        std::process::exit(EXIT_AT_ONCE);
    });
    Ok(token)
}

/// How much time is left to finish.
#[derive(Debug)]
pub struct Countdown {
    signalled_at: Arc<OnceLock<Instant>>,
    timeout: Duration,
}

impl Countdown {
    /// Begins to count when the token is cancelled.
    pub fn new(shutdown: CancellationToken, timeout: Duration) -> Self {
        let signalled_at = Arc::new(OnceLock::new());
        let noted = Arc::clone(&signalled_at);
        tokio::spawn(async move {
            shutdown.cancelled().await;
            noted.get_or_init(Instant::now);
        });
        Self {
            signalled_at,
            timeout,
        }
    }

    /// Returns the time that is left; the whole time before the token is cancelled.
    pub fn left(&self) -> Duration {
        let taken = self.signalled_at.get().map(Instant::elapsed);
        self.timeout.saturating_sub(taken.unwrap_or_default())
    }
}

/// Waits for a task. After the first signal it waits for no longer than `timeout`, and then leaves the task behind.
///
/// # Errors
/// Returns an error if the task panicked or was left behind.
pub async fn finish_in_time<T>(
    mut task: JoinHandle<T>,
    shutdown: &CancellationToken,
    timeout: Duration,
) -> anyhow::Result<T> {
    let deadline = async {
        shutdown.cancelled().await;
        tokio::time::sleep(timeout).await;
    };
    tokio::select! {
        outcome = &mut task => outcome.context("a thread panicked"),
        () = deadline => bail!("not finished within {timeout:?} of the signal"),
    }
}
