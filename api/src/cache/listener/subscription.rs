//! Makes a connection that LISTENs, and finds out whether it receives what other sessions send.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use shared::config::DatabaseSettings;
use shared::db::{STANDING, Standing};
use shared::{db, events};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{AsyncMessage, Client, Statement};
use tokio_util::task::AbortOnDropHandle;

use super::{APPLICATION_NAME, Listener, described, receive};
use crate::cache::status::ListenerState;
use crate::repository;

/// The server drops a listener that reads nothing for 5 s. A frozen listener would fill the queue of notifications, and then
/// no writer on that server could commit.
///
/// A heartbeat waits for the server's lock on that queue, which a COMMIT that hangs may hold for ever. Without the short
/// `lock_timeout`, the server would keep a session of every connection that was given up meanwhile.
const LISTENER_SETTINGS: &str =
    "SET tcp_user_timeout = '5s'; SET idle_session_timeout = 0; SET lock_timeout = '5s'";

/// How long a notification of another session may take to arrive.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(5);
const NO_HISTORY: &str = "the table service_history is empty: run `ingestor new-history`";
const NOT_DELIVERED: &str = "notifications of other sessions do not arrive: connect to PostgreSQL itself or to a pooler in \
                             session mode";

/// A connection whose LISTEN has committed, and that received what another session sent after that.
pub(super) struct Subscription {
    client: Arc<Client>,
    /// Prepared, so that a heartbeat is a single message. A second message would have to wait for an answer, which is late on a
    /// slow link.
    heartbeat: Statement,
    /// Ends with the connection, and says why it ended.
    pub(super) driver: AbortOnDropHandle<String>,
    /// The time that the newest returned heartbeat carried.
    pub(super) echo_rx: watch::Receiver<u64>,
    /// The history of the server, and how far it had come after LISTEN.
    pub(super) standing: Standing,
}

impl Subscription {
    /// Sends a heartbeat when it is first polled. Returns its time, and the standing that it has read.
    pub(super) fn heartbeat(
        &self,
        channel: &str,
        sent_ms: u64,
    ) -> impl Future<Output = anyhow::Result<(u64, Standing)>> + use<> {
        let (client, heartbeat) = (Arc::clone(&self.client), self.heartbeat.clone());
        let channel = channel.to_owned();
        async move {
            let sent = sent_ms.to_string();
            let row = client.query_one(&heartbeat, &[&channel, &sent]).await;
            let standing = row.and_then(|row| Standing::from_row(&row));
            Ok((sent_ms, standing.map_err(described)?))
        }
    }
}

impl Listener {
    /// Connects and listens. The first proof is there when it returns.
    pub(super) async fn subscribe(&self) -> anyhow::Result<Subscription> {
        let Self {
            cache,
            database,
            heartbeat_channel,
            ..
        } = self;
        let (client, driver, mut echo_rx) = self.connect().await?;
        cache.listener.set_state(ListenerState::Subscribing);
        db::set_up_session(&client, LISTENER_SETTINGS).await?;
        listen(&client, heartbeat_channel).await?;
        // Until then, nothing else is sent on the listener's connection.
        let sent_ms = cache.listener.now_ms();
        notify_from_another_session(database, heartbeat_channel, sent_ms).await?;
        timeout(DELIVERY_TIMEOUT, echo_rx.changed())
            .await
            .context(NOT_DELIVERED)?
            .context("connection lost")?;
        let row = client.query_opt(STANDING, &[]).await.map_err(described)?;
        let row = row.context(NO_HISTORY)?;
        let standing = Standing::from_row(&row).map_err(described)?;
        let heartbeat = [
            "SELECT pg_notify($1, $2), standing.* FROM (",
            STANDING,
            ") AS standing",
        ];
        let heartbeat = client.prepare(&heartbeat.concat()).await;
        cache.listener.prove(sent_ms);
        Ok(Subscription {
            heartbeat: heartbeat.map_err(described)?,
            client: Arc::new(client),
            driver,
            echo_rx,
            standing,
        })
    }

    async fn connect(
        &self,
    ) -> anyhow::Result<(Client, AbortOnDropHandle<String>, watch::Receiver<u64>)> {
        let mut config = db::tokio_config(&self.database, APPLICATION_NAME);
        // A standby refuses LISTEN, and its rows lag behind the events.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        let connected = config.connect(db::tls_connector(&self.database)?).await;
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
        let (cache, flushes) = (Arc::clone(&self.cache), Arc::clone(&self.flushes));
        let heartbeat_channel = self.heartbeat_channel.clone();
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                match poll_fn(|context| connection.poll_message(context)).await {
                    Some(Ok(AsyncMessage::Notification(notification))) => {
                        receive(
                            &cache,
                            &flushes,
                            &heartbeat_channel,
                            &echo_tx,
                            &notification,
                        );
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return db::describe(&error),
                    None => return "connection closed".to_owned(),
                }
            }
        }));
        Ok((client, driver, echo_rx))
    }
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
    let connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let notify = format!("{LISTENER_SETTINGS}; NOTIFY {heartbeat_channel}, '{sent_ms}'");
    let notified = client.batch_execute(&notify).await.map_err(described);
    drop(client);
    connection.await.ok();
    notified
}
