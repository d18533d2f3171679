//! How long a connection may wait for the client: for a header, for the next request, until its answer is read.
//!
//! hyper has only one timeout for a header, and it starts when the previous answer is written. Five seconds would disconnect
//! every load balancer that keeps connections open; a minute would let clients send headers slowly. Therefore hyper gets a
//! timer, `HeaderTimer`, that knows whether the first byte of the header has arrived. Handlers bound the time between a
//! header and its answer; for a body they use [`Deadlines::body`].

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::Timer;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// How long a connection may wait for the client.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// From the first byte of a header to its last. On a new connection it starts when the connection is accepted.
    pub header: Duration,
    /// Between an answer and the first byte of the next request.
    pub idle: Duration,
    /// From a header to the last byte of its body.
    pub body: Duration,
    /// How long the client may read nothing of an answer.
    pub write: Duration,
}

impl Default for Deadlines {
    /// `idle` is longer than load balancers keep unused connections (60 s is common). So the balancer closes first, and
    /// never sends a request into a connection that the server is closing.
    fn default() -> Self {
        Self {
            header: Duration::from_secs(5),
            idle: Duration::from_secs(75),
            body: Duration::from_secs(10),
            write: Duration::from_secs(30),
        }
    }
}

/// Measures how long a connection waits for headers. It is hyper's timer, which hyper asks for a sleep whenever it begins to
/// wait for a header, and it is these sleeps, too. Only one task uses it; the lock is there because hyper requires timers
/// that can be shared.
#[derive(Clone, Debug)]
pub(super) struct HeaderTimer(Arc<Mutex<HeaderWait>>);

#[derive(Debug)]
struct HeaderWait {
    header: Header,
    /// One alarm for all requests. Moving it to a later time takes no lock of the runtime; a new alarm would.
    alarm: Pin<Box<Sleep>>,
    deadline: Duration,
}

/// How much of a header has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Header {
    /// The connection is new, and its alarm is set.
    First,
    NotBegun,
    Begun,
    /// Some of it has arrived, and the alarm is set for its end.
    Timed,
}

impl Timer for HeaderTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    /// A header must have begun by `idle_until`.
    fn sleep_until(&self, idle_until: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        let mut wait = self.0.lock();
        if wait.header == Header::First {
            wait.header = Header::Timed;
        } else {
            wait.header = Header::NotBegun;
            wait.alarm.as_mut().reset(idle_until.into());
        }
        drop(wait);
        Box::pin(self.clone())
    }
}

impl hyper::rt::Sleep for HeaderTimer {}

impl Future for HeaderTimer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut wait = self.0.lock();
        if wait.header == Header::Begun {
            wait.header = Header::Timed;
            let end = tokio::time::Instant::now() + wait.deadline;
            wait.alarm.as_mut().reset(end);
        }
        wait.alarm.as_mut().poll(context)
    }
}

/// A client's stream. It fails if the client does not read an answer in time.
#[derive(Debug)]
pub(super) struct ClientStream {
    stream: TcpStream,
    timer: HeaderTimer,
    write_deadline: Duration,
    write_alarm: Option<Pin<Box<Sleep>>>,
}

/// Sets the deadlines of a new connection.
pub(super) fn guard(stream: TcpStream, deadlines: Deadlines) -> (ClientStream, HeaderTimer) {
    let timer = HeaderTimer(Arc::new(Mutex::new(HeaderWait {
        header: Header::First,
        alarm: Box::pin(tokio::time::sleep(deadlines.header)),
        deadline: deadlines.header,
    })));
    let stream = ClientStream {
        stream,
        timer: timer.clone(),
        write_deadline: deadlines.write,
        write_alarm: None,
    };
    (stream, timer)
}

/// Returns which deadline ended a connection, as metrics name it.
pub(super) fn missed_deadline(timer: &HeaderTimer, error: &hyper::Error) -> Option<&'static str> {
    if error.is_timeout() {
        return Some(match timer.0.lock().header {
            Header::NotBegun => "idle",
            Header::First | Header::Begun | Header::Timed => "header_timeout",
        });
    }
    let cause = error.source()?.downcast_ref::<io::Error>()?;
    (cause.kind() == io::ErrorKind::TimedOut).then_some("write_timeout")
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let mut wait = self.timer.0.lock();
        if wait.header == Header::NotBegun && buffer.filled().len() > length {
            wait.header = Header::Begun;
        }
        drop(wait);
        Poll::Ready(Ok(()))
    }
}

/// Without vectored writes, which the server has turned off.
impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if written.is_ready() {
            self.write_alarm = None;
            return written;
        }
        let deadline = self.write_deadline;
        let new_alarm = || Box::pin(tokio::time::sleep(deadline));
        let alarm = self.write_alarm.get_or_insert_with(new_alarm);
        ready!(alarm.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
