//! One connection that LISTENs and evicts what writers name.
//!
//! The order at every connect: LISTEN committed, then fills are stored, then a heartbeat's echo, then hits are served: those
//! of new entries at once, those of entries from before as they are verified. Losing the connection ends all of it at once. This connection carries LISTEN and heartbeats only: a query result that
//! nobody reads would hold notifications back.

mod history;

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use shared::backoff::Backoff;
use shared::config::DatabaseSettings;
use shared::events::Operation;
use shared::{db, events};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{AsyncMessage, Client, Notification, Statement};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::OrderCache;
use super::status::ListenerState;
use history::History;

/// The name of the listener's session in `pg_stat_activity`.
pub const APPLICATION_NAME: &str = "orders-api-listener";

/// Connecting and LISTEN together; `connect_timeout` alone covers only the socket.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the connection proves that it is alive.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How long a connection may stay without proof after its lease has run out, before another is made.
const SUSPECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a lost connection is reported while it stays lost.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// The server drops a listener that takes nothing in for this long: one that is frozen would fill the queue of
/// notifications, and then no writer on that server could commit.
const LISTENER_OPTIONS: &str = " -c tcp_user_timeout=5s -c idle_session_timeout=0";

/// What one listener needs.
#[derive(Debug)]
pub struct Listener {
    cache: Arc<OrderCache>,
    database: DatabaseSettings,
    warmup_limit: usize,
    /// Heartbeats travel on a channel of this process alone.
    heartbeat_channel: String,
}

/// A connection whose LISTEN has committed.
struct Subscription {
    client: Client,
    /// Prepared, so that a heartbeat is one message: a second one would wait for an answer, which a slow link brings late.
    heartbeat: Statement,
    /// Ends with the connection, and says why.
    driver: AbortOnDropHandle<String>,
    /// What the newest heartbeat that came back had in it.
    echo_rx: watch::Receiver<u64>,
    history: History,
}

impl Listener {
    /// Prepares a listener; [`Self::run`] connects.
    pub fn new(cache: Arc<OrderCache>, database: DatabaseSettings, warmup_limit: usize) -> Self {
        Self {
            cache,
            database,
            warmup_limit,
            heartbeat_channel: format!("order_hb_{}", uuid::Uuid::new_v4().simple()),
        }
    }

    /// Keeps a connection that listens until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut backoff = Backoff::for_database();
        let mut last_report: Option<Instant> = None;
        let mut history = None;
        loop {
            let status = self.cache.listener();
            status.set_state(ListenerState::Connecting);
            let session = tokio::select! {
                () = shutdown.cancelled() => return,
                session = self.listen(&mut backoff, &mut history) => session,
            };
            if self.cache.core().accepts_fills() {
                // Before anything else is awaited: from here on no hit may be served.
                self.cache.core().close();
                status.reconnects.add(1);
                last_report = None;
            }
            status.forget_proof();
            status.set_state(ListenerState::Connecting);
            let Err(error) = session;
            if last_report.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL) {
                warn!("listener is away, reads go to the database: {error:#}");
                last_report = Some(Instant::now());
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
    }

    /// One connection from its making to its loss, which is how it ends.
    async fn listen(
        &self,
        backoff: &mut Backoff,
        history: &mut Option<History>,
    ) -> anyhow::Result<Infallible> {
        let status = self.cache.listener();
        let Subscription {
            client,
            heartbeat: heartbeat_statement,
            mut driver,
            mut echo_rx,
            history: server,
        } = timeout(SUBSCRIBE_TIMEOUT, self.subscribe())
            .await
            .context("no answer to LISTEN in time")??;
        if let Some(before) = history.replace(server.clone())
            && before != server
        {
            warn!(
                "another history of the database, every entry is dropped: {before} before, {server} now"
            );
            self.cache.clear();
        }
        self.cache.core().open_fills();
        timeout(SUBSCRIBE_TIMEOUT, async {
            self.send_heartbeat(&client, &heartbeat_statement).await?;
            echo_rx.changed().await.context("connection lost")
        })
        .await
        .context("no echo of the first heartbeat")??;
        let mut proven_state = ListenerState::Syncing;
        self.serve(proven_state);
        backoff.reset();

        let mut revalidation = pin!(self.cache.revalidate());
        let mut heartbeat = interval(HEARTBEAT_INTERVAL);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ended = &mut driver => bail!(ended.context("the driver of the connection panicked")?),
                () = &mut revalidation, if proven_state == ListenerState::Syncing => {
                    proven_state = ListenerState::Live;
                    if status.state() == ListenerState::Syncing {
                        self.serve(proven_state);
                    }
                    info!("listener is live");
                    self.cache.start_warmup(self.warmup_limit);
                }
                echo = echo_rx.changed() => {
                    echo.context("connection lost")?;
                    if status.state() == ListenerState::Suspect {
                        // Same connection, in order: nothing was lost, it was only late.
                        self.serve(proven_state);
                    }
                }
                _ = heartbeat.tick() => {
                    // A time-out here shows in the age of the proof. The heartbeat is on its way all the same.
                    let sent = self.send_heartbeat(&client, &heartbeat_statement);
                    if let Ok(sent) = timeout(HEARTBEAT_INTERVAL, sent).await {
                        sent?;
                    }
                    self.check_proof()?;
                }
            }
        }
    }

    fn serve(&self, proven_state: ListenerState) {
        self.cache.core().set_serving(true);
        self.cache.listener().set_state(proven_state);
    }

    fn check_proof(&self) -> anyhow::Result<()> {
        let status = self.cache.listener();
        let age = status.proof_age().unwrap_or_default();
        let lease = self.cache.lease();
        if age >= lease + SUSPECT_TIMEOUT {
            bail!("no echo of a heartbeat for {age:?}");
        }
        if age >= lease && status.state().serves() {
            self.cache.core().set_serving(false);
            status.set_state(ListenerState::Suspect);
            warn!(
                "listener is suspect, reads go to the database: no echo of a heartbeat for {age:?}"
            );
        }
        Ok(())
    }

    async fn subscribe(&self) -> anyhow::Result<Subscription> {
        let mut config = db::tokio_config(&self.database, APPLICATION_NAME);
        let options = [config.get_options().unwrap_or_default(), LISTENER_OPTIONS].concat();
        // LISTEN fails on a standby, and a standby's rows lag behind the events.
        config
            .options(options)
            .target_session_attrs(TargetSessionAttrs::ReadWrite);
        let tls = db::tls_connector(&self.database)?;
        let connected = config.connect(tls).await;
        let (client, mut connection) = connected.map_err(|error| {
            if db::refuses_writes(&error) {
                anyhow::anyhow!(db::NOT_A_PRIMARY)
            } else {
                described(error)
            }
        })?;
        self.cache.listener().set_state(ListenerState::Subscribing);

        // Driven by `poll_message` from the first moment: the connection as a future would throw notifications away.
        let (echo_tx, echo_rx) = watch::channel(0);
        let cache = Arc::clone(&self.cache);
        let heartbeat_channel = self.heartbeat_channel.clone();
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
        self.listen_on_channels(&client).await?;
        let history = History::of(&client).await?;
        let heartbeat = client.prepare("SELECT pg_notify($1, $2)").await;
        Ok(Subscription {
            heartbeat: heartbeat.map_err(described)?,
            client,
            driver,
            echo_rx,
            history,
        })
    }

    async fn listen_on_channels(&self, client: &Client) -> anyhow::Result<()> {
        // Heals a queue that VACUUM has cut the transaction log under (PostgREST#3147); otherwise LISTEN would fail.
        let queries = "SELECT pg_notification_queue_usage()";
        client.batch_execute(queries).await.map_err(described)?;
        // The name is ours: letters, digits and underscores.
        let listen = [
            "LISTEN ",
            events::CHANNEL,
            "; LISTEN ",
            &self.heartbeat_channel,
        ]
        .concat();
        client.batch_execute(&listen).await.map_err(described)?;
        // In a transaction of its own: behind a pooler that changes sessions, LISTEN is lost without an error.
        let row = client
            .query_one("SELECT count(*) FROM pg_listening_channels()", &[])
            .await
            .map_err(described)?;
        if row.get::<_, i64>(0) != 2 {
            bail!(
                "LISTEN does not hold: connect to PostgreSQL itself or to a pooler in session mode"
            );
        }
        Ok(())
    }

    async fn send_heartbeat(&self, client: &Client, heartbeat: &Statement) -> anyhow::Result<()> {
        let sent_ms = self.cache.listener().now_ms().to_string();
        client
            .execute(heartbeat, &[&self.heartbeat_channel, &sent_ms])
            .await
            .map_err(described)?;
        Ok(())
    }
}

fn described(error: tokio_postgres::Error) -> anyhow::Error {
    anyhow::anyhow!(db::describe(&error))
}

/// Evicts; must stay quick, because nothing else is received meanwhile.
fn receive(
    cache: &OrderCache,
    heartbeat_channel: &str,
    echo_tx: &watch::Sender<u64>,
    notification: &Notification,
) {
    if notification.channel() == heartbeat_channel {
        if let Ok(sent_ms) = notification.payload().parse() {
            cache.listener().prove(sent_ms);
            echo_tx.send_replace(sent_ms);
        }
        return;
    }
    match events::parse(notification.payload()) {
        Ok(event) if event.operation == Operation::Flush => cache.clear(),
        Ok(event) => event.uids.iter().for_each(|uid| cache.invalidate(uid)),
        Err(error) => {
            cache.listener().malformed.add(1);
            warn!("an event was not understood, every entry is dropped: {error}");
            cache.clear();
        }
    }
    // Counted when it holds: who waits for the count is not answered older from then on.
    cache.listener().events.add(1);
}
