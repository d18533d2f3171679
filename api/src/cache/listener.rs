//! One connection that LISTENs and evicts what writers name.
//!
//! The order at every connect: LISTEN committed, then a notification of another session has come, then fills are stored and
//! hits are served: those of new entries at once, those of entries from before as they are verified. Losing the connection
//! ends all of it at once. This connection carries LISTEN and heartbeats only: a query result that nobody reads would hold
//! notifications back.

mod history;
mod subscription;

use std::convert::Infallible;
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
use tokio_postgres::{Client, Notification, Statement};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::OrderCache;
use super::status::ListenerState;
use history::History;
use subscription::Subscription;

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

/// What one listener needs.
#[derive(Debug)]
pub struct Listener {
    cache: Arc<OrderCache>,
    database: DatabaseSettings,
    warmup_limit: usize,
    /// Heartbeats travel on a channel of this process alone.
    heartbeat_channel: String,
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
        } = timeout(
            SUBSCRIBE_TIMEOUT,
            Subscription::make(&self.cache, &self.database, &self.heartbeat_channel),
        )
        .await
        .context("no answer to LISTEN in time")??;
        if let Some(before) = history.replace(server.clone())
            && before != server
        {
            warn!(
                "another history of the database, every entry is dropped: {before} before, {server} now"
            );
            self.cache.repository.distrust_connections();
            self.cache.clear();
        }
        self.cache.core().open_fills();
        // What was committed before LISTEN, nobody was told of.
        self.cache.feed().resync();
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

/// Evicts, then tells the feed's clients; must stay quick, because nothing else is received meanwhile.
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
        Ok(event) if event.operation == Operation::Flush => {
            cache.clear();
            cache.feed().resync();
        }
        Ok(event) => {
            event.uids.iter().for_each(|uid| cache.invalidate(uid));
            cache.feed().publish(event.operation, event.uids);
        }
        Err(error) => {
            cache.listener().malformed.add(1);
            warn!("an event was not understood, every entry is dropped: {error}");
            cache.clear();
            cache.feed().resync();
        }
    }
    // Counted when it holds: who waits for the count is not answered older from then on.
    cache.listener().events.add(1);
}
