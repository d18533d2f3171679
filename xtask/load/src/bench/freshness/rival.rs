//! The rival: a session that LISTENs and does nothing else. No cache can know of a change before it does.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::mpsc::Sender;
use std::time::Instant;

use anyhow::{Context as _, bail};
use shared::config::DatabaseSettings;
use shared::{db, events};
use tokio::sync::oneshot;
use tokio_postgres::{AsyncMessage, NoTls};

/// When each order was named, in time's order.
#[derive(Debug, Default)]
pub(super) struct Heard(HashMap<String, Vec<Instant>>);

impl Heard {
    /// The first notification of an order that is not older than `since`.
    pub(super) fn first(&self, uid: &str, since: Instant) -> Option<Instant> {
        let times = self.0.get(uid)?;
        times.iter().find(|at| **at >= since).copied()
    }
}

/// Listens until `stop_rx` is closed; `listening_tx` is told when every later commit will be heard.
pub(super) fn listen(
    settings: &DatabaseSettings,
    listening_tx: &Sender<()>,
    stop_rx: oneshot::Receiver<()>,
) -> anyhow::Result<Heard> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut received = Vec::new();
    runtime.block_on(async {
        let config = db::tokio_config(settings, "orders-bench");
        let (client, mut connection) = config.connect(NoTls).await?;
        let subscribe = async {
            client
                .batch_execute(&["LISTEN ", events::CHANNEL].concat())
                .await?;
            listening_tx.send(())?;
            // Closed is what is waited for.
            stop_rx.await.ok();
            anyhow::Ok(())
        };
        let receive = async {
            while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notification(notification) = message? {
                    received.push((Instant::now(), notification.payload().to_owned()));
                }
            }
            bail!("the session that listens was closed")
        };
        tokio::select! {
            subscribed = subscribe => subscribed,
            closed = receive => closed,
        }
    })?;
    let mut heard = Heard::default();
    for (at, payload) in received {
        let event = events::parse(&payload).context("a writer notified something else")?;
        for uid in event.uids {
            heard.0.entry(uid).or_default().push(at);
        }
    }
    Ok(heard)
}
