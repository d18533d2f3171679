//! Sessions that LISTEN to the events, as so many api processes do. PostgreSQL wakes each of them after each transaction that
//! notifies.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use anyhow::Context as _;
use shared::config::DatabaseSettings;
use shared::{db, events};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

use crate::benchmarks::joined;

/// Sessions that listen until the value is dropped or ended.
pub(super) struct Listeners {
    stop_tx: oneshot::Sender<()>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Listeners {
    /// Opens `count` sessions. They read and drop what they are sent, because a session that does not read holds up the queue.
    pub(super) fn start(settings: DatabaseSettings, count: usize) -> anyhow::Result<Self> {
        let (ready_tx, ready_rx) = mpsc::channel();
        let (stop_tx, stop_rx) = oneshot::channel();
        let thread = thread::spawn(move || listen(&settings, count, &ready_tx, stop_rx));
        if ready_rx.recv().is_err() {
            joined(thread.join())?;
            anyhow::bail!("the sessions that listen have ended");
        }
        Ok(Self { stop_tx, thread })
    }

    /// Closes the sessions.
    ///
    /// # Errors
    /// Fails if one was closed before.
    pub(super) fn end(self) -> anyhow::Result<()> {
        drop(self.stop_tx);
        joined(self.thread.join())
    }
}

fn listen(
    settings: &DatabaseSettings,
    count: usize,
    ready_tx: &mpsc::Sender<()>,
    stop_rx: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let config = db::tokio_config(settings, "orders-bench");
        let (mut clients, mut connections) = (Vec::new(), JoinSet::new());
        for _ in 0..count {
            let (client, connection) = config.connect(NoTls).await.with_context(|| {
                format!("cannot open {count} sessions (see max_connections of PostgreSQL)")
            })?;
            // It reads the notifications and drops them.
            connections.spawn(connection);
            client
                .batch_execute(&["LISTEN ", events::CHANNEL].concat())
                .await?;
            clients.push(client);
        }
        ready_tx.send(())?;
        tokio::select! {
            _ = stop_rx => Ok(()),
            _ = connections.join_next() => anyhow::bail!("a session that listens was closed"),
        }
    })
}
