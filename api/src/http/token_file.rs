//! The tokens in force. Their file is read again on SIGHUP and every ten seconds, so tokens are rotated without a restart.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use shared::config::Secret;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::tokens::{Token, Tokens};
use crate::metrics::tokens::TokenMetrics;

/// How often the file is read again. It is read and not only watched, because mounted secrets change behind symbolic links.
const RELOAD_INTERVAL: Duration = Duration::from_secs(10);

/// The tokens in force, and where they come from.
#[derive(Debug)]
pub struct TokenFile {
    api_token: Option<Secret>,
    path: Option<PathBuf>,
    in_force_tx: watch::Sender<Tokens>,
    metrics: TokenMetrics,
}

impl TokenFile {
    /// Reads the tokens. `None` means that the server has none.
    ///
    /// # Errors
    /// Returns a message that names the setting if the token or the file is wrong.
    pub fn open(
        api_token: Option<Secret>,
        path: Option<PathBuf>,
        metrics: TokenMetrics,
    ) -> anyhow::Result<Option<Arc<Self>>> {
        let Some(tokens) = Tokens::load(api_token.as_ref(), path.as_deref())? else {
            return Ok(None);
        };
        metrics.loaded(tokens.len());
        let in_force_tx = watch::Sender::new(tokens);
        Ok(Some(Arc::new(Self {
            api_token,
            path,
            in_force_tx,
            metrics,
        })))
    }

    /// Finds the token that a client has sent.
    pub fn find(&self, sent: &str) -> Option<Arc<Token>> {
        self.in_force_tx.borrow().find(sent).cloned()
    }

    /// Waits until the tokens in force satisfy a condition.
    pub async fn until(&self, mut condition: impl FnMut(&Tokens) -> bool) {
        let mut tokens_rx = self.in_force_tx.subscribe();
        while !condition(&tokens_rx.borrow_and_update()) {
            if tokens_rx.changed().await.is_err() {
                return;
            }
        }
    }

    /// Reads the file again on SIGHUP, and now and then, until `shutdown`. If it cannot be used, the former tokens stay in force.
    ///
    /// # Errors
    /// Returns an error if SIGHUP cannot be watched for.
    pub async fn follow(self: &Arc<Self>, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let mut hangup = signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?;
        let mut last_error = None;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = hangup.recv() => last_error = None,
                () = tokio::time::sleep(RELOAD_INTERVAL) => {}
            }
            let reading = shutdown.run_until_cancelled(self.read(&mut last_error));
            match reading.await {
                Some(Ok(tokens)) => {
                    last_error = None;
                    self.replace(tokens);
                }
                Some(Err(error)) => self.keep(&format!("{error:#}"), &mut last_error),
                None => return Ok(()),
            }
        }
    }

    /// Reads the file on a thread of its own. The file may be on a network drive that hangs, and the end of the process must
    /// not wait for it. Meanwhile no other thread is started.
    async fn read(self: &Arc<Self>, last_error: &mut Option<String>) -> anyhow::Result<Tokens> {
        let (read_tx, mut read_rx) = oneshot::channel();
        let file = Arc::clone(self);
        let read = move || {
            let tokens = Tokens::load(file.api_token.as_ref(), file.path.as_deref());
            // Nobody waits any more if the process is stopping.
            read_tx.send(tokens).ok();
        };
        let name = "tokens-file".to_owned();
        std::thread::Builder::new().name(name).spawn(read)?;
        loop {
            match timeout(RELOAD_INTERVAL, &mut read_rx).await {
                Ok(tokens) => {
                    return Ok(tokens
                        .context("the reading has failed")??
                        .unwrap_or_default());
                }
                Err(_) => self.keep("the file of tokens cannot be read in time", last_error),
            }
        }
    }

    fn replace(&self, tokens: Tokens) {
        self.metrics.file_is_bad(false);
        let count = tokens.len();
        let has_changed = self.in_force_tx.send_if_modified(|in_force| {
            let has_changed = *in_force != tokens;
            *in_force = tokens;
            has_changed
        });
        if has_changed {
            self.metrics.reloaded(count);
            info!(tokens = count, "other tokens are in force now");
        }
    }

    /// Says that the former tokens stay in force. It is said again only for another reason, or when the operator asks again.
    fn keep(&self, error: &str, last_error: &mut Option<String>) {
        self.metrics.file_is_bad(true);
        if last_error.as_deref() != Some(error) {
            warn!("the former tokens stay in force: {error}");
            *last_error = Some(error.to_owned());
        }
    }
}

/// Takes note of SIGHUP on a server that has no tokens. Otherwise the signal would end the process.
///
/// # Errors
/// Returns an error if SIGHUP cannot be watched for.
pub async fn ignore_hangups(shutdown: &CancellationToken) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?;
    let noting = async {
        while hangup.recv().await.is_some() {
            info!("SIGHUP received, but there is no file of tokens to read again");
        }
    };
    shutdown.run_until_cancelled(noting).await;
    Ok(())
}
