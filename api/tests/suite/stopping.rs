//! What SIGTERM does to requests in progress.

use std::time::{Duration, Instant};

use shared::testing::{TestDatabase, eventually};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{PATIENCE, TableLock, TestApi, model};

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
        let stopped_at = Instant::now();
        let ready = api.get("/readyz").await;
        assert_eq!(
            (ready.status, &ready.json()["detail"]),
            (503, &"stopping".into())
        );
        eventually("new connections are refused", PATIENCE, async || {
            TcpStream::connect(("127.0.0.1", api.port)).await.is_err()
        })
        .await;
        let taken = stopped_at.elapsed();
        assert!(
            taken >= Duration::from_millis(400),
            "a balancer has {taken:?}"
        );
        lock.release();
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
