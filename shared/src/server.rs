//! The HTTP server of both processes: an accept loop with the limits that warp's own server lacks.
//!
//! No client may deny the service to others by sending its header slowly, by not reading its answer, or by opening too many
//! connections (`deadlines`, `peers`, `places`), and the server survives when the process runs out of file
//! descriptors. It speaks only HTTP/1.1; a client that begins with HTTP/2 is disconnected. What hyper cannot read is refused
//! in the words of the process (`refusals`). An answer before the end of a body says so if it ends the connection
//! (`bodies`). When the server stops, requests get a bounded time to end; then their connections are dropped.
//!
//! The server knows neither routes nor warp. What answers the requests is a function.

mod bodies;
mod connection;
mod deadlines;
mod exposition;
mod metrics;
mod peers;
mod pieces;
mod places;
mod refusals;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hyper::body::Body;
use hyper::{Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::files;
use crate::throttle::Throttle;
pub use bodies::RequestBody;
use connection::Answers;
pub use deadlines::Deadlines;
pub use exposition::Exposition;
pub use metrics::ConnectionMetrics;
use peers::Peers;
pub use peers::subscriber;
use places::Places;
pub use refusals::Unreadable;

/// The pause after a failed accept. The process has run out of file descriptors, and trying again at once would only burn
/// CPU time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long sent data may stay unacknowledged. The feed sends something every 15 s, so a client that has vanished is given up
/// after 75 s. This is longer than a client may refuse to read an answer ([`Deadlines::write`]).
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_TIMEOUT_MS: u32 = 60_000;

/// The most connections of an operators' port: Prometheus, an orchestrator's probes, and some people.
const MAX_OPERATORS: usize = 64;
/// How long an operator's client may read nothing. A page of metrics is small.
const OPERATORS_WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// How long the last answers of an operators' port may take. A client that does not read must not keep the process alive.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// The limits of clients' connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most connections, at least 1. At the limit, a new client gets the place of the one that has been idle for
    /// longest, or of one that does not read its answer. If all are waiting for answers, it waits.
    pub max_connections: usize,
    /// The most connections of one address, at least 1. For IPv6, one /64 network is one address.
    pub max_connections_per_peer: usize,
    /// How long a connection may wait for the client.
    pub deadlines: Deadlines,
}

impl Limits {
    /// The limits of an operators' port. A few connections suffice there, and the file descriptors of the process are
    /// needed for its work: at most a quarter of them is for operators.
    pub fn for_operators() -> Self {
        let quarter = files::limit() / 4;
        Self {
            max_connections: quarter.clamp(1, MAX_OPERATORS),
            // Behind a tunnel or in a cluster, all of them may have one address.
            max_connections_per_peer: usize::MAX,
            deadlines: Deadlines {
                write: OPERATORS_WRITE_DEADLINE,
                ..Deadlines::default()
            },
        }
    }
}

/// When a server stops, and how.
#[derive(Clone, Debug)]
pub struct Stop {
    /// Cancelled when the server should stop.
    pub signal: CancellationToken,
    /// How long requests may take after the signal.
    pub timeout: Duration,
}

impl Stop {
    /// Stops an operators' port when the work of the process is finished. Until then, `/readyz` says that the process is
    /// stopping.
    pub fn when_finished(finished: CancellationToken) -> Self {
        Self {
            signal: finished,
            timeout: LAST_ANSWERS,
        }
    }
}

/// Serves until `stop`. Requests that are then in progress get a bounded time to end.
///
/// `answer` gets the address of the client and the request. `refuse` answers a request that hyper cannot read.
pub async fn serve<A, R, F, B>(
    listener: TcpListener,
    limits: Limits,
    metrics: ConnectionMetrics,
    stop: Stop,
    answer: A,
    refuse: R,
) where
    A: Fn(IpAddr, Request<RequestBody>) -> F + Clone + Send + Unpin + 'static,
    R: Fn(IpAddr, Unreadable) -> Response<B> + Clone + Send + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Send + Unpin + 'static,
    B: Body<Data: Send + Unpin, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
{
    let closing_tx = watch::Sender::new(false);
    let mut tasks = JoinSet::new();
    let answers = Answers { answer, refuse };
    tokio::select! {
        () = accept(&answers, &listener, limits, &metrics, &closing_tx, &mut tasks) => {}
        () = stop.signal.cancelled() => {}
    }
    drop(listener);
    closing_tx.send_replace(true);
    let ending = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(stop.timeout, ending).await.is_err() {
        let timeout = stop.timeout;
        warn!("requests are still in progress after {timeout:?}, dropping them");
    }
    tasks.shutdown().await;
}

/// Accepts connections. It never ends by itself.
async fn accept<A, R, F, B>(
    answers: &Answers<A, R>,
    listener: &TcpListener,
    limits: Limits,
    metrics: &ConnectionMetrics,
    closing_tx: &watch::Sender<bool>,
    tasks: &mut JoinSet<()>,
) where
    A: Fn(IpAddr, Request<RequestBody>) -> F + Clone + Send + Unpin + 'static,
    R: Fn(IpAddr, Unreadable) -> Response<B> + Clone + Send + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Send + Unpin + 'static,
    B: Body<Data: Send + Unpin, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
{
    let places = Places::new(limits.max_connections);
    let peers = Peers::new(limits.max_connections_per_peer);
    // Near the limit of file descriptors, accepting fails and succeeds by turns.
    let mut reports = Throttle::for_reports();
    loop {
        let (stream, peer) = accept_one(listener, &mut reports).await;
        let peer = peer.ip();
        let Some(admitted) = peers.admit(peer) else {
            metrics.dropped("peer_limit");
            continue;
        };
        // Meanwhile, further connections wait in the kernel's queue.
        let permit = places.wait_for_one().await;
        let open = metrics.opened();
        let (stream, timer) = deadlines::guard(with_options(stream), limits.deadlines);
        let place = places.take(permit, timer.clone());
        let serving = answers
            .clone()
            .serve(peer, (stream, timer), closing_tx.subscribe());
        let metrics = metrics.clone();
        tasks.spawn(async move {
            if let Some(reason) = serving.await {
                metrics.dropped(reason);
            }
            drop((open, admitted, place));
        });
        // Forgets the tasks that have ended.
        while tasks.try_join_next().is_some() {}
    }
}

/// Accepts one connection. After a failure it tries again.
async fn accept_one(listener: &TcpListener, reports: &mut Throttle) -> (TcpStream, SocketAddr) {
    loop {
        let error = match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => error,
        };
        // The client hung up while it waited.
        if matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
        ) {
            continue;
        }
        if reports.is_due() {
            warn!("cannot accept connections: {error}");
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Sets the options of a connection. An answer is one small write, which must not wait until the previous one is
/// acknowledged. And a client that has vanished must not keep its place on the feed for the 15 minutes that TCP tries.
fn with_options(stream: TcpStream) -> TcpStream {
    if let Err(error) = stream.set_nodelay(true) {
        debug!("cannot set TCP_NODELAY: {error}");
    }
    // Only Linux has this option.
    #[cfg(target_os = "linux")]
    if let Err(error) =
        rustix::net::sockopt::set_tcp_user_timeout(&stream, UNACKNOWLEDGED_TIMEOUT_MS)
    {
        debug!("cannot set TCP_USER_TIMEOUT: {error}");
    }
    stream
}
