//! One connection, from its first request to its end.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::TryFutureExt;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::either::Either;
use tracing::debug;

use super::bodies::{Leftover, RequestBody};
use super::deadlines::{ClientStream, ClientTimer};
use super::pieces::InPieces;
use super::refusals::{self, Unreadable};

/// The limit of a request's header, and of what is read ahead of a body.
const MAX_BUFFER_BYTES: usize = 16 * 1024;
/// How much is still read of a client that sends more than the server wants, and for how long.
const MAX_LINGERING_BYTES: usize = 8 * 1024 * 1024;
const MAX_LINGERING: Duration = Duration::from_secs(5);

/// What answers the requests of a connection.
#[derive(Clone)]
pub(super) struct Answers<A, R> {
    /// Answers a request.
    pub(super) answer: A,
    /// Answers a request that cannot be read.
    pub(super) refuse: R,
}

impl<A, R, F, B> Answers<A, R>
where
    A: Fn(IpAddr, Request<RequestBody>) -> F + Unpin,
    R: Fn(IpAddr, Unreadable) -> Response<B>,
    F: Future<Output = Result<Response<B>, Infallible>> + Send + Unpin + 'static,
    B: Body<Data: Send + Unpin, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
{
    /// Serves a connection to its end. Returns why the server has ended it, as metrics name it; `None` if it has not.
    pub(super) async fn serve(
        self,
        peer: IpAddr,
        (stream, timer): (ClientStream, ClientTimer),
        mut closing_rx: watch::Receiver<bool>,
    ) -> Option<&'static str> {
        let Self { answer, refuse } = self;
        // Whether the client may still be sending a body that the last answer did not wait for.
        let is_body_left = Arc::new(AtomicBool::new(false));
        let service = {
            let is_body_left = Arc::clone(&is_body_left);
            service_fn(move |request: Request<Incoming>| {
                let request = request.map(RequestBody::from);
                let leftover = Leftover::of(&request);
                let answering = answer(peer, request);
                let Some(leftover) = leftover else {
                    return Either::Left(answering.map_ok(in_pieces));
                };
                let is_body_left = Arc::clone(&is_body_left);
                Either::Right(Box::pin(async move {
                    let mut response = answering.await?;
                    let is_left = !leftover.settle(&mut response).await;
                    is_body_left.store(is_left, Ordering::Relaxed);
                    Ok(in_pieces(response))
                }))
            })
        };
        let mut connection = http1::Builder::new()
            .timer(timer.clone())
            .header_read_timeout(timer.idle_deadline())
            .max_buf_size(MAX_BUFFER_BYTES)
            // Head and body are sent as one buffer: copying a kilobyte is cheaper than passing the kernel two buffers.
            .writev(false)
            .serve_connection(TokioIo::new(stream), service);
        let ended = tokio::select! {
            biased;
            outcome = &mut connection => Some(outcome),
            _ = closing_rx.changed() => None,
        };
        let outcome = match ended {
            Some(outcome) => outcome,
            None => {
                Pin::new(&mut connection).graceful_shutdown();
                (&mut connection).await
            }
        };
        if let Err(error) = &outcome {
            debug!("connection ended: {error}");
        }
        let parts = connection.into_parts();
        let (stream, is_answer_withheld) = parts.io.into_inner().into_parts();
        match &outcome {
            Err(error) if is_answer_withheld => {
                let unreadable = Unreadable::of(error, &parts.read_buf);
                let answer = refusals::written(refuse(peer, unreadable)).await;
                part_with(stream, &answer).await;
                Some("malformed")
            }
            // The answer is cut. What the system has of it must not reach the client any more.
            Err(error) if error.is_user() => {
                if let Err(error) = stream.set_zero_linger() {
                    debug!("cannot reset a connection: {error}");
                }
                timer.reason(&outcome)
            }
            Ok(()) if is_body_left.load(Ordering::Relaxed) => {
                part_with(stream, b"").await;
                None
            }
            _ => timer.reason(&outcome),
        }
    }
}

fn in_pieces<B: Body>(response: Response<B>) -> Response<InPieces<B>> {
    response.map(InPieces::from)
}

/// Sends the last answer, and reads and drops for a while what the client still sends. If the connection were closed at
/// once, the system would reset it, and the client could lose the answer (RFC 9112, section 9.6).
async fn part_with(mut stream: TcpStream, answer: &[u8]) {
    let mut buffer = vec![0; MAX_BUFFER_BYTES];
    let parting = async {
        stream.write_all(answer).await?;
        stream.shutdown().await?;
        let mut left = MAX_LINGERING_BYTES;
        while left > 0 {
            let read = stream.read(&mut buffer).await?;
            left = if read == 0 {
                0
            } else {
                left.saturating_sub(read)
            };
        }
        Ok::<_, io::Error>(())
    };
    match tokio::time::timeout(MAX_LINGERING, parting).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!("cannot take leave of a client: {error}"),
        Err(_) => debug!("a client sends for too long after the last answer"),
    }
}
