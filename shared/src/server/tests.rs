//! A server of the tests' own, whose answers are small, too large for the buffers of a connection, or endless.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Frame};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use super::*;

/// More than the buffers of a connection hold.
const LARGE: usize = 32 * 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(20);

type TestBody = UnsyncBoxBody<Bytes, Infallible>;

fn text(text: String) -> TestBody {
    Full::from(text).boxed_unsync()
}

/// A body without end, which counts the bytes that hyper takes.
struct Endless(Arc<AtomicUsize>);

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = Bytes::from_static(&[b'x'; 16 * 1024]);
        self.0.fetch_add(bytes.len(), Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

/// Starts a server with two places. `/large` is answered by a large text.
async fn start() -> SocketAddr {
    start_with(Deadlines::default(), Arc::default()).await
}

/// The same with other deadlines. `/endless` is answered without end, and `taken` counts what the server takes of it.
async fn start_with(deadlines: Deadlines, taken: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let limits = Limits {
        max_connections: 2,
        max_connections_per_peer: usize::MAX,
        deadlines,
    };
    let stop = Stop {
        signal: CancellationToken::new(),
        timeout: Duration::ZERO,
    };
    let answer = move |_, request: Request<RequestBody>| {
        let body = match request.uri().path() {
            "/endless" => Endless(Arc::clone(&taken)).boxed_unsync(),
            "/large" => text("x".repeat(LARGE)),
            _ => text("x".to_owned()),
        };
        std::future::ready(Ok(Response::new(body)))
    };
    let metrics = ConnectionMetrics::default();
    let refuse = |_, unreadable: Unreadable| {
        let mut response = Response::new(text(format!("{unreadable:?}")));
        *response.status_mut() = unreadable.status();
        response
    };
    tokio::spawn(serve(listener, limits, metrics, stop, answer, refuse));
    address
}

/// Connects, sends a request, and waits until the answer begins.
async fn ask(address: SocketAddr, path: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(address).await.unwrap();
    ask_on(&mut client, path).await;
    client
}

async fn ask_on(client: &mut TcpStream, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    let answered = tokio::time::timeout(PATIENCE, client.read_exact(&mut status)).await;
    answered.expect("no answer in time").unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
}

/// Reads the rest of an answer. Returns `false` if the server hangs up before its end.
async fn read_answer(client: &mut TcpStream, length: usize) -> bool {
    let reading = async {
        let (mut seen, mut buffer) = (0, vec![0; 1024 * 1024]);
        while seen < length {
            match client.read(&mut buffer).await {
                Ok(0) | Err(_) => return false,
                Ok(read) => seen += buffer[..read].iter().filter(|byte| **byte == b'x').count(),
            }
        }
        true
    };
    let outcome = tokio::time::timeout(PATIENCE, reading).await;
    outcome.expect("neither read nor hung up on")
}

async fn is_hung_up_on(client: &mut TcpStream) -> bool {
    !read_answer(client, usize::MAX).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_keeps_its_place_until_nobody_else_can_be_spared() {
    let address = start().await;
    let mut first_stalled = ask(address, "/large").await;
    let mut idle = ask(address, "/").await;
    // The idle client goes first, although the other one has done nothing for longer.
    let mut second_stalled = ask(address, "/large").await;
    assert!(is_hung_up_on(&mut idle).await);
    let _new = ask(address, "/").await;
    assert!(!read_answer(&mut first_stalled, LARGE).await);
    assert!(read_answer(&mut second_stalled, LARGE).await);
}

/// All of a slow client's answer has been made, but it is still reading.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_idle_only_since_it_has_read_its_answer() {
    let address = start().await;
    let mut slow = ask(address, "/large").await;
    let mut quick = ask(address, "/").await;
    assert!(read_answer(&mut slow, LARGE).await);
    let _new = ask(address, "/").await;
    assert!(is_hung_up_on(&mut quick).await);
    ask_on(&mut slow, "/").await;
}

/// A third of the kernel's buffer is never free here.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_reads_slowly_is_not_taken_for_one_that_does_not_read() {
    let taken = Arc::new(AtomicUsize::new(0));
    let deadlines = Deadlines {
        write: Duration::from_secs(3),
        ..Deadlines::default()
    };
    let address = start_with(deadlines, Arc::clone(&taken)).await;
    let mut client = ask(address, "/endless").await;
    let mut before = 0;
    for _ in 0..4 {
        // All buffers fill up.
        while before != taken.load(Ordering::Relaxed) {
            before = taken.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        client.read_exact(&mut vec![0; 200_000]).await.unwrap();
        let progress = async {
            while taken.load(Ordering::Relaxed) == before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let progress = tokio::time::timeout(PATIENCE, progress).await;
        progress.expect("the server has not noticed that its client reads");
    }
    // Whoever then reads nothing is given up.
    let holders = Arc::strong_count(&taken);
    let end = async {
        while Arc::strong_count(&taken) == holders {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let end = tokio::time::timeout(PATIENCE, end).await;
    end.expect("the answer to a client that reads nothing has not ended");
}

/// Sends a request and reads what comes until the server hangs up.
async fn send(address: SocketAddr, request: &[u8]) -> String {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(request).await.unwrap();
    let mut answer = String::new();
    let read = tokio::time::timeout(PATIENCE, client.read_to_string(&mut answer)).await;
    read.expect("not hung up on").unwrap();
    answer
}

/// hyper publishes its reasons only as texts, and its own answers only on the wire. This fails when it changes them.
#[tokio::test(flavor = "multi_thread")]
async fn all_that_hyper_refuses_is_answered_in_our_words() {
    let address = start().await;
    let head = |fields: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let long = "a".repeat(20 * 1024);
    for (request, reason) in [
        (
            "\u{16}\u{3}\u{1}\r\n\r\n".to_owned(),
            "does not begin with a method",
        ),
        ("GET /<> HTTP/1.1\r\n\r\n".to_owned(), "not a valid URI"),
        ("GET a/b HTTP/1.1\r\n\r\n".to_owned(), "not a valid URI"),
        (
            "GET / HTTP/2.0\r\n\r\n".to_owned(),
            "does not end with HTTP/1.1",
        ),
        ("GET /\r\n\r\n".to_owned(), "not a valid URI, or"),
        (head("A b: c\r\n"), "a field of the header"),
        (head("A: b\0\r\n"), "a field of the header"),
        (head(" A: b\r\n"), "a field of the header"),
        (head("Content-Length: 1, 1\r\n"), "Content-Length must be"),
        (
            head("Content-Length: 1\r\nContent-Length: 2\r\n"),
            "Content-Length must be",
        ),
        (head("Transfer-Encoding: gzip\r\n"), "TransferCoding"),
        (
            "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            "needs HTTP/1.1",
        ),
        (format!("GET /{long} HTTP/1.1\r\n\r\n"), "TargetTooLong"),
        (head(&format!("A: {long}\r\n")), "HeaderTooLarge"),
        (head(&"A: b\r\n".repeat(100)), "HeaderTooLarge"),
    ] {
        let answer = send(address, request.as_bytes()).await;
        let what = format!("{request:.99?}: {answer:?}");
        assert!(
            answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 501 "),
            "{what}"
        );
        assert!(answer.contains("\r\nconnection: close\r\n"), "{what}");
        assert!(answer.contains(" GMT\r\n"), "{what}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(body.contains(reason), "{what}");
        let length = format!("\r\ncontent-length: {}\r\n", body.len());
        assert!(answer.contains(&length), "{what}");
        // The same behind an answer that is in the buffer already.
        let request = ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", &request].concat();
        let answers = send(address, request.as_bytes()).await;
        assert!(answers.starts_with("HTTP/1.1 200 OK\r\n"), "{what}");
        assert_eq!(answers.matches("\r\ndate: ").count(), 2, "{answers}");
        assert!(answers.ends_with(body), "{answers}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn accepted_connections_are_quick_and_give_up_peers_that_acknowledge_nothing() {
    use rustix::net::sockopt;

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).await;
    let (stream, _) = accept_one(&listener, &mut Throttle::for_reports()).await;
    assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 0);
    let stream = with_options(stream);
    assert!(stream.nodelay().unwrap());
    assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 60_000);
}
