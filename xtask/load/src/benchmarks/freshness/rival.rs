//! The rival: a session that LISTENs and does nothing else. No cache can know of a change before it does.
//!
//! It also tells the watchers that there is something to ask for.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
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

/// Who waits for an order to be named.
#[derive(Debug, Default)]
pub(super) struct Calls(Mutex<Vec<(String, mpsc::Sender<()>)>>);

impl Calls {
    /// Told when the order is named next.
    pub(super) fn expect(&self, uid: &str) -> mpsc::Receiver<()> {
        let (named_tx, named_rx) = mpsc::channel();
        self.lock().push((uid.to_owned(), named_tx));
        named_rx
    }

    fn name(&self, uids: &[String]) {
        // A watcher that has given up is told nothing.
        self.lock().retain(|(uid, named_tx)| {
            let is_named = uids.contains(uid);
            if is_named {
                named_tx.send(()).ok();
            }
            !is_named
        });
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(String, mpsc::Sender<()>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Listens until `stop_rx` is closed; `listening_tx` is told when every later commit will be heard.
pub(super) fn listen(
    settings: &DatabaseSettings,
    listening_tx: &mpsc::Sender<()>,
    calls: &Calls,
    stop_rx: oneshot::Receiver<()>,
) -> anyhow::Result<Heard> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut heard = Heard::default();
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
                    let at = Instant::now();
                    let event = events::parse(notification.payload());
                    let uids = event.context("a writer notified something else")?.uids;
                    calls.name(&uids);
                    for uid in uids {
                        heard.0.entry(uid).or_default().push(at);
                    }
                }
            }
            bail!("the session that listens was closed")
        };
        tokio::select! {
            subscribed = subscribe => subscribed,
            closed = receive => closed,
        }
    })?;
    Ok(heard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_an_order_is_told_once_when_it_is_named() {
        let calls = Calls::default();
        let named_rx = calls.expect("a");
        calls.name(&["b".to_owned()]);
        assert!(named_rx.try_recv().is_err());
        calls.name(&["b".to_owned(), "a".to_owned()]);
        assert_eq!(named_rx.try_recv(), Ok(()));
        calls.name(&["a".to_owned()]);
        assert_eq!(named_rx.recv(), Err(mpsc::RecvError));
    }
}
