//! One connection that LISTENs. It evicts the orders that writers name.
//!
//! The steps of every connect come in this order:
//!
//! 1. LISTEN commits.
//! 2. A notification of another session arrives.
//! 3. From here on loads are stored and hits are served. A new entry is served at once, an entry from before only after it was
//!    verified.
//!
//! The loss of the connection ends step 3 at once. This connection carries only LISTEN and heartbeats, because a query result
//! that nobody reads would hold back the notifications.

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
use shared::throttle::Throttle;
use shared::{db, events};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::Notification;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::OrderCache;
use super::status::ListenerState;
use history::History;
use subscription::Subscription;

/// The name of the listener's session in `pg_stat_activity`.
pub const APPLICATION_NAME: &str = "orders-api-listener";

/// How long connecting and LISTEN may take together. `connect_timeout` covers only the socket.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the connection sends a heartbeat.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How much older than the lease the proof may become before the listener connects anew.
const SUSPECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A listener that keeps a cache true.
#[derive(Debug)]
pub struct Listener {
    cache: Arc<OrderCache>,
    database: DatabaseSettings,
    warmup_limit: usize,
    /// The channel of the heartbeats, which belongs to this process alone.
    heartbeat_channel: String,
}

impl Listener {
    /// Prepares a listener. [`Self::run`] connects. After every connect the `warmup_limit` newest orders are loaded.
    pub fn new(cache: Arc<OrderCache>, database: DatabaseSettings, warmup_limit: usize) -> Self {
        Self {
            cache,
            database,
            warmup_limit,
            heartbeat_channel: format!("order_hb_{}", uuid::Uuid::new_v4().simple()),
        }
    }

    /// Listens until `shutdown`, and connects anew whenever the connection is lost.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut backoff = Backoff::for_database();
        let mut reports = Throttle::for_reports();
        let mut history = None;
        loop {
            let status = &self.cache.listener;
            status.set_state(ListenerState::Connecting);
            let session = tokio::select! {
                () = shutdown.cancelled() => return,
                session = self.listen(&mut backoff, &mut history) => session,
            };
            if self.cache.core.accepts_fills() {
                // This comes before anything else is awaited: from here on no hit may be served.
                self.cache.core.close();
                status.reconnects.add(1);
                reports.reset();
            }
            status.forget_proof();
            status.set_state(ListenerState::Connecting);
            let Err(error) = session;
            if reports.is_due() {
                warn!("listener is away, reads go to the database: {error:#}");
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
    }

    /// Makes one connection and uses it until it is lost. The error says why.
    async fn listen(
        &self,
        backoff: &mut Backoff,
        history: &mut Option<History>,
    ) -> anyhow::Result<Infallible> {
        let making = Subscription::make(&self.cache, &self.database, &self.heartbeat_channel);
        let subscription = timeout(SUBSCRIBE_TIMEOUT, making)
            .await
            .context("no answer to LISTEN in time")??;
        self.compare_history(history, &subscription.history);
        self.cache.core.open_fills();
        // Nobody was told of what was committed before LISTEN.
        self.cache.feed.resync();
        self.serve(ListenerState::Syncing);
        backoff.reset();
        self.follow(subscription).await
    }

    /// Drops every entry if the database has another history than at the connect before.
    fn compare_history(&self, last: &mut Option<History>, now: &History) {
        if let Some(before) = last.replace(now.clone())
            && before != *now
        {
            warn!(
                "the database has another history, every entry is dropped: {before} before, {now} now"
            );
            self.cache.repository.distrust_connections();
            self.cache.core.clear();
        }
    }

    /// Proves every second that the connection is alive, and verifies the entries from before, until the connection is lost.
    async fn follow(&self, mut subscription: Subscription) -> anyhow::Result<Infallible> {
        let status = &self.cache.listener;
        let mut proven_state = ListenerState::Syncing;
        let mut revalidation = pin!(self.cache.revalidate());
        let mut heartbeat = interval(HEARTBEAT_INTERVAL);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ended = &mut subscription.driver => bail!(ended.context("the driver of the connection panicked")?),
                () = &mut revalidation, if proven_state == ListenerState::Syncing => {
                    proven_state = ListenerState::Live;
                    if status.state() == ListenerState::Syncing {
                        self.serve(proven_state);
                    }
                    info!("listener is live");
                    self.cache.start_warmup(self.warmup_limit);
                }
                echo = subscription.echo_rx.changed() => {
                    echo.context("connection lost")?;
                    if status.state() == ListenerState::Suspect {
                        // The echo came on the same connection and in order, so no event was lost: the echo was only late.
                        self.serve(proven_state);
                    }
                }
                _ = heartbeat.tick() => {
                    // A time-out here shows in the age of the proof. The heartbeat is sent all the same.
                    let sent = subscription.send_heartbeat(&self.heartbeat_channel, status.now_ms());
                    if let Ok(sent) = timeout(HEARTBEAT_INTERVAL, sent).await {
                        sent?;
                    }
                    self.check_proof()?;
                }
            }
        }
    }

    fn serve(&self, proven_state: ListenerState) {
        self.cache.core.set_serving(true);
        self.cache.listener.set_state(proven_state);
    }

    /// Stops hits if the proof is older than the lease.
    ///
    /// # Errors
    /// Returns an error if the proof is so old that the listener must connect anew.
    fn check_proof(&self) -> anyhow::Result<()> {
        let status = &self.cache.listener;
        let age = status.proof_age().unwrap_or_default();
        let lease = self.cache.lease;
        if age >= lease + SUSPECT_TIMEOUT {
            bail!("no heartbeat has returned for {age:?}");
        }
        if age >= lease && status.state().serves() {
            self.cache.core.set_serving(false);
            status.set_state(ListenerState::Suspect);
            warn!(
                "listener is suspect, reads go to the database: no heartbeat has returned for {age:?}"
            );
        }
        Ok(())
    }
}

fn described(error: tokio_postgres::Error) -> anyhow::Error {
    anyhow::anyhow!(db::describe(&error))
}

/// Handles one notification: evicts the orders, and then tells the clients of the feed. It must be quick, because nothing else
/// is received meanwhile.
fn receive(
    cache: &OrderCache,
    heartbeat_channel: &str,
    echo_tx: &watch::Sender<u64>,
    notification: &Notification,
) {
    if notification.channel() == heartbeat_channel {
        if let Ok(sent_ms) = notification.payload().parse() {
            cache.listener.prove(sent_ms);
            echo_tx.send_replace(sent_ms);
        }
        return;
    }
    match events::parse(notification.payload()) {
        Ok(event) if event.operation == Operation::Flush => {
            cache.core.clear();
            cache.feed.resync();
        }
        Ok(event) => {
            event.uids.iter().for_each(|uid| cache.core.invalidate(uid));
            cache.feed.publish(event.operation, event.uids);
        }
        Err(error) => {
            cache.listener.malformed.add(1);
            warn!("an event cannot be understood, every entry is dropped: {error}");
            cache.core.clear();
            cache.feed.resync();
        }
    }
    // Counted last: whoever sees the count rise gets no older answer from then on.
    cache.listener.events.add(1);
}
