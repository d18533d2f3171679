//! The accept loop around warp, with the limits that warp's own server lacks.
//!
//! No client may deny the service to others by sending its header slowly, by not reading its answer, or by opening too many
//! connections (`deadlines`, `peers`), and the server survives when the process runs out of file descriptors. It speaks
//! only HTTP/1.1; a client that begins with HTTP/2 is disconnected. hyper itself answers 400, 414 or 431 without a body if a
//! request is not HTTP or its header is too large (16 KiB, 100 fields). When the server stops, requests get a bounded time
//! to end; then their connections are dropped.

mod deadlines;
mod peers;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

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

use super::envelope::Envelope;
use crate::config::ServerLimits;
use peers::Peers;

/// The limit of a request's header, and of what is read ahead of a body.
const MAX_BUFFER_BYTES: usize = 16 * 1024;
/// The pause after a failed accept. The process has run out of file descriptors, and trying again at once would only burn
/// CPU time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long sent data may stay unacknowledged. The feed sends something every 15 s, so a client that has vanished is given up
/// after 75 s. This is longer than a client may refuse to read an answer (`Deadlines::write`).
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_TIMEOUT_MS: u32 = 60_000;
/// How long requests are still accepted after the signal to stop, so that a load balancer first sees /readyz fail.
const MAX_DRAIN_DELAY: Duration = Duration::from_millis(500);

/// Serves until `shutdown`. Requests that are then in progress get `shutdown_timeout` to end.
pub async fn serve(
    envelope: Arc<Envelope>,
    listener: TcpListener,
    limits: ServerLimits,
    shutdown: CancellationToken,
    shutdown_timeout: Duration,
) {
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
        warn!("requests are still in progress after {shutdown_timeout:?}, dropping them");
    }
    tasks.shutdown().await;
}

/// Accepts connections. It never ends by itself.
async fn accept(
    envelope: &Arc<Envelope>,
    listener: &TcpListener,
    limits: ServerLimits,
    connections: &GracefulShutdown,
    tasks: &mut JoinSet<()>,
) {
    let metrics = &envelope.metrics;
    // At the limit, further connections wait in the kernel's queue.
    let permits = Arc::new(Semaphore::new(limits.max_connections));
    let peers = Peers::new(limits.max_connections_per_peer);
    // Near the limit of file descriptors, accepting fails and succeeds by turns.
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
            // Head and body are sent as one buffer: copying a kilobyte is cheaper than passing the kernel two buffers.
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
