//! How long a connection may wait for the client: for a header, for the next request, until its answer is read.
//!
//! hyper has only one timeout for a header, and it starts when the previous answer is written. Five seconds would disconnect
//! every load balancer that keeps connections open; a minute would let clients send headers slowly. Therefore hyper gets a
//! timer, [`ClientTimer`], that knows whether the first byte of the header has arrived. Handlers bound the time between a
//! header and its answer; for a body they use [`Deadlines::body`].
//!
//! The timer also knows since when the connection waits, so the server can choose whom to disconnect when all its places
//! are taken. A connection whose request is being answered never waits, unless the client does not read the answer.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use std::{io, mem};

use hyper::rt::Timer;
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::refusals::bare_answer;

/// How often a client that does not read is tried before it is given up.
const LOOKS_PER_STALL: u32 = 6;

/// How long a connection may wait for the client.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// From the first byte of a header to its last. On a new connection it starts when the connection is accepted.
    pub header: Duration,
    /// Between an answer and the first byte of the next request.
    pub idle: Duration,
    /// From a header to the last byte of its body.
    pub body: Duration,
    /// How long the client may read nothing of an answer. Reading slowly is not reading nothing.
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

/// Measures how long a connection waits for its client. It is hyper's timer, which hyper asks for a sleep whenever it begins
/// to wait for a header, and it is these sleeps, too. The connection's task uses it, and the one that accepts connections.
#[derive(Clone, Debug)]
pub(super) struct ClientTimer(Arc<Mutex<Wait>>);

#[derive(Debug)]
struct Wait {
    deadlines: Deadlines,
    header: Header,
    /// One alarm for all requests. Moving it to a later time takes no lock of the runtime; a new alarm would.
    alarm: Pin<Box<Sleep>>,
    /// When hyper began to wait for the header.
    began: Instant,
    /// Whether hyper has read all that has arrived, and waits for the rest of the header.
    is_waiting: bool,
    /// Whether the next bytes that are read begin a header. Requests that arrive together are read together.
    is_at_start: bool,
    stall: Option<Stall>,
    is_displaced: bool,
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

/// The kernel takes no more of an answer, because the client does not read.
#[derive(Debug)]
struct Stall {
    began: Instant,
    alarm: Pin<Box<Sleep>>,
}

/// How well a connection can be spared: those without a request come first, and then the one that waits for longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spare {
    is_stalled: bool,
    began: Instant,
}

impl ClientTimer {
    /// Returns [`Deadlines::idle`].
    pub(super) fn idle_deadline(&self) -> Duration {
        self.0.lock().deadlines.idle
    }

    /// Returns how well the connection can be spared; `None` if it does not wait for its client.
    pub(super) fn spare(&self) -> Option<Spare> {
        let wait = self.0.lock();
        let (is_stalled, began) = match &wait.stall {
            _ if wait.is_displaced => return None,
            Some(stall) => (true, stall.began),
            None if wait.is_waiting => (false, wait.began),
            None => return None,
        };
        Some(Spare { is_stalled, began })
    }

    /// Ends the connection if it still waits for its client. A request that has begun to arrive since then is served.
    pub(super) fn displace(&self) {
        let mut guard = self.0.lock();
        let wait = &mut *guard;
        let alarm = match &mut wait.stall {
            Some(stall) => &mut stall.alarm,
            None if wait.is_waiting => &mut wait.alarm,
            None => return,
        };
        alarm.as_mut().reset(tokio::time::Instant::now());
        wait.is_displaced = true;
    }

    /// Returns why the server has ended the connection, as metrics name it; `None` if it has not.
    pub(super) fn reason(&self, outcome: &Result<(), hyper::Error>) -> Option<&'static str> {
        let wait = self.0.lock();
        let error = match outcome {
            _ if wait.is_displaced => return Some("displaced"),
            Ok(()) => return None,
            Err(error) => error,
        };
        if error.is_timeout() {
            return Some(match wait.header {
                Header::NotBegun => "idle",
                Header::First | Header::Begun | Header::Timed => "header_timeout",
            });
        }
        let cause = error.source()?.downcast_ref::<io::Error>()?;
        (cause.kind() == io::ErrorKind::TimedOut).then_some("write_timeout")
    }
}

impl Timer for ClientTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    /// A header must have begun by `idle_until`.
    fn sleep_until(&self, idle_until: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        let mut wait = self.0.lock();
        wait.is_at_start = true;
        if wait.header == Header::First {
            wait.header = Header::Timed;
        } else {
            wait.header = Header::NotBegun;
            wait.alarm.as_mut().reset(idle_until.into());
            // hyper has just looked at the clock.
            wait.began = idle_until - wait.deadlines.idle;
        }
        drop(wait);
        Box::pin(self.clone())
    }
}

impl hyper::rt::Sleep for ClientTimer {}

impl Future for ClientTimer {
    type Output = ();

    /// hyper polls only when it has read all that has arrived.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut wait = self.0.lock();
        wait.is_waiting = true;
        if wait.header == Header::Begun {
            wait.header = Header::Timed;
            let end = tokio::time::Instant::now() + wait.deadlines.header;
            wait.alarm.as_mut().reset(end);
        }
        wait.alarm.as_mut().poll(context)
    }
}

/// A client's stream. It fails if the client does not read an answer in time, and if the connection is displaced.
#[derive(Debug)]
pub(super) struct ClientStream {
    stream: TcpStream,
    timer: ClientTimer,
    /// Whether the timer has a stall. Only the connection's task makes and ends stalls, so it can know this without a lock.
    is_stalled: bool,
    /// Whether the kernel has taken the last bytes, although it has not called for any.
    is_filling: bool,
    /// Whether a bare answer of hyper was withheld. It was the last one.
    is_answer_withheld: bool,
}

/// Sets the deadlines of a new connection.
pub(super) fn guard(stream: TcpStream, deadlines: Deadlines) -> (ClientStream, ClientTimer) {
    let timer = ClientTimer(Arc::new(Mutex::new(Wait {
        deadlines,
        header: Header::First,
        alarm: Box::pin(tokio::time::sleep(deadlines.header)),
        began: Instant::now(),
        is_waiting: false,
        is_at_start: true,
        stall: None,
        is_displaced: false,
    })));
    let stream = ClientStream {
        stream,
        timer: timer.clone(),
        is_stalled: false,
        is_filling: false,
        is_answer_withheld: false,
    };
    (stream, timer)
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
        if wait.is_displaced {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        wait.is_waiting = false;
        if mem::take(&mut wait.is_at_start) {
            lower_minor_version(&mut buffer.filled_mut()[length..]);
        }
        if wait.header == Header::NotBegun && buffer.filled().len() > length {
            wait.header = Header::Begun;
        }
        drop(wait);
        Poll::Ready(Ok(()))
    }
}

/// Asks the kernel itself to take some bytes. tokio would not, before the kernel calls for them. Returns `None` if it takes
/// none now.
fn write_at_once(stream: &TcpStream, bytes: &[u8]) -> Option<io::Result<usize>> {
    match rustix::io::write(stream, bytes) {
        Err(Errno::AGAIN | Errno::INTR) => None,
        outcome => Some(outcome.map_err(io::Error::from)),
    }
}

/// Makes HTTP/1.1 of HTTP/1.2 and later minor versions in a request line, as RFC 9110, section 2.5, asks: a server answers
/// them in the version that it knows. hyper would refuse them. A request line that arrives in parts is left as it is.
fn lower_minor_version(header: &mut [u8]) {
    let mut lines = header.split_mut(|byte| *byte == b'\n');
    // Empty lines before a request are ignored.
    let line = lines.find(|line| !matches!(**line, [] | [b'\r']));
    // The last line is not complete.
    if let (Some(line), Some(_)) = (line, lines.next())
        && let [
            ..,
            b' ',
            b'H',
            b'T',
            b'T',
            b'P',
            b'/',
            b'1',
            b'.',
            minor @ b'2'..=b'9',
            b'\r',
        ] = line
    {
        *minor = b'1';
    }
}

impl ClientStream {
    /// Returns the connection, and whether its last answer was withheld.
    pub(super) fn into_parts(self) -> (TcpStream, bool) {
        (self.stream, self.is_answer_withheld)
    }

    /// Waits until the client reads, or until its time is up.
    ///
    /// The kernel wakes a writer only when a third of its buffer is free, which can be more than a megabyte. A client that
    /// reads slowly needs minutes for so much. But the kernel takes bytes as soon as there is any room, so it is tried now and
    /// then. Then the room is filled. Otherwise it would last for many tries, and a client that reads nothing would seem to
    /// read.
    fn poll_stall(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if mem::take(&mut self.is_filling)
            && let Some(outcome) = write_at_once(&self.stream, bytes)
        {
            self.is_filling = true;
            return Poll::Ready(outcome);
        }
        self.is_stalled = true;
        let mut guard = self.timer.0.lock();
        let wait = &mut *guard;
        let deadline = wait.deadlines.write;
        let stall = wait.stall.get_or_insert_with(|| Stall {
            began: Instant::now(),
            alarm: Box::pin(tokio::time::sleep(deadline / LOOKS_PER_STALL)),
        });
        loop {
            ready!(stall.alarm.as_mut().poll(context));
            if wait.is_displaced {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
            if let Some(outcome) = write_at_once(&self.stream, bytes) {
                self.is_filling = true;
                return Poll::Ready(outcome);
            }
            let now = Instant::now();
            let end = stall.began + deadline;
            if now >= end {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            let next = end.min(now + deadline / LOOKS_PER_STALL);
            stall.alarm.as_mut().reset(next.into());
        }
    }

    fn end_stall(&mut self) -> io::Result<()> {
        self.is_stalled = false;
        let mut wait = self.timer.0.lock();
        wait.stall = None;
        if wait.is_displaced {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        // If the whole answer is read now, the client is idle only since now.
        wait.began = Instant::now();
        Ok(())
    }
}

/// Without vectored writes, which the server has turned off.
impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let own = &bytes[..bytes.len() - bare_answer(bytes)];
        if own.is_empty() {
            self.is_answer_withheld = true;
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = match Pin::new(&mut self.stream).poll_write(context, own) {
            Poll::Pending => ready!(self.poll_stall(context, own)),
            Poll::Ready(written) => written,
        };
        if self.is_stalled {
            self.end_stall()?;
        }
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_answer_withheld {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
