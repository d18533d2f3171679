//! The accept loop around warp, with the limits that warp's own server lacks.
//!
//! A peer that sends its header slowly or never reads, connections without end, a full table of files: none of them may
//! take the service from the others (`deadlines`, `peers`). HTTP/1.1 only: HTTP/2 with prior knowledge is hung up on.
//! What is no HTTP at all, or has too large a header (16 KiB, 100 fields), hyper answers by itself, bare: 400, 414, 431.
//! Stopping is bounded: requests get time to end, then connections are dropped.

mod deadlines;
mod peers;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use shared::throttle::Throttle;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use warp::http::Request;

use super::envelope::{Answering, Envelope, Outcome};
use crate::config::ServerLimits;
use peers::Peers;

/// Bound of a request's header, and of what is read ahead of a body.
const MAX_BUFFER_BYTES: usize = 16 * 1024;
/// Pause after a failed accept: the table of files is full, and trying at once would only burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long what was sent may stay unacknowledged. The feed sends something every 15 s, so that a peer which has vanished is
/// given up after 75 s; longer than a peer may take nothing of an answer (`Deadlines`).
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_TIMEOUT_MS: u32 = 60_000;
/// How long requests are still taken after the signal, at most, so that a balancer can see /readyz say no first.
const MAX_DRAIN_DELAY: Duration = Duration::from_millis(500);

/// Serves until `shutdown`, then gives what is under way `shutdown_timeout` to end.
pub async fn serve<R>(
    envelope: Arc<Envelope<R>>,
    listener: TcpListener,
    limits: ServerLimits,
    shutdown: CancellationToken,
    shutdown_timeout: Duration,
) where
    R: Fn(Request<Incoming>) -> Answering<Outcome> + Send + Sync + 'static,
{
    let started_connections = GracefulShutdown::new();
    let mut tasks = JoinSet::new();
    let drain_delay = MAX_DRAIN_DELAY.min(shutdown_timeout / 4);
    let stop_accepting = async {
        shutdown.cancelled().await;
        tokio::time::sleep(drain_delay).await;
    };
    tokio::select! {
        () = accept(&envelope, &listener, limits, &started_connections, &mut tasks) => {}
        () = stop_accepting => {}
    }
    drop(listener);
    let remaining = shutdown_timeout.saturating_sub(drain_delay);
    if tokio::time::timeout(remaining, started_connections.shutdown())
        .await
        .is_err()
    {
        warn!("requests still under way after {shutdown_timeout:?}, dropping them");
    }
    tasks.shutdown().await;
}

/// Never ends by itself.
async fn accept<R>(
    envelope: &Arc<Envelope<R>>,
    listener: &TcpListener,
    limits: ServerLimits,
    connections: &GracefulShutdown,
    tasks: &mut JoinSet<()>,
) where
    R: Fn(Request<Incoming>) -> Answering<Outcome> + Send + Sync + 'static,
{
    let metrics = &envelope.metrics;
    // At the limit further connections wait in the kernel's queue.
    let permits = Arc::new(Semaphore::new(limits.max_connections));
    let peers = Peers::new(limits.max_connections_per_peer);
    // At the limit accepting fails and succeeds by turns.
    let mut reports = Throttle::for_reports();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let (stream, peer) = accept_one(listener, &mut reports).await;
        let Some(admitted) = peers.admit(peer.ip()) else {
            metrics.connection_dropped("peer_limit");
            continue;
        };
        let open = metrics.connection_opened();
        let envelope = Arc::clone(envelope);
        let service = service_fn(move |request| envelope.answer(peer.ip(), request));
        let (stream, timer) = deadlines::guard(with_options(stream), limits.deadlines);
        let connection = http1::Builder::new()
            .timer(timer.clone())
            .header_read_timeout(limits.deadlines.idle)
            .max_buf_size(MAX_BUFFER_BYTES)
            // Head and body in one piece: for a kilobyte copying it is cheaper than telling the kernel of two.
            .writev(false)
            .serve_connection(TokioIo::new(stream), service);
        let connection = connections.watch(connection);
        let metrics = Arc::clone(metrics);
        tasks.spawn(async move {
            if let Err(error) = connection.await {
                debug!("connection ended: {error}");
                if let Some(deadline) = deadlines::missed_deadline(&timer, &error) {
                    metrics.connection_dropped(deadline);
                }
            }
            drop((open, admitted, permit));
        });
        // Those that have ended are forgotten.
        while tasks.try_join_next().is_some() {}
    }
}

/// Goes on trying, whatever fails.
async fn accept_one(listener: &TcpListener, reports: &mut Throttle) -> (TcpStream, SocketAddr) {
    loop {
        let error = match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => error,
        };
        // The peer's: it hung up while it waited.
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

/// An answer is one small write: it must not wait for the acknowledgement of the one before. And a peer that has vanished
/// without a word must not keep its place on the feed for the quarter of an hour that TCP tries.
fn with_options(stream: TcpStream) -> TcpStream {
    if let Err(error) = stream.set_nodelay(true) {
        debug!("cannot set TCP_NODELAY: {error}");
    }
    // Only Linux has it.
    #[cfg(target_os = "linux")]
    if let Err(error) =
        rustix::net::sockopt::set_tcp_user_timeout(&stream, UNACKNOWLEDGED_TIMEOUT_MS)
    {
        debug!("cannot set TCP_USER_TIMEOUT: {error}");
    }
    stream
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::net::sockopt;

    use super::*;

    #[tokio::test]
    async fn accepted_connections_are_quick_and_give_up_peers_that_acknowledge_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (stream, _) = accept_one(&listener, &mut Throttle::for_reports()).await;
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 0);
        let stream = with_options(stream);
        assert!(stream.nodelay().unwrap());
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 60_000);
    }
}
