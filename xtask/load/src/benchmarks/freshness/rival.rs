//! The rival: a session that only LISTENs. No cache can know of a change before this session does.
//!
//! It also tells the watchers that there is something to ask for.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, bail};
use parking_lot::Mutex;
use shared::config::DatabaseSettings;
use shared::{db, events};
use tokio::sync::oneshot;
use tokio_postgres::{AsyncMessage, NoTls};

use crate::benchmarks::joined;

/// When each order was notified, in the order of time.
#[derive(Debug, Default)]
pub(super) struct Heard(HashMap<String, Vec<Instant>>);

impl Heard {
    /// Returns when an order was notified for the first time since `since`.
    pub(super) fn first(&self, uid: &str, since: Instant) -> Option<Instant> {
        let times = self.0.get(uid)?;
        times.iter().find(|at| **at >= since).copied()
    }
}

/// The watchers that wait for the notification of an order.
#[derive(Debug, Default)]
pub(super) struct Calls(Mutex<Vec<(String, mpsc::Sender<()>)>>);

impl Calls {
    /// Returns a channel that receives the next notification of an order.
    pub(super) fn expect(&self, uid: &str) -> mpsc::Receiver<()> {
        let (notified_tx, notified_rx) = mpsc::channel();
        self.0.lock().push((uid.to_owned(), notified_tx));
        notified_rx
    }

    fn notify(&self, uids: &[String]) {
        self.0.lock().retain(|(uid, notified_tx)| {
            let is_notified = uids.contains(uid);
            if is_notified {
                // A watcher may have given up.
                notified_tx.send(()).ok();
            }
            !is_notified
        });
    }
}

/// Listens while `work` runs. It hears every commit of `work`.
pub(super) fn listen_during<T>(
    settings: &DatabaseSettings,
    calls: &Calls,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(T, Heard)> {
    let (listening_tx, listening_rx) = mpsc::channel();
    let (stop_tx, stop_rx) = oneshot::channel();
    thread::scope(|scope| {
        let listening = scope.spawn(move || listen(settings, &listening_tx, calls, stop_rx));
        // An error of the thread closes the channel.
        let done = listening_rx.recv().ok().map(|()| work());
        drop(stop_tx);
        let heard = joined(listening.join());
        let done = done.transpose()?;
        let heard = heard?;
        Ok((done.context("the session that listens has ended")?, heard))
    })
}

/// Listens until `stop_rx` is closed. It sends to `listening_tx` when it will hear every later commit.
fn listen(
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
            // Nothing is sent: the end of the work closes the channel.
            stop_rx.await.ok();
            anyhow::Ok(())
        };
        let receive = async {
            while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notification(notification) = message? {
                    let at = Instant::now();
                    let event = events::parse(notification.payload());
                    let uids = event.context("a notification is not an event")?.uids;
                    calls.notify(&uids);
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
        let notified_rx = calls.expect("a");
        calls.notify(&["b".to_owned()]);
        assert!(notified_rx.try_recv().is_err());
        calls.notify(&["b".to_owned(), "a".to_owned()]);
        assert_eq!(notified_rx.try_recv(), Ok(()));
        calls.notify(&["a".to_owned()]);
        assert_eq!(notified_rx.recv(), Err(mpsc::RecvError));
    }
}
