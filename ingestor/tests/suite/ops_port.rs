//! Slow, idle and greedy clients of the operators' port. They must cost neither `/livez` nor the ingestion anything.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use shared::testing::wait_until;

use crate::support::{Daemon, PATIENCE, Scene};

/// What a client that watches the process may wait for an answer, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(2);

#[test]
fn a_header_that_never_ends_is_hung_up_on() {
    let scene = Scene::new(1);
    let daemon = scene.start_daemon();
    wait_until_alive(&daemon);
    let started = Instant::now();
    let mut client = connect(&daemon);
    client
        .write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        .unwrap();
    assert_eq!(rest(&mut client), "");
    let elapsed = started.elapsed();
    assert!(
        elapsed > Duration::from_secs(4) && elapsed < Duration::from_secs(8),
        "{elapsed:?}"
    );
}

#[test]
fn idle_clients_take_neither_livez_nor_the_files_of_kafka_and_postgresql() {
    let mut scene = Scene::new(6);
    let daemon = Daemon::start_with_file_limit(128, &scene.environment());
    scene.produce_orders(10);
    scene.wait_until_settled(10);
    let idle: Vec<TcpStream> = (0..200).map(|_| connect(&daemon)).collect();
    for _ in 0..5 {
        let started = Instant::now();
        assert_eq!(daemon.get("/livez").map(|(status, _)| status), Some(200));
        assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    }
    let files = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
        .unwrap()
        .count();
    assert!(files < 96, "{files} of 128 file descriptors are used");
    // Whoever has lost a connection needs files for new ones.
    scene.database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND application_name = 'orders-ingestor'",
    );
    scene.produce_orders(10);
    scene.wait_until_settled(20);
    assert_eq!(daemon.get("/livez").map(|(status, _)| status), Some(200));
    assert!(
        !daemon.log().contains("Too many open files"),
        "{}",
        daemon.log()
    );
    drop(idle);
}

#[test]
fn a_client_that_does_not_read_the_metrics_is_hung_up_on() {
    let scene = Scene::new(1);
    let daemon = scene.start_daemon();
    wait_until_alive(&daemon);
    let mut client = connect(&daemon);
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    // First the answers pile up until the server can send no more, then the requests do: every write to the server waits.
    let requests = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    let error = std::iter::repeat_with(|| client.write_all(&requests))
        .find_map(Result::err)
        .unwrap();
    assert!(
        matches!(
            error.kind(),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
        ),
        "still connected: {error}"
    );
    assert_eq!(daemon.get("/livez").unwrap().0, 200);
}

#[test]
fn open_connections_do_not_delay_the_end() {
    let mut scene = Scene::new(1);
    let daemon = scene.start_daemon();
    scene.produce_orders(1);
    scene.wait_until_settled(1);
    let mut idle = connect(&daemon);
    idle.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let mut half_sent = connect(&daemon);
    half_sent.write_all(b"GET /livez HTTP/1.1\r\n").unwrap();
    let started = Instant::now();
    assert!(daemon.stop().success());
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    assert!(
        rest(&mut idle).starts_with("HTTP/1.1 200"),
        "answers are not lost"
    );
    assert_eq!(rest(&mut half_sent), "");
}

#[test]
fn only_get_and_head_of_four_paths_are_answered() {
    let scene = Scene::new(1);
    let daemon = scene.start_daemon();
    wait_until("the daemon is healthy", PATIENCE, || {
        daemon
            .get("/health")
            .is_some_and(|(status, _)| status == 200)
    });
    for (request, status) in [
        ("HEAD /livez HTTP/1.1", "200"),
        ("GET /livez?from=probe HTTP/1.0", "200"),
        ("GET /health HTTP/1.1", "200"),
        ("GET /metrics HTTP/1.1", "200"),
        ("GET / HTTP/1.1", "404"),
        ("GET /livez/ HTTP/1.1", "404"),
        ("POST /livez HTTP/1.1", "405"),
        ("OPTIONS * HTTP/1.1", "404"),
        ("CONNECT a:443 HTTP/1.1", "404"),
        ("nonsense", "400"),
    ] {
        let mut client = connect(&daemon);
        let head = format!("{request}\r\nHost: a\r\nConnection: close\r\n\r\n");
        client.write_all(head.as_bytes()).unwrap();
        let answer = rest(&mut client);
        assert_eq!(
            answer.split(' ').nth(1),
            Some(status),
            "{request}: {answer}"
        );
    }
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

fn wait_until_alive(daemon: &Daemon) {
    wait_until("the port answers", PATIENCE, || {
        daemon.get("/livez").is_some()
    });
}

fn connect(daemon: &Daemon) -> TcpStream {
    let client = TcpStream::connect(("127.0.0.1", daemon.port())).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

/// Reads until the server hangs up.
fn rest(client: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match client.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "still connected"),
    }
    String::from_utf8(bytes).unwrap()
}
