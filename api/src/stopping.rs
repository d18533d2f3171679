//! How the process stops: first balancers are asked to go elsewhere, then its connections are closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::info;

/// How far the process has come in stopping. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Stopping {
    has_begun: Arc<AtomicBool>,
    /// Cancelled when streams should end and connections are closed.
    pub closing: CancellationToken,
}

impl Stopping {
    /// Returns whether the process has been told to stop. From then on `/readyz` fails, so balancers send no new requests.
    /// Those that still arrive are answered, and each answer says that it is the last one of its connection.
    pub fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Relaxed)
    }

    /// Begins to stop, and after `drain` lets connections be closed.
    pub(crate) async fn run(&self, drain: Duration) {
        self.has_begun.store(true, Ordering::Relaxed);
        if !drain.is_zero() {
            info!(
                "stopping: /readyz says so from now on, and connections are closed in {drain:?} (SHUTDOWN_DRAIN_MS)"
            );
            tokio::time::sleep(drain).await;
        }
        self.closing.cancel();
    }
}
