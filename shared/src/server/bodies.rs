//! The bodies of requests, and what becomes of those that nobody reads.
//!
//! If an answer is sent before the body was read, what remains of the body is in the way of the next request. hyper then
//! closes the connection, but has promised in the answer to keep it. A client that relies on this promise loses its next
//! request. Therefore a short rest is read before the answer is sent; otherwise the answer says `Connection: close`.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, EXPECT, HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode};
use parking_lot::Mutex;

/// The longest rest of a body that is read for the sake of the connection. It has room for every valid order.
const MAX_REST_BYTES: u64 = 256 * 1024;
/// How long the answer may wait for that rest. A client that sends without a pause takes less.
const MAX_REST_TIME: Duration = Duration::from_secs(1);

/// The body of a request.
#[derive(Debug, Default)]
pub struct RequestBody(Option<Arc<Mutex<Rest>>>);

#[derive(Debug)]
struct Rest {
    incoming: Incoming,
    /// Whether the end has been seen. The length of a chunked body is unknown.
    has_ended: bool,
}

impl From<Incoming> for RequestBody {
    fn from(incoming: Incoming) -> Self {
        let has_ended = incoming.is_end_stream();
        let rest = Rest {
            incoming,
            has_ended,
        };
        Self((!has_ended).then(|| Arc::new(Mutex::new(rest))))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &self.0 {
            Some(rest) => rest.lock().poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|rest| rest.lock().has_ended)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Some(rest) => rest.lock().incoming.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

impl Rest {
    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(context));
        self.has_ended = frame.is_none() || self.incoming.is_end_stream();
        Poll::Ready(frame)
    }
}

/// What the server keeps of a request with a body until it is answered.
#[derive(Debug)]
pub(super) struct Leftover {
    rest: Arc<Mutex<Rest>>,
    /// Whether the client waits for a word before it sends the body.
    expects_continue: bool,
}

impl Leftover {
    /// Returns `None` if the request has no body.
    pub(super) fn of(request: &Request<RequestBody>) -> Option<Self> {
        let rest = Arc::clone(request.body().0.as_ref()?);
        let expects_continue = request.headers().contains_key(EXPECT);
        Some(Self {
            rest,
            expects_continue,
        })
    }

    /// Reads a short rest of the body, or makes the answer say that the connection ends with it. Returns whether the body
    /// was read.
    pub(super) async fn settle<B>(self, response: &mut Response<B>) -> bool {
        let is_read = self
            .is_read_for(response.status(), response.headers())
            .await;
        if !is_read {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        is_read
    }

    async fn is_read_for(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        let (has_ended, known_bytes) = {
            let rest = self.rest.lock();
            (rest.has_ended, rest.incoming.size_hint().lower())
        };
        if has_ended {
            return true;
        }
        // Reading would ask the client for a body that nobody wants. And after a time-out, nobody waits any longer.
        let is_hopeless = self.expects_continue
            || status == StatusCode::REQUEST_TIMEOUT
            || headers.contains_key(CONNECTION)
            || known_bytes > MAX_REST_BYTES;
        !is_hopeless
            && tokio::time::timeout(MAX_REST_TIME, self.read())
                .await
                .unwrap_or(false)
    }

    /// Returns whether the body has ended within its bound.
    async fn read(&self) -> bool {
        let mut left = MAX_REST_BYTES;
        loop {
            let frame = poll_fn(|context| self.rest.lock().poll_frame(context)).await;
            let frame = match frame {
                None => return true,
                Some(Ok(frame)) => frame,
                Some(Err(_)) => return false,
            };
            let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
            match left.checked_sub(bytes) {
                Some(rest) => left = rest,
                None => return false,
            }
        }
    }
}
