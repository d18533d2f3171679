//! Threads that do something again and again until the process shuts down.

use std::time::Duration;

use anyhow::Context;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Starts a thread that calls `work` at once, and again after each delay that `work` returns. `shutdown` ends the
/// waiting immediately, and the thread with it.
///
/// Must be called within a tokio runtime, which keeps the time.
///
/// # Errors
/// Returns an error if the thread cannot be started.
pub fn start(
    name: &'static str,
    shutdown: CancellationToken,
    mut work: impl FnMut() -> Duration + Send + 'static,
) -> anyhow::Result<()> {
    let runtime = Handle::current();
    let run = move || {
        while !shutdown.is_cancelled() {
            let delay = work();
            // The work may have outlived the runtime, which then keeps no time any more.
            if !shutdown.is_cancelled() {
                let stopped = async { tokio::time::timeout(delay, shutdown.cancelled()).await };
                runtime.block_on(stopped).ok();
            }
        }
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map(drop)
        .with_context(|| format!("cannot start the thread {name}"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn work_is_repeated_until_shutdown_ends_even_a_long_wait() {
        let (calls_tx, calls_rx) = mpsc::channel();
        let shutdown = CancellationToken::new();
        let mut delays = [Duration::ZERO, Duration::from_secs(3600)].into_iter();
        start("test", shutdown.clone(), move || {
            let delay = delays.next().unwrap();
            calls_tx.send(delay).unwrap();
            delay
        })
        .unwrap();
        let wait = Duration::from_secs(30);
        assert_eq!(calls_rx.recv_timeout(wait).unwrap(), Duration::ZERO);
        assert!(calls_rx.recv_timeout(wait).is_ok());
        shutdown.cancel();
        // The thread drops its end of the channel when it ends.
        let end = calls_rx.recv_timeout(wait).unwrap_err();
        assert_eq!(end, mpsc::RecvTimeoutError::Disconnected);
    }
}
