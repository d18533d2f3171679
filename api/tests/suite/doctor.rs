//! `api doctor`: each broken precondition is found, and nothing else is.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use servers::ports::free_port;
use servers::postgres::{PoolMode, PrivatePooler};
use shared::config::{DatabaseSettings, Secret};
use shared::db;
use shared::db::rights::Role;
use shared::testing::{TestDatabase, run_roles_file, variables_of};
use tokio::task::block_in_place;

use crate::support::program::Program;

/// Prepares `api doctor` for a database, with these settings.
fn doctor(program: &str, database: &DatabaseSettings, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args([
            "-c",
            &format!("{program} \"$0\" \"$@\""),
            env!("CARGO_BIN_EXE_api"),
            "doctor",
            "--json",
        ])
        .env_clear()
        .current_dir(std::env::temp_dir())
        .envs(variables_of(database))
        // The limits of the machine that runs the tests must not matter.
        .envs([
            ("SERVER_MAX_CONNECTIONS", "50"),
            ("CACHE_CAPACITY_MB", "16"),
        ])
        .envs([("SERVER_PORT", "0"), ("OPS_PORT", "0")])
        .envs(variables.iter().copied());
    command
}

/// What was found: each check that found something, and how bad it is.
fn found(output: &Output) -> Vec<(String, String)> {
    let document: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let checks = document["checks"].as_array().unwrap().iter();
    checks
        .filter(|checked| checked["result"] == "found")
        .map(|checked| {
            for part in ["what", "why", "remedy"] {
                assert!(!text(&checked[part]).is_empty(), "{checked}");
            }
            (text(&checked["check"]), text(&checked["severity"]))
        })
        .collect()
}

/// Asserts that this is found and nothing else, and that the exit status says whether something must be mended.
fn assert_found(command: &mut Command, expected: &[(&str, &str)]) {
    let output = command.output().unwrap();
    let found = found(&output);
    let found: Vec<(&str, &str)> = found
        .iter()
        .map(|(check, severity)| (&**check, &**severity))
        .collect();
    assert_eq!(
        found,
        expected,
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let must_be_mended = found.iter().any(|(_, severity)| *severity == "error");
    assert_eq!(output.status.success(), !must_be_mended, "{output:?}");
}

fn assert_alone(
    database: &DatabaseSettings,
    variables: &[(&str, &str)],
    check: &str,
    severity: &str,
) {
    assert_found(
        &mut doctor("exec", database, variables),
        &[(check, severity)],
    );
}

fn role_of(database: &TestDatabase) -> DatabaseSettings {
    database.settings_as(Role::Api)
}

#[test]
fn a_healthy_database_has_no_finding() {
    let database = TestDatabase::create();
    assert_found(&mut doctor("exec", &role_of(&database), &[]), &[]);
}

#[test]
fn faults_of_the_database_are_found_alone() {
    for (damage, check, severity) in [
        (
            "ALTER DATABASE $ SET default_transaction_read_only = on",
            "postgres.primary",
            "error",
        ),
        (
            "ALTER DATABASE $ CONNECTION LIMIT 5",
            "postgres.connections",
            "error",
        ),
        (
            "ALTER DATABASE $ SET default_transaction_isolation = 'serializable'",
            "postgres.isolation",
            "error",
        ),
        (
            "ALTER DATABASE $ SET session_replication_role = 'replica'",
            "postgres.replication_role",
            "error",
        ),
        (
            "ALTER DATABASE $ SET synchronous_commit = off",
            "postgres.synchronous_commit",
            "warning",
        ),
        (
            "ALTER DATABASE $ SET wal_compression = on",
            "postgres.wal_compression",
            "advice",
        ),
        (
            "ALTER TABLE orders DISABLE TRIGGER orders_foreign_update",
            "postgres.triggers",
            "warning",
        ),
        (
            "REVOKE DELETE ON orders FROM orders_api",
            "postgres.rights",
            "error",
        ),
        (
            "REVOKE USAGE ON SEQUENCE order_version_seq FROM orders_api",
            "postgres.rights",
            "error",
        ),
        (
            "DELETE FROM __diesel_schema_migrations WHERE version = '20261130000009'",
            "postgres.schema",
            "error",
        ),
    ] {
        let database = TestDatabase::create();
        let name = database.settings().name;
        database.execute(&damage.replace('$', &name));
        assert_alone(&role_of(&database), &[], check, severity);
    }
}

#[test]
fn a_database_that_cannot_be_used_is_found_alone() {
    let database = TestDatabase::create();
    let right = role_of(&database);
    let wrong_password = DatabaseSettings {
        password: Secret::new("wrong"),
        ..right.clone()
    };
    let nowhere = DatabaseSettings {
        port: 1,
        ..right.clone()
    };
    let missing = DatabaseSettings {
        name: "no_such_database".to_owned(),
        ..right
    };
    for wrong in [wrong_password, nowhere, missing] {
        assert_alone(&wrong, &[], "postgres.reachable", "error");
    }
    assert_alone(&database.settings(), &[], "postgres.superuser", "advice");
    let empty = TestDatabase::create_empty();
    assert_alone(&role_of(&empty), &[], "postgres.schema", "error");
}

#[test]
fn a_database_in_another_encoding_is_found_alone() {
    let database = TestDatabase::create_empty();
    let name = database.settings().name;
    let latin = format!("{name}_latin");
    database.execute(&format!(
        "CREATE DATABASE {latin} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    ));
    let settings = |of: DatabaseSettings| DatabaseSettings {
        name: latin.clone(),
        ..of
    };
    run_roles_file(&settings(database.settings()), &[]);
    let mut migrator = db::connect_blocking(
        &settings(database.settings_as(Role::Migrator)),
        "orders-test",
    )
    .unwrap();
    db::migrate(&mut migrator, || false).unwrap();
    drop(migrator);
    let output = doctor("exec", &settings(role_of(&database)), &[])
        .output()
        .unwrap();
    database.execute(&format!("DROP DATABASE {latin} WITH (FORCE)"));
    assert_eq!(
        found(&output),
        [("postgres.encoding".to_owned(), "error".to_owned())]
    );
}

#[test]
fn a_pooler_that_changes_sessions_is_found_alone() {
    for (mode, expected) in [
        (PoolMode::Session, &[][..]),
        (PoolMode::Transaction, &[("postgres.listen", "error")]),
        (
            PoolMode::ForgetfulTransaction,
            &[("postgres.session", "error")],
        ),
    ] {
        let database = TestDatabase::create();
        let server = role_of(&database);
        let login = (server.user.as_str(), server.password.expose());
        let pooler = PrivatePooler::start((&server.host, server.port), login, mode).unwrap();
        let through_pooler = DatabaseSettings {
            port: pooler.port(),
            ..server
        };
        assert_found(&mut doctor("exec", &through_pooler, &[]), expected);
    }
}

/// A file that is removed when the test ends.
struct TokensFile(PathBuf);

impl TokensFile {
    fn with(text: &str, mode: u32) -> Self {
        let path = std::env::temp_dir().join(format!("tokens-{}", uuid::Uuid::new_v4()));
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        Self(path)
    }
}

impl Drop for TokensFile {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok();
    }
}

#[test]
fn faults_of_machine_and_settings_are_found_alone() {
    let database = TestDatabase::create();
    let role = role_of(&database);
    let line = format!("shop read {}", "0".repeat(64));
    let (open, bad) = (
        TokensFile::with(&line, 0o666),
        TokensFile::with("nonsense", 0o600),
    );
    let (open, bad) = (open.0.to_str().unwrap(), bad.0.to_str().unwrap());
    for (variable, value, check, severity) in [
        ("CACHE_CAPACITY_MB", "1048576", "machine.memory", "warning"),
        ("API_TOKENS_FILE", open, "api.tokens_file_mode", "warning"),
        ("API_TOKENS_FILE", bad, "api.tokens", "error"),
        ("API_TOKENS_FILE", "/no/such/file", "api.tokens", "error"),
        ("API_TOKEN", "too short", "api.tokens", "error"),
        ("SERVER_HOST", "0.0.0.0", "api.access", "warning"),
        ("SERVER_HOST", "192.0.2.1", "machine.server_port", "error"),
    ] {
        // Whoever has no tokens on a foreign address is told so as well.
        let open_to_all = (
            "ALLOW_UNAUTHENTICATED_READS",
            if check == "api.access" {
                "false"
            } else {
                "true"
            },
        );
        assert_alone(&role, &[(variable, value), open_to_all], check, severity);
    }
    let few_files = "ulimit -n 150 && exec";
    assert_found(
        &mut doctor(few_files, &role, &[]),
        &[("machine.open_files", "warning")],
    );
}

#[test]
fn a_port_of_another_program_is_found_alone() {
    let database = TestDatabase::create();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port().to_string();
    for (setting, check) in [
        ("SERVER_PORT", "machine.server_port"),
        ("OPS_PORT", "machine.ops_port"),
    ] {
        assert_alone(&role_of(&database), &[(setting, &port)], check, "error");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ports_of_the_running_api_are_its_own() {
    let database = TestDatabase::create();
    let ops_port = free_port().unwrap().to_string();
    let program = Program::start(&database, &[("OPS_PORT", &ops_port)]).await;
    let port = program.port.to_string();
    let settings = [("SERVER_PORT", port.as_str()), ("OPS_PORT", &ops_port)];
    let mut command = doctor("exec", &role_of(&database), &settings);
    block_in_place(|| assert_found(&mut command, &[]));
}

#[test]
fn people_get_a_line_for_each_finding_with_its_remedy() {
    let database = TestDatabase::create();
    database.execute("REVOKE DELETE ON orders FROM orders_api");
    let mut command = Command::new(env!("CARGO_BIN_EXE_api"));
    command
        .env_clear()
        .current_dir(std::env::temp_dir())
        .envs(variables_of(&role_of(&database)))
        .envs([
            ("SERVER_PORT", "0"),
            ("OPS_PORT", "0"),
            ("SERVER_MAX_CONNECTIONS", "50"),
        ])
        .envs([("CACHE_CAPACITY_MB", "16")]);
    let output = command.arg("doctor").output().unwrap();
    let (said, complaint) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines.len() == 2
            && lines[0].starts_with("error   postgres.rights: the role lacks DELETE on orders: ")
            && lines[0].contains("run `ingestor migrate`")
            && lines[1].ends_with(" checks: 1 errors, 0 warnings, 0 pieces of advice"),
        "{said}"
    );
    assert_eq!(complaint, "api: doctor: 1 thing must be mended\n");
    assert_eq!(output.status.code(), Some(1));
}
