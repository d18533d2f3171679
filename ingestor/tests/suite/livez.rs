//! `ingestor livez`, the health check of containers.

use std::process::Output;

use shared::testing::wait_until;

use crate::support::{PATIENCE, Scene, command};

/// Asks as a health check does that knows the port. Every other setting is wrong.
fn livez(port: u16, host: &str) -> Output {
    let port = port.to_string();
    let environment = [
        ("INGESTOR_PORT", port.as_str()),
        ("INGESTOR_HOST", host),
        ("BATCH_MAX_RECORDS", "none"),
        ("DB_PORT", "none"),
        ("KAFKA_CONFIG_FILE", "/nonexistent"),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    command(&["livez"], &environment).output().unwrap()
}

#[test]
fn a_running_daemon_is_found_at_its_port_whatever_else_is_set() {
    let scene = Scene::new(1);
    let daemon = scene.start_daemon();
    let port = daemon.port();
    wait_until("the daemon is found", PATIENCE, || {
        livez(port, "0.0.0.0").status.success()
    });
    let found = livez(port, "");
    assert!(found.status.success() && found.stderr.is_empty());
    daemon.kill_nine();
    let gone = livez(port, "127.0.0.1");
    let said = String::from_utf8(gone.stderr).unwrap();
    assert_eq!(gone.status.code(), Some(1), "{said}");
    let expected = format!("ingestor: http://127.0.0.1:{port}/livez does not answer");
    assert!(
        said.starts_with(&expected) && said.lines().count() == 1,
        "{said}"
    );
}
