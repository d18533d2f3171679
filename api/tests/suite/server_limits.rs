//! Slow and broken clients, panics, stopping.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use api::app::App;
use diesel::prelude::*;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use shared::testing::{TestDatabase, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::support::{PATIENCE, TestApi, config, model};

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
async fn oversized_header_is_refused() {
    let api = TestApi::start().await;
    let long = "a".repeat(64 * 1024);
    let mut stream = TcpStream::connect(("127.0.0.1", api.port)).await.unwrap();
    // The server hangs up in the middle: neither end of this is certain to arrive.
    stream
        .write_all(format!("GET /livez HTTP/1.1\r\nX-Long: {long}\r\n\r\n").as_bytes())
        .await
        .ok();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok();
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    assert_eq!(api.get("/livez").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_under_way_end_before_the_process_does() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let mut lock = api.database.connect();
    diesel::sql_query("BEGIN").execute(&mut lock).unwrap();
    diesel::sql_query("LOCK TABLE orders")
        .execute(&mut lock)
        .unwrap();
    let under_way = api.get("/order/b563feb7b2b84b6test");
    let stopping = async {
        eventually("the load runs", PATIENCE, async || {
            api.stats().await["loads"]["started"] == 1
        })
        .await;
        api.shutdown.cancel();
        let ready = api.get("/readyz").await;
        assert_eq!(
            (ready.status, &ready.json()["detail"]),
            (503, &"stopping".into())
        );
        eventually("new connections are refused", PATIENCE, async || {
            TcpStream::connect(("127.0.0.1", api.port)).await.is_err()
        })
        .await;
        diesel::sql_query("COMMIT").execute(&mut lock).unwrap();
    };
    let (answer, ()) = tokio::join!(under_way, stopping);
    assert_eq!(answer.status, 200);
    let started = Instant::now();
    api.stop().await;
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_do_not_end_are_dropped_in_time() {
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.shutdown = shared::config::ShutdownSettings::new(Duration::from_millis(1000));
    })
    .await;
    let mut idle = TcpStream::connect(("127.0.0.1", api.port)).await.unwrap();
    idle.write_all(
        b"PUT /api/v1/orders/a HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                     Content-Length: 10\r\n\r\n{",
    )
    .await
    .unwrap();
    eventually("the request is under way", PATIENCE, async || {
        // Two: this one and the one that asks.
        api.get("/metrics")
            .await
            .body
            .contains("orders_api_http_in_flight_requests 2\n")
    })
    .await;
    let started = Instant::now();
    api.stop().await;
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_costs_one_answer_and_tells_nothing() {
    let database = TestDatabase::create();
    let address = "127.0.0.1:0".parse().unwrap();
    let app = App::new(
        &config(database.settings()),
        address,
        CancellationToken::new(),
    )
    .unwrap();
    let listener = TcpListener::bind(address).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let panicking = service_fn(
            async |request: warp::http::Request<hyper::body::Incoming>| {
                assert!(request.uri().path() == "/fine", "canary");
                Ok::<_, Infallible>(warp::reply::Response::new("fine".into()))
            },
        );
        let service = service_fn(|request| {
            let app = app.clone();
            async move {
                Ok::<_, Infallible>(
                    api::envelope::answer(&app, &panicking, address.ip(), request).await,
                )
            }
        });
        http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await
            .unwrap();
    });
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let requests = b"GET /panic HTTP/1.1\r\nHost: a\r\nX-Request-Id: id-1\r\n\r\n\
                     GET /fine HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream.write_all(requests).await.unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    assert!(answers.starts_with("HTTP/1.1 500"), "{answers}");
    assert!(
        answers.contains(r#""code":"internal","request_id":"id-1""#),
        "{answers}"
    );
    assert!(!answers.contains("canary"), "{answers}");
    assert!(
        answers.ends_with("\r\n\r\nfine"),
        "the connection goes on: {answers}"
    );
}
