//! How long a connection may wait for its peer: for a header, for the next request, for its answer to be read.
//!
//! hyper has one time-out for a header, which starts when the answer before is written: five seconds would hang up on every
//! balancer that keeps connections open, a minute would let headers dribble. So it gets a timer, `HeaderTimer`, that goes
//! by whether the stream has seen the first byte. The times between a header and its answer are the handlers' to bound, the
//! one for a body with [`Deadlines::body`].

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

use crate::config::Deadlines;

/// A connection's wait for headers: hyper's timer, which it asks for a sleep when it begins to wait for a header, and all of
/// these sleeps. One task uses it; behind a lock only because hyper wants timers that may be shared.
#[derive(Clone, Debug)]
pub(super) struct HeaderTimer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    wait: Mutex<HeaderWait>,
    deadlines: Deadlines,
}

#[derive(Debug)]
struct HeaderWait {
    header: Header,
    /// One for all requests: setting it later again takes no lock of the runtime, a new one would.
    alarm: Pin<Box<Sleep>>,
}

/// How much of a header has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Header {
    /// The connection is new: its alarm is set.
    First,
    NotBegun,
    Begun,
    /// Some, and the alarm is set for its end.
    Timed,
}

impl Timer for HeaderTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    /// `idle_until` is where a header must have begun.
    fn sleep_until(&self, idle_until: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        let mut wait = self.0.wait.lock();
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
        let mut wait = self.0.wait.lock();
        if wait.header == Header::Begun {
            wait.header = Header::Timed;
            let deadline = tokio::time::Instant::now() + self.0.deadlines.header;
            wait.alarm.as_mut().reset(deadline);
        }
        wait.alarm.as_mut().poll(context)
    }
}

/// A client's stream, which fails where an answer is not taken in time.
#[derive(Debug)]
pub(super) struct ClientStream {
    stream: TcpStream,
    timer: HeaderTimer,
    write_alarm: Option<Pin<Box<Sleep>>>,
}

/// Sets the deadlines of a new connection.
pub(super) fn guard(stream: TcpStream, deadlines: Deadlines) -> (ClientStream, HeaderTimer) {
    let wait = HeaderWait {
        header: Header::First,
        alarm: Box::pin(tokio::time::sleep(deadlines.header)),
    };
    let timer = HeaderTimer(Arc::new(Shared {
        wait: Mutex::new(wait),
        deadlines,
    }));
    let stream = ClientStream {
        stream,
        timer: timer.clone(),
        write_alarm: None,
    };
    (stream, timer)
}

/// The deadline that ended a connection, as metrics call it.
pub(super) fn missed_deadline(timer: &HeaderTimer, error: &hyper::Error) -> Option<&'static str> {
    if error.is_timeout() {
        return Some(match timer.0.wait.lock().header {
            Header::NotBegun => "idle",
            Header::First | Header::Begun | Header::Timed => "header_timeout",
        });
    }
    let cause = error.source()?.downcast_ref::<io::Error>()?;
    (cause.kind() == io::ErrorKind::TimedOut).then_some("write_timeout")
}

impl ClientStream {
    fn in_time(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.write_alarm = None;
            return written;
        }
        let limit = self.timer.0.deadlines.write;
        let new_alarm = || Box::pin(tokio::time::sleep(limit));
        let alarm = self.write_alarm.get_or_insert_with(new_alarm);
        ready!(alarm.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let mut wait = self.timer.0.wait.lock();
        if wait.header == Header::NotBegun && buffer.filled().len() > length {
            wait.header = Header::Begun;
        }
        drop(wait);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.in_time(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.in_time(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
