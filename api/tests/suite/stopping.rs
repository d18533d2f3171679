//! What SIGTERM does to requests in progress, and to those that still arrive.

use std::time::{Duration, Instant};

use shared::testing::{TestDatabase, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Answer, PATIENCE, TableLock, TestApi, ask_on, model};

#[tokio::test(flavor = "multi_thread")]
async fn requests_under_way_end_before_the_process_does() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let lock = TableLock::take(&api.database, "orders");
    let under_way = api.get("/order/b563feb7b2b84b6test");
    let stopping = async {
        eventually("the load runs", PATIENCE, async || {
            api.stats().await["loads"]["started"] == 1
        })
        .await;
        api.shutdown.cancel();
        eventually("new connections are refused", PATIENCE, async || {
            TcpStream::connect(("127.0.0.1", api.port)).await.is_err()
        })
        .await;
        lock.release();
    };
    let (answer, ()) = tokio::join!(under_way, stopping);
    assert_eq!(answer.status, 200);
    let started = Instant::now();
    api.stop().await;
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_drains_the_process_answers_and_asks_clients_to_go_elsewhere() {
    let drain = Duration::from_secs(2);
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.shutdown_drain = drain;
    })
    .await;
    api.store(&model()).await;
    let path = "/order/b563feb7b2b84b6test";
    let mut kept = TcpStream::connect(("127.0.0.1", api.port)).await.unwrap();
    assert_eq!(ask_on(&mut kept, path).await, 200);
    let signalled_at = Instant::now();
    api.shutdown.cancel();
    eventually("/readyz fails", PATIENCE, async || {
        api.get("/readyz").await.json()["detail"] == "stopping"
    })
    .await;
    assert_eq!(api.get("/readyz").await.status, 503);
    // A client that keeps its connection gets its answer, and learns that it is the last one.
    kept.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = Vec::new();
    kept.read_to_end(&mut answer).await.unwrap();
    let answer = Answer::parse(&answer);
    assert_eq!(
        (answer.status, answer.header("connection")),
        (200, Some("close"))
    );
    assert_eq!(api.get(path).await.status, 200, "on a new connection");
    assert!(
        signalled_at.elapsed() < drain,
        "the machine is too slow for this test"
    );
    eventually("new connections are refused", PATIENCE, async || {
        TcpStream::connect(("127.0.0.1", api.port)).await.is_err()
    })
    .await;
    assert!(signalled_at.elapsed() >= drain);
    api.stop().await;
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
        // Two connections: this one and the one that asks.
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
