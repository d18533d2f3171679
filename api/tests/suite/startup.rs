//! The program itself: what it refuses, what it prints and how it exits.

use std::process::{Command, Output};

use api::config::tokens::Tokens;
use shared::config::DatabaseSettings;
use shared::db::rights::Role;
use shared::testing::{TestDatabase, database_settings_from_environment};

fn program(database: &DatabaseSettings, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_api"));
    command
        .env_clear()
        .current_dir(std::env::temp_dir())
        .env("DB_HOST", &database.host)
        .env("DB_PORT", database.port.to_string())
        .env("DB_USER", &database.user)
        .env("DB_PASSWORD", database.password.expose())
        .env("DB_NAME", &database.name)
        .env("SERVER_PORT", "0")
        .env("OPS_PORT", "0")
        .envs(variables.iter().copied());
    command
}

/// Asserts that the program exits with a failure and prints one line that names the fault.
fn assert_refused(output: &Output, named: &str) {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let said: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("api: "))
        .collect();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        said.len() == 1 && said[0].contains(named),
        "{named}: {text}"
    );
    assert!(!text.contains("listening"), "{text}");
}

#[test]
fn bad_configuration_ends_the_process_before_it_binds() {
    let database = database_settings_from_environment();
    for (variable, value, named) in [
        ("SERVER_PORT", "abc", "SERVER_PORT"),
        ("DB_SSLMODE", "maybe", "DB_SSLMODE"),
        ("DB_SSLMODE", "verify-full", "DB_SSLROOTCERT"),
        ("DB_SSLROOTCERT", "/nonexistent.pem", "DB_SSLROOTCERT"),
        ("CACHE_CAPACITY", "0", "CACHE_CAPACITY"),
        ("API_TOKEN_FILE", "/nonexistent", "API_TOKEN_FILE"),
        ("API_TOKEN", "fifteen-letters", "API_TOKEN"),
        ("API_TOKEN", "has a blank inside", "API_TOKEN"),
        ("API_TOKENS_FILE", "/nonexistent", "API_TOKENS_FILE"),
        ("API_TOKENS_FILE", "/dev/null", "it is no regular file"),
        ("ALLOWED_HOSTS", "https://shop.example", "ALLOWED_HOSTS"),
        ("ALLOWED_HOSTS", "shop.example:80", "ALLOWED_HOSTS"),
        ("TRUSTED_PROXIES", "10.0.0.0/33", "10.0.0.0/33"),
        ("RUST_LOG", "a=b=c", "RUST_LOG"),
        ("SERVER_HOST", "256.0.0.1", "SERVER_HOST"),
        ("OPS_PORT", "65536", "OPS_PORT"),
        ("OPS_HOST", "256.0.0.1", "OPS_HOST"),
        ("DB_NAME", "no_such_database", "no_such_database"),
        ("DB_USER", "no_such_role", "no_such_role"),
    ] {
        let variables = match variable {
            "DB_SSLROOTCERT" => vec![(variable, value), ("DB_SSLMODE", "require")],
            _ => vec![(variable, value)],
        };
        assert_refused(&program(&database, &variables).output().unwrap(), named);
    }
}

#[test]
fn a_new_token_comes_with_the_line_that_makes_it_valid() {
    let database = database_settings_from_environment();
    let print = || {
        let mut command = program(&database, &[]);
        let output = command
            .args(["token", "new", "shop", "write,read"])
            .output()
            .unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let printed = print();
    let (token, line) = printed.split_once('\n').unwrap();
    let tokens: Tokens = line.parse().unwrap();
    let found = tokens.find(token).unwrap();
    assert_eq!(
        (found.name.to_string(), found.scopes.to_string()),
        ("shop".into(), "read,write".into())
    );
    assert_ne!(print(), printed);
    for wrong in [["sh op", "read"], ["shop", "admin"], ["shop", ""]] {
        let output = program(&database, &[])
            .args(["token", "new"])
            .args(wrong)
            .output()
            .unwrap();
        assert_refused(&output, "invalid value");
    }
}

#[test]
fn check_config_prints_the_settings_without_their_secrets() {
    let database = database_settings_from_environment();
    let unreachable = DatabaseSettings {
        port: 1,
        ..database
    };
    let variables = [
        ("API_TOKEN", "canary-canary-canary"),
        ("DB_PASSWORD", "canary"),
        ("CACHE_LEASE_MS", "1234"),
    ];
    let output = program(&unreachable, &variables)
        .arg("--check-config")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "it looks at the configuration only"
    );
    assert!(
        text.contains("CACHE_LEASE_MS=1234\n") && text.contains("DB_PORT=1\n"),
        "{text}"
    );
    assert!(!text.contains("canary"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn database_that_refuses_after_all_ends_a_process_that_waited_for_it() {
    let database = TestDatabase::create();
    let mut settings = database.settings_as(Role::Api);
    settings.name = "no_such_database".to_owned();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let outcome = api::run(crate::support::config(settings), listener, shutdown).await;
    assert!(
        outcome
            .unwrap_err()
            .to_string()
            .contains("no_such_database")
    );
}
