//! The accept loop around warp, with the limits that warp's own server lacks.
//!
//! A peer that sends its header slowly, connections without end, a full table of files: none of them may take the service
//! from the others. What is no HTTP at all, or has too large a header, hyper answers by itself, bare: 400, 414, 431. Stopping is bounded: requests get time to end, then connections are dropped.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::app::App;
use crate::envelope;
use crate::routes::routes;

/// How long a request's header may take to come.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bound of a request's header, and of what is read ahead of a body.
const MAX_BUFFER_BYTES: usize = 16 * 1024;
/// Most connections at a time; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 10_000;
/// Pause after a failed accept: the table of files is full, and trying at once would only burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long requests are still taken after the signal, at most, so that a balancer can see /readyz say no first.
const MAX_DRAIN_DELAY: Duration = Duration::from_millis(500);

/// Serves until `shutdown`, then gives what is under way `shutdown_timeout` to end.
pub async fn serve(
    app: Arc<App>,
    listener: TcpListener,
    shutdown: CancellationToken,
    shutdown_timeout: Duration,
) {
    let started_connections = GracefulShutdown::new();
    let dropped = CancellationToken::new();
    let drain_delay = MAX_DRAIN_DELAY.min(shutdown_timeout / 4);
    let stop_accepting = async {
        shutdown.cancelled().await;
        tokio::time::sleep(drain_delay).await;
    };
    tokio::select! {
        () = accept(&app, &listener, &started_connections, &dropped) => {}
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
    dropped.cancel();
}

/// Never ends by itself.
async fn accept(
    app: &Arc<App>,
    listener: &TcpListener,
    connections: &GracefulShutdown,
    dropped: &CancellationToken,
) {
    let service = TowerToHyperService::new(warp::service(routes(app)));
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut is_failing = false;
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let (stream, peer) = match listener.accept().await {
            Ok((stream, address)) => (stream, address.ip()),
            Err(error) => {
                if !is_failing {
                    warn!("cannot accept connections: {error}");
                    is_failing = true;
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if is_failing {
            info!("accepting connections again");
            is_failing = false;
        }
        let app = Arc::clone(app);
        let service = service.clone();
        let service = service_fn(move |request| {
            let (app, service) = (Arc::clone(&app), service.clone());
            async move { Ok::<_, Infallible>(envelope::answer(&app, &service, peer, request).await) }
        });
        let connection =
            connections.watch(connection_builder().serve_connection(prepare(stream), service));
        let dropped = dropped.clone();
        tokio::spawn(async move {
            tokio::select! {
                ended = connection => {
                    if let Err(error) = ended {
                        debug!("connection ended: {error}");
                    }
                }
                () = dropped.cancelled() => {}
            }
            drop(permit);
        });
    }
}

fn connection_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // Without a timer hyper ignores the time-out.
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_BUFFER_BYTES);
    builder
}

fn prepare(stream: TcpStream) -> TokioIo<TcpStream> {
    // An answer is one small write: it must not wait for the acknowledgement of the one before.
    if let Err(error) = stream.set_nodelay(true) {
        debug!("cannot set TCP_NODELAY: {error}");
    }
    TokioIo::new(stream)
}
