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
//!
//! A heartbeat also reads the database's history (see `shared::db::history`). It renews the proof only if the history is
//! still the same. What is stored must come from a connection with that history, so the pool tells when it reaches another.

mod flushes;
mod subscription;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use shared::backoff::Backoff;
use shared::config::DatabaseSettings;
use shared::db::Standing;
use shared::events::Operation;
use shared::throttle::Throttle;
use shared::{db, events};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::Notification;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::OrderCache;
use super::proof::Heartbeats;
use super::status::ListenerState;
use flushes::Flushes;
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
    flushes: Arc<Flushes>,
}

/// The pool reached a server with another history. Both must go to the same one before anything can be stored.
#[derive(Debug, thiserror::Error)]
#[error(
    "the listener and the pool are connected to servers of different histories, so both connect anew"
)]
struct HistoryMismatch;

impl Listener {
    /// Prepares a listener. [`Self::run`] connects. After every connect the `warmup_limit` newest orders are loaded.
    pub fn new(cache: Arc<OrderCache>, database: DatabaseSettings, warmup_limit: usize) -> Self {
        Self {
            cache,
            database,
            warmup_limit,
            heartbeat_channel: format!("order_hb_{}", uuid::Uuid::new_v4().simple()),
            flushes: Arc::default(),
        }
    }

    /// Listens until `shutdown`, and connects anew whenever the connection is lost.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut backoff = Backoff::for_database();
        // Connecting succeeds each time, so the other one would stay short.
        let mut mismatch_backoff = Backoff::for_database();
        let mut reports = Throttle::for_reports();
        let mut last = None;
        loop {
            let status = &self.cache.listener;
            status.set_state(ListenerState::Connecting);
            let session = tokio::select! {
                () = shutdown.cancelled() => return,
                session = self.listen(&mut backoff, &mut last) => session,
            };
            if self.cache.core.accepts_fills() {
                // This comes before anything else is awaited: from here on no hit may be served.
                self.cache.core.close();
                status.reconnects.add(1);
                reports.reset();
            }
            self.cache.repository.set_heard_history(None);
            status.forget_proof();
            status.set_state(ListenerState::Connecting);
            let Err(error) = session;
            if reports.is_due() {
                warn!("listener is away, reads go to the database: {error:#}");
            }
            let delay = if error.is::<HistoryMismatch>() {
                mismatch_backoff.next_delay()
            } else {
                mismatch_backoff.reset();
                backoff.next_delay()
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// Makes one connection and uses it until it is lost. The error says why. `last` is what was last heard of any database.
    async fn listen(
        &self,
        backoff: &mut Backoff,
        last: &mut Option<Standing>,
    ) -> anyhow::Result<Infallible> {
        let making = self.subscribe();
        let subscription = timeout(SUBSCRIBE_TIMEOUT, making)
            .await
            .context("no answer to LISTEN in time")??;
        let standing = subscription.standing.clone();
        if let Some(change) = last.as_ref().and_then(|last| change(last, &standing)) {
            warn!("every entry is dropped: {change}");
            self.cache.repository.distrust_connections();
            self.cache.core.clear();
        }
        let history = standing.history.hash_id();
        self.cache.repository.set_heard_history(Some(history));
        self.cache.core.open_fills(history.0);
        // Nobody was told of what was committed before LISTEN.
        self.cache.feed.resync();
        self.serve(ListenerState::Syncing);
        backoff.reset();
        self.follow(subscription, last.insert(standing)).await
    }

    /// Proves every second that the connection is alive, and verifies the entries from before, until the connection is lost.
    async fn follow(
        &self,
        mut subscription: Subscription,
        last: &mut Standing,
    ) -> anyhow::Result<Infallible> {
        let status = &self.cache.listener;
        let mut proven_state = ListenerState::Syncing;
        let mut revalidation = pin!(self.cache.revalidate());
        let mut ticks = interval(HEARTBEAT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // More than one is under way if the link is slow.
        let mut heartbeats = FuturesOrdered::new();
        let mut returned = Heartbeats::default();
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
                Some(answer) = heartbeats.next(), if !heartbeats.is_empty() => {
                    let (sent_ms, standing): (u64, Standing) = answer?;
                    if let Some(change) = change(last, &standing) {
                        bail!("{change}");
                    }
                    *last = standing;
                    returned.compare(sent_ms);
                    self.prove(&returned, proven_state);
                }
                echo = subscription.echo_rx.changed() => {
                    echo.context("connection lost")?;
                    returned.echo(*subscription.echo_rx.borrow_and_update());
                    self.prove(&returned, proven_state);
                }
                () = self.cache.repository.history_mismatch() => bail!(HistoryMismatch),
                _ = ticks.tick() => {
                    self.flushes.run_delayed(&self.cache);
                    heartbeats.push_back(subscription.heartbeat(&self.heartbeat_channel, status.now_ms()));
                    self.check_proof()?;
                }
            }
        }
    }

    /// Renews the proof as far as the heartbeats that have returned allow it.
    fn prove(&self, returned: &Heartbeats, proven_state: ListenerState) {
        let status = &self.cache.listener;
        let Some(sent_ms) = returned.proven_ms(self.flushes.is_delayed()) else {
            return;
        };
        status.prove(sent_ms);
        if status.state() == ListenerState::Suspect && status.proof_age() < Some(status.lease) {
            // The heartbeat came on the same connection and in order, so no event was lost: it was only late.
            self.serve(proven_state);
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
        let lease = status.lease;
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

/// Says what shows that the database is another one than it was, or an older state of it.
fn change(before: &Standing, now: &Standing) -> Option<String> {
    if before.history != now.history {
        let (before, now) = (&before.history, &now.history);
        Some(format!(
            "the database has another history: {before} before, {now} now"
        ))
    } else if now.log_position < before.log_position {
        let bytes = before.log_position - now.log_position;
        Some(format!(
            "the database's log is {bytes} bytes shorter than it was: older files have replaced the server's"
        ))
    } else {
        None
    }
}

/// Handles one notification: evicts the orders, and then tells the clients of the feed. It must be quick, because nothing else
/// is received meanwhile.
fn receive(
    cache: &OrderCache,
    flushes: &Flushes,
    heartbeat_channel: &str,
    echo_tx: &watch::Sender<u64>,
    notification: &Notification,
) {
    if notification.channel() == heartbeat_channel {
        if let Ok(sent_ms) = notification.payload().parse() {
            echo_tx.send_replace(sent_ms);
        }
        return;
    }
    match events::parse(notification.payload()) {
        Ok(event) if event.operation == Operation::Flush => flushes.request(cache),
        Ok(event) => {
            event.uids.iter().for_each(|uid| cache.core.invalidate(uid));
            cache.feed.publish(event.operation, event.uids);
        }
        Err(error) => {
            cache.listener.malformed.add(1);
            warn!("an event cannot be understood, every entry is dropped: {error}");
            flushes.request(cache);
        }
    }
    // Counted last: whoever sees the count rise gets no older answer from then on, unless a flush was delayed.
    cache.listener.events.add(1);
}
