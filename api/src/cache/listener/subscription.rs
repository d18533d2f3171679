//! Makes a connection that LISTENs, and finds out whether it receives what other sessions send.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use shared::config::DatabaseSettings;
use shared::{db, events};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{AsyncMessage, Client, Statement};
use tokio_util::task::AbortOnDropHandle;

use super::history::{History, read_history};
use super::{APPLICATION_NAME, described, receive};
use crate::cache::OrderCache;
use crate::cache::status::ListenerState;
use crate::repository;

/// The server drops a listener that reads nothing for 5 s. A frozen listener would fill the queue of notifications, and then
/// no writer on that server could commit.
const LISTENER_OPTIONS: &str = " -c tcp_user_timeout=5s -c idle_session_timeout=0";

/// How long a notification of another session may take to arrive.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(5);
const NOT_DELIVERED: &str = "notifications of other sessions do not arrive: connect to PostgreSQL itself or to a pooler in \
                             session mode";

/// A connection whose LISTEN has committed, and that received what another session sent after that.
pub(super) struct Subscription {
    client: Client,
    /// Prepared, so that a heartbeat is a single message. A second message would have to wait for an answer, which is late on a
    /// slow link.
    heartbeat: Statement,
    /// Ends with the connection, and says why it ended.
    pub(super) driver: AbortOnDropHandle<String>,
    /// The time that the newest returned heartbeat carried.
    pub(super) echo_rx: watch::Receiver<u64>,
    pub(super) history: History,
}

impl Subscription {
    pub(super) async fn make(
        cache: &Arc<OrderCache>,
        database: &DatabaseSettings,
        heartbeat_channel: &str,
    ) -> anyhow::Result<Self> {
        let (client, driver, mut echo_rx) = connect(cache, database, heartbeat_channel).await?;
        cache.listener.set_state(ListenerState::Subscribing);
        listen(&client, heartbeat_channel).await?;
        // Until then, nothing else is sent on the listener's connection.
        let sent_ms = cache.listener.now_ms();
        notify_from_another_session(database, heartbeat_channel, sent_ms).await?;
        timeout(DELIVERY_TIMEOUT, echo_rx.changed())
            .await
            .context(NOT_DELIVERED)?
            .context("connection lost")?;
        let history = read_history(&client).await?;
        let heartbeat = client.prepare("SELECT pg_notify($1, $2)").await;
        Ok(Self {
            heartbeat: heartbeat.map_err(described)?,
            client,
            driver,
            echo_rx,
            history,
        })
    }

    pub(super) async fn send_heartbeat(&self, channel: &str, sent_ms: u64) -> anyhow::Result<()> {
        let sent_ms = sent_ms.to_string();
        self.client
            .execute(&self.heartbeat, &[&channel, &sent_ms])
            .await
            .map_err(described)?;
        Ok(())
    }
}

async fn connect(
    cache: &Arc<OrderCache>,
    database: &DatabaseSettings,
    heartbeat_channel: &str,
) -> anyhow::Result<(Client, AbortOnDropHandle<String>, watch::Receiver<u64>)> {
    let mut config = db::tokio_config(database, APPLICATION_NAME);
    let options = [config.get_options().unwrap_or_default(), LISTENER_OPTIONS].concat();
    // A standby refuses LISTEN, and its rows lag behind the events.
    config
        .options(options)
        .target_session_attrs(TargetSessionAttrs::ReadWrite);
    let connected = config.connect(db::tls_connector(database)?).await;
    let (client, mut connection) = connected.map_err(|error| {
        if db::refuses_writes(&error) {
            anyhow::anyhow!(db::NOT_A_PRIMARY)
        } else {
            described(error)
        }
    })?;

    // The connection is driven by `poll_message` from the first moment. If it were awaited as a future, it would throw
    // notifications away.
    let (echo_tx, echo_rx) = watch::channel(0);
    let cache = Arc::clone(cache);
    let heartbeat_channel = heartbeat_channel.to_owned();
    let driver = AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            match poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notification(notification))) => {
                    receive(&cache, &heartbeat_channel, &echo_tx, &notification);
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return db::describe(&error),
                None => return "connection closed".to_owned(),
            }
        }
    }));
    Ok((client, driver, echo_rx))
}

/// Commits LISTEN for both channels in one transaction. The heartbeat channel's name needs no quotes: this process has made it
/// of letters, digits and underscores.
async fn listen(client: &Client, heartbeat_channel: &str) -> anyhow::Result<()> {
    // Repairs a queue of notifications that needs a part of the transaction log which VACUUM has removed (PostgREST#3147).
    // Without this LISTEN would fail.
    let heal = "SELECT pg_notification_queue_usage()";
    client.batch_execute(heal).await.map_err(described)?;
    let listen = ["LISTEN ", events::CHANNEL, "; LISTEN ", heartbeat_channel].concat();
    client.batch_execute(&listen).await.map_err(described)
}

/// Sends a notification from another session. A pooler that changes sessions between transactions loses LISTEN, and throws away
/// what arrives between transactions. Neither `pg_listening_channels` nor the connection's own heartbeats reveal that: while
/// few sessions are in use, the connection gets the same session each time and hears itself.
async fn notify_from_another_session(
    database: &DatabaseSettings,
    heartbeat_channel: &str,
    sent_ms: u64,
) -> anyhow::Result<()> {
    let config = db::tokio_config(database, repository::APPLICATION_NAME);
    let connected = config.connect(db::tls_connector(database)?).await;
    let (client, connection) = connected.map_err(described)?;
    let connection = tokio::spawn(connection);
    let notify = [
        "NOTIFY ",
        heartbeat_channel,
        ", '",
        &sent_ms.to_string(),
        "'",
    ]
    .concat();
    let notified = client.batch_execute(&notify).await.map_err(described);
    drop(client);
    connection.await.ok();
    notified
}
