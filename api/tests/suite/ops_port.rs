//! The operators' port answers whatever clients do on the other one.

use std::process::Command;
use std::time::{Duration, Instant};

use api::Listeners;
use rustix::process::{Resource, getrlimit};
use shared::db::rights::Role;
use shared::testing::{TestDatabase, eventually};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::support::program::Program;
use crate::support::{Answer, PATIENCE, TableLock, ask_on, config, connect_from, send_bytes};

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_hold_every_connection_do_not_take_it_away_and_it_tells_of_the_stop() {
    let database = TestDatabase::create();
    let mut config = config(database.settings_as(Role::Api));
    config.server.max_connections = 1;
    let (clients, operators) = (listen().await, listen().await);
    let (port, ops_port) = (port_of(&clients), port_of(&operators));
    let listeners = Listeners {
        clients,
        operators: Some(operators),
    };
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(api::run(config, listeners, shutdown.clone()));
    eventually("the process is ready", PATIENCE, async || {
        get(ops_port, "/readyz").await.json()["detail"] == "ready"
    })
    .await;
    let lock = TableLock::take(&database, "orders");
    let held = tokio::spawn(async move { get(port, "/api/v1/orders").await.status });
    eventually("the only place is taken", PATIENCE, async || {
        let metrics = get(ops_port, "/metrics").await.body;
        metrics.contains("orders_api_http_connections 1\n")
            && metrics.contains("orders_api_http_in_flight_requests 2\n")
    })
    .await;
    let _waiting = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    for path in ["/livez", "/readyz", "/health", "/metrics"] {
        let started = Instant::now();
        assert_eq!(get(ops_port, path).await.status, 200, "{path}");
        let elapsed = started.elapsed();
        assert!(elapsed < Duration::from_secs(3), "{path}: {elapsed:?}");
    }
    shutdown.cancel();
    let ready = get(ops_port, "/readyz").await;
    let detail = &ready.json()["detail"];
    assert_eq!((ready.status, detail), (503, &"stopping".into()));
    lock.release();
    assert_eq!(held.await.unwrap(), 200);
    server.await.unwrap().unwrap();
    assert!(TcpStream::connect(("127.0.0.1", ops_port)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_serves_health_and_metrics_there_and_nothing_else() {
    let database = TestDatabase::create();
    let free = listen().await;
    let ops_port = port_of(&free);
    drop(free);
    let setting = [("OPS_PORT", &*ops_port.to_string())];
    let program = Program::start(&database, &setting).await;
    assert_eq!(get(ops_port, "/livez").await.status, 200);
    for path in ["/order/a", "/api/v1/orders", "/api/v1/cache/stats", "/"] {
        let refused = get(ops_port, path).await.problem();
        assert_eq!(refused, (404, "no_such_endpoint".to_owned()), "{path}");
    }
    for (request, status) in [
        ("PUT /livez", 405),
        ("CONNECT a:443", 400),
        ("GET a:443", 400),
        ("BREW /livez", 501),
        ("OPTIONS *", 204),
        ("OPTIONS /livez", 204),
    ] {
        let head = format!("{request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answer = send_bytes(ops_port, head.as_bytes()).await;
        assert_eq!(answer.status, status, "{request}");
    }
    // A second process on this machine must be told which setting to change.
    let command = Command::new(env!("CARGO_BIN_EXE_api"));
    let second = Program::start_unready(command, &database, &setting).await;
    second.wait_until_logged("(OPS_HOST, OPS_PORT)").await;
    assert!(!program.log().contains("panicked"));
}

/// Five addresses hold as many connections as the program accepts by default, and send nothing more on them.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_connections_shut_out_neither_operators_nor_clients() {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    // Where the machine allows fewer files, the program is given fewer connections.
    let count = files.saturating_sub(1000).min(10_000) / 5 * 5;
    let free = listen().await;
    let ops_port = port_of(&free);
    drop(free);
    let settings = [
        ("OPS_PORT", ops_port.to_string()),
        ("SERVER_MAX_CONNECTIONS", count.to_string()),
    ];
    let settings = settings
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let database = TestDatabase::create();
    let program = Program::start(&database, &settings).await;
    let port = program.port;
    let holders = (2..7).map(|address| {
        tokio::spawn(async move {
            let mut held = Vec::new();
            for _ in 0..count / 5 {
                let mut stream = connect_from([127, 0, 0, address], port).await;
                // Until it has asked for something, a connection has only five seconds.
                assert_eq!(ask_on(&mut stream, "/livez").await, 200);
                held.push(stream);
            }
            held
        })
    });
    let held = futures_util::future::join_all(holders).await;
    let metrics = get(ops_port, "/metrics").await.body;
    assert!(
        metrics.contains(&format!("orders_api_http_connections {count}\n")),
        "{metrics}"
    );
    for path in ["/livez", "/readyz", "/metrics"] {
        let started = Instant::now();
        assert_eq!(get(ops_port, path).await.status, 200, "{path}");
        let elapsed = started.elapsed();
        assert!(elapsed < Duration::from_secs(3), "{path}: {elapsed:?}");
    }
    for path in ["/livez", "/api/v1/orders"] {
        assert_eq!(program.get(path).await.status, 200, "{path}");
    }
    drop(held);
}

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

fn port_of(listener: &TcpListener) -> u16 {
    listener.local_addr().unwrap().port()
}

async fn get(port: u16, path: &str) -> Answer {
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    send_bytes(port, head.as_bytes()).await
}
