//! Slow, greedy and broken clients, and panics.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::app::App;
use api::http::envelope::{Answering, Envelope, Outcome};
use api::stopping::Stopping;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use shared::db::rights::Role;
use shared::server::{Deadlines, RequestBody};
use shared::testing::{TestDatabase, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::support::program::Program;
use crate::support::{PATIENCE, TableLock, TestApi, config, connect_from};

const LIVEZ: &[u8] = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
const JSON: (&str, &str) = ("Content-Type", "application/json");

#[tokio::test(flavor = "multi_thread")]
async fn header_that_never_ends_is_hung_up_on() {
    let api = TestApi::start().await;
    let started = Instant::now();
    let mut stream = TcpStream::connect(("127.0.0.1", api.port)).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let dribble = async {
        writer
            .write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
            .await
            .unwrap();
        while writer.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let mut rest = Vec::new();
    tokio::select! {
        () = dribble => {}
        _ = reader.read_to_end(&mut rest) => {}
        () = tokio::time::sleep(PATIENCE) => panic!("still connected"),
    }
    let elapsed = started.elapsed();
    assert!(
        elapsed > Duration::from_secs(4) && elapsed < Duration::from_secs(8),
        "{elapsed:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_may_idle_longer_than_a_header_may_take() {
    let api = start_with_deadlines(|deadlines| {
        deadlines.header = Duration::from_millis(300);
        deadlines.idle = Duration::from_millis(1500);
    })
    .await;
    let mut stream = TcpStream::connect(("127.0.0.1", api.port)).await.unwrap();
    for _ in 0..2 {
        // Between requests, only the limit for idle connections counts.
        tokio::time::sleep(Duration::from_millis(200)).await;
        stream.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        stream.write_all(b"Host: localhost\r\n\r\n").await.unwrap();
        assert!(read_some(&mut stream).await.starts_with("HTTP/1.1 200"));
        let started = Instant::now();
        let idle = tokio::time::timeout(Duration::from_millis(700), stream.readable()).await;
        assert!(idle.is_err(), "hung up on after {:?}", started.elapsed());
    }
    stream.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
    let started = Instant::now();
    assert_eq!(read_some(&mut stream).await, "");
    let elapsed = started.elapsed();
    assert!(elapsed < Duration::from_millis(1200), "{elapsed:?}");

    let mut stream = TcpStream::connect(("127.0.0.1", api.port)).await.unwrap();
    stream
        .write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .unwrap();
    assert!(read_some(&mut stream).await.starts_with("HTTP/1.1 200"));
    let started = Instant::now();
    assert_eq!(read_some(&mut stream).await, "");
    let elapsed = started.elapsed();
    assert!(elapsed > Duration::from_millis(1300), "{elapsed:?}");
    assert_eq!(dropped(&api, "idle").await, 1);
    assert_eq!(dropped(&api, "header_timeout").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_is_hung_up_on() {
    let api = start_with_deadlines(|deadlines| deadlines.write = Duration::from_millis(500)).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket
        .connect(([127, 0, 0, 1], api.port).into())
        .await
        .unwrap();
    // First the answers pile up until the server can send no more, then the requests do: every write to the server waits.
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(1000);
    let flood = async { while stream.write_all(&request).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, flood)
        .await
        .expect("still connected");
    assert_eq!(dropped(&api, "write_timeout").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_peer_cannot_take_every_connection() {
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.server.max_connections_per_peer = 20;
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..50 {
        held.push(connect_from([127, 0, 0, 2], api.port).await);
    }
    eventually("those above the limit are refused", PATIENCE, async || {
        dropped(&api, "peer_limit").await == 30
    })
    .await;
    assert_eq!(api.get("/livez").await.status, 200, "another peer");
    drop(held);
    eventually("the peer may connect again", PATIENCE, async || {
        let mut stream = connect_from([127, 0, 0, 2], api.port).await;
        stream
            .write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await
            .ok();
        read_some(&mut stream).await.starts_with("HTTP/1.1 200")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_cap_a_new_client_gets_the_place_of_the_one_that_is_idle_for_longest() {
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.server.max_connections = 3;
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(TcpStream::connect(("127.0.0.1", api.port)).await.unwrap());
    }
    // The oldest connection has just been used; the next one has sent half a header.
    ask(&mut held[0]).await;
    held[1].write_all(&LIVEZ[..10]).await.unwrap();
    ask(&mut held[2]).await;
    ask(&mut held[0]).await;
    let started = Instant::now();
    let mut new = TcpStream::connect(("127.0.0.1", api.port)).await.unwrap();
    ask(&mut new).await;
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(
        read_some(&mut held[1]).await,
        "",
        "the one that was displaced"
    );
    ask(&mut held[2]).await;
    ask(&mut held[0]).await;
    assert_eq!(
        dropped(&api, "displaced").await,
        2,
        "this one took a place, too"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_cap_nobody_loses_an_answer_that_is_being_made() {
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.server.max_connections = 2;
    })
    .await;
    let lock = TableLock::take(&api.database, "orders");
    let path = "/api/v1/orders";
    let new = async {
        eventually("both wait for the table", PATIENCE, async || {
            let waiting = "SELECT count(*) AS value FROM pg_stat_activity \
                 WHERE datname = current_database() AND wait_event_type = 'Lock'";
            api.database.integer(waiting) == 2
        })
        .await;
        let mut new = TcpStream::connect(("127.0.0.1", api.port)).await.unwrap();
        new.write_all(LIVEZ).await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(300), new.readable()).await;
        assert!(
            early.is_err(),
            "answered or hung up on before there was a place"
        );
        lock.release();
        read_some(&mut new).await
    };
    let (first, second, new) = tokio::join!(api.get(path), api.get(path), new);
    assert_eq!((first.status, second.status), (200, 200));
    assert!(new.starts_with("HTTP/1.1 200"), "{new:?}");
    assert_eq!(dropped(&api, "displaced").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_have_a_bound() {
    let api = TestApi::start().await;
    let line = |kib: usize| {
        format!(
            "GET /livez?{} HTTP/1.1\r\nHost: a\r\n\r\n",
            "a".repeat(kib * 1024)
        )
    };
    let field = |kib: usize| {
        format!(
            "GET /livez HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
            "a".repeat(kib * 1024)
        )
    };
    let fields = |count: usize| {
        format!(
            "GET /livez HTTP/1.1\r\nHost: a\r\n{}\r\n",
            "X: a\r\n".repeat(count)
        )
    };
    for (what, request, wanted) in [
        ("a line", line(15), "200"),
        ("a long line", line(20), "414"),
        ("a very long line", line(1000), "414"),
        ("a field", field(15), "200"),
        ("a long field", field(20), "431"),
        ("a very long field", field(1000), "431"),
        ("fields", fields(90), "200"),
        ("many fields", fields(110), "431"),
    ] {
        // The server reads the rest, so the answer is not lost.
        assert_eq!(status_of(&api, &request).await, wanted, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_with_prior_knowledge_is_hung_up_on() {
    let api = TestApi::start().await;
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    assert_eq!(status_of(&api, preface).await, "");
    // A client that would prefer HTTP/2 asks like this. The connection stays HTTP/1.1.
    let upgrade = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings, close\r\n\
                   Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n";
    assert_eq!(status_of(&api, upgrade).await, "200");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_costs_one_answer_and_tells_nothing() {
    let database = TestDatabase::create();
    let address = "127.0.0.1:0".parse().unwrap();
    let config = config(database.settings_as(Role::Api));
    let app = App::new(&config, address, Stopping::default()).unwrap();
    let metrics = Arc::clone(&app.metrics);
    let listener = TcpListener::bind(address).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let panicking = |_, request: Request<RequestBody>| {
            assert!(request.uri().path() != "/panic", "canary");
            let path = request.uri().path().to_owned();
            let fine = async move {
                assert!(path == "/fine", "canary");
                Outcome::new("test", Ok(warp::reply::Response::new("fine".into())))
            };
            Answering::Right(Box::pin(fine))
        };
        let envelope = Arc::new(Envelope::new(
            &config,
            metrics,
            Stopping::default(),
            Box::new(panicking),
        ));
        let service = service_fn(move |request: Request<Incoming>| {
            envelope.answer(address.ip(), request.map(RequestBody::from))
        });
        http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await
            .unwrap();
    });
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let requests = b"GET /panic HTTP/1.1\r\nHost: a\r\nX-Request-Id: id-1\r\n\r\n\
                     GET /panic/later HTTP/1.1\r\nHost: a\r\nX-Request-Id: id-2\r\n\r\n\
                     GET /fine HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream.write_all(requests).await.unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    assert!(answers.starts_with("HTTP/1.1 500"), "{answers}");
    for id in ["id-1", "id-2"] {
        let problem = format!(r#""code":"internal","request_id":"{id}""#);
        assert!(answers.contains(&problem), "{answers}");
    }
    assert!(!answers.contains("canary"), "{answers}");
    assert!(
        answers.ends_with("\r\n\r\nfine"),
        "the connection stays open: {answers}"
    );
}

/// Runs in a process of its own, because a limit on file descriptors applies to a whole process.
#[tokio::test(flavor = "multi_thread")]
async fn running_out_of_file_descriptors_is_survived() {
    let mut program = Program::start(&TestDatabase::create(), &[]).await;
    let port = program.port;
    let mut kept = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    kept.write_all(LIVEZ).await.unwrap();
    assert!(read_some(&mut kept).await.starts_with("HTTP/1.1 200"));

    let folder = format!("/proc/{}/fd", program.process.id());
    let files = || std::fs::read_dir(&folder).unwrap().count() as u64;
    let limit = files() + 20;
    let both = Rlimit {
        current: Some(limit),
        maximum: Some(limit),
    };
    let pid = Pid::from_child(&program.process);
    prlimit(Some(pid), Resource::Nofile, both).unwrap();
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    }
    eventually("every file is taken", PATIENCE, async || files() >= limit).await;
    kept.write_all(LIVEZ).await.unwrap();
    assert!(read_some(&mut kept).await.starts_with("HTTP/1.1 200"));
    drop(held);
    eventually("connections are accepted again", PATIENCE, async || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(LIVEZ).await.unwrap();
        read_some(&mut stream).await.starts_with("HTTP/1.1 200")
    })
    .await;
    assert!(program.process.try_wait().unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_raises_its_limit_on_file_descriptors() {
    let mut low = Command::new("sh");
    low.args([
        "-c",
        "ulimit -Sn 64 && exec \"$0\"",
        env!("CARGO_BIN_EXE_api"),
    ]);
    let program = Program::start_by(low, &TestDatabase::create(), &[]).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(("127.0.0.1", program.port))
            .await
            .unwrap();
        stream.write_all(LIVEZ).await.unwrap();
        assert!(read_some(&mut stream).await.starts_with("HTTP/1.1 200"));
        held.push(stream);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_dribbles_is_answered_408() {
    let api = start_with_deadlines(|deadlines| deadlines.body = Duration::from_millis(500)).await;
    for framing in ["Content-Length: 1000", "Transfer-Encoding: chunked"] {
        let mut stream = TcpStream::connect(("127.0.0.1", api.port)).await.unwrap();
        let (name, value) = JSON;
        let head = format!(
            "PUT /api/v1/orders/a HTTP/1.1\r\nHost: localhost\r\n{name}: {value}\r\n{framing}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        // One chunk of one byte if the body is chunked, otherwise six bytes of the body.
        let dribble = async {
            while writer.write_all(b"1\r\n \r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let mut answer = Vec::new();
        let (_, read) = tokio::time::timeout(PATIENCE, async {
            tokio::join!(dribble, reader.read_to_end(&mut answer))
        })
        .await
        .expect("still connected");
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.starts_with("HTTP/1.1 408"),
            "{framing}: {answer} {read:?}"
        );
        assert!(answer.contains(r#""code":"request_timeout""#), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    }
}

/// With Nagle's algorithm, the second answer would wait until the client has acknowledged the first, which takes 40 ms.
#[tokio::test(flavor = "multi_thread")]
async fn answers_do_not_wait_for_acknowledgements() {
    let api = TestApi::start().await;
    let mut stream = TcpStream::connect(("127.0.0.1", api.port)).await.unwrap();
    let started = Instant::now();
    for _ in 0..50 {
        stream.write_all(&LIVEZ.repeat(2)).await.unwrap();
        let mut answers = String::new();
        while answers.matches("HTTP/1.1 200").count() < 2 {
            answers.push_str(&read_some(&mut stream).await);
        }
    }
    let elapsed = started.elapsed();
    assert!(elapsed < Duration::from_millis(800), "{elapsed:?}");
}

async fn start_with_deadlines(change: impl FnOnce(&mut Deadlines)) -> TestApi {
    TestApi::start_with(TestDatabase::create(), |config| {
        change(&mut config.server.deadlines);
    })
    .await
}

/// Returns the status of the answer; empty if there is none.
async fn status_of(api: &TestApi, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", api.port)).await.unwrap();
    stream.write_all(request.as_bytes()).await.ok();
    let mut answer = Vec::new();
    while !answer.contains(&b'\n') {
        let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut answer)).await;
        match read.expect("neither answered nor hung up on") {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).unwrap_or_default();
    status.to_owned()
}

/// Sends a request on a connection that stays open, and reads the answer.
async fn ask(stream: &mut TcpStream) {
    stream.write_all(LIVEZ).await.unwrap();
    let answer = read_some(stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
}

/// Reads what comes next. The text is empty if the server hung up.
async fn read_some(stream: &mut TcpStream) -> String {
    let mut buffer = [0; 4096];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await;
    let length = read.expect("nothing in time").unwrap_or(0);
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// Returns how many connections the server has dropped for this reason, according to its metrics.
async fn dropped(api: &TestApi, reason: &str) -> u64 {
    let name = format!("orders_api_http_dropped_connections_total{{reason=\"{reason}\"}}");
    api.metric(&name).await
}
