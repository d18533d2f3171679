//! `api livez`, the health check of containers.

use std::process::{Command, Output};

use servers::ports::free_port;
use shared::testing::TestDatabase;
use tokio::task::block_in_place;

use crate::support::program::Program;

/// Asks as a health check does that knows the port. Every other setting is wrong.
fn livez(variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_api"));
    command
        .env_clear()
        .current_dir(std::env::temp_dir())
        .envs([("CACHE_CAPACITY", "none"), ("DB_PORT", "none")])
        .envs([("DB_SSLMODE", "none"), ("API_TOKEN_FILE", "/nonexistent")])
        .envs(variables.iter().copied())
        .arg("livez")
        .args(arguments);
    block_in_place(|| command.output().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_api_is_found_at_its_operators_port_whatever_else_is_set() {
    let database = TestDatabase::create();
    let port = free_port().unwrap().to_string();
    let program = Program::start(&database, &[("OPS_PORT", &port)]).await;
    for host in ["127.0.0.1", "localhost", "0.0.0.0", ""] {
        let found = livez(&[("OPS_HOST", host), ("OPS_PORT", &port)], &[]);
        assert!(found.status.success(), "{host}: {found:?}");
        assert!(found.stdout.is_empty() && found.stderr.is_empty());
    }
    assert!(livez(&[], &["--ops-port", &port]).status.success());
    drop(program);
    let gone = livez(&[("OPS_PORT", &port)], &[]);
    let said = String::from_utf8(gone.stderr).unwrap();
    assert_eq!(gone.status.code(), Some(1), "{said}");
    let expected = format!("api: http://127.0.0.1:{port}/livez does not answer");
    assert!(
        said.starts_with(&expected) && said.lines().count() == 1,
        "{said}"
    );
}
