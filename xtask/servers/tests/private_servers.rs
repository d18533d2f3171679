//! The private servers survive what other crates' tests do to them.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;

use servers::kafka::PrivateKafka;
use servers::postgres::{Options, PrivatePostgres};
use servers::proc::is_running;
use servers::process::Launch;

#[test]
fn postgres_that_was_killed_comes_back_with_its_data() {
    let mut postgres = PrivatePostgres::start(&Options::default()).unwrap();
    let port = postgres.port();
    let folder = postgres.folder().to_owned();
    let first = postmaster(&postgres);
    postgres
        .psql("CREATE TABLE kept (value integer); INSERT INTO kept VALUES (42)")
        .unwrap();

    postgres.kill_nine().unwrap();
    assert!(!is_running(first));
    assert!(postgres.psql("SELECT 1").is_err());

    postgres.restart().unwrap();
    assert_eq!(postgres.port(), port);
    assert_ne!(postmaster(&postgres), first);
    assert_eq!(postgres.psql("SELECT value FROM kept").unwrap(), "42\n");

    let second = postmaster(&postgres);
    drop(postgres);
    assert!(!is_running(second));
    assert!(!folder.exists());
}

#[test]
fn postgres_has_a_superuser_roles_for_the_programs_and_a_password_that_counts() {
    let postgres = PrivatePostgres::start(&Options {
        password: "it's \"odd\"".to_owned(),
        settings: vec![("work_mem", "5MB")],
        ..Options::default()
    })
    .unwrap();
    assert_eq!(postgres.psql("SHOW work_mem").unwrap(), "5MB\n");
    assert_eq!(
        postgres
            .psql(
                "SELECT current_user, current_database(), rolsuper FROM pg_roles WHERE rolname = current_user"
            )
            .unwrap(),
        "myapp_user|myapp_db|t\n"
    );
    postgres.psql("CREATE DATABASE another").unwrap();
    for _ in 0..2 {
        postgres.create_service_roles().unwrap();
    }
    let as_api = Launch::new("psql", "psql")
        .args(["--no-psqlrc", "--host", postgres.host()])
        .args(["--port", &postgres.port().to_string()])
        .args(["--username", "orders_api", "--dbname", postgres.database()])
        .args(["--tuples-only", "--no-align"])
        .env("PGPASSWORD", postgres.password());
    let who = "SELECT current_user, has_schema_privilege('public', 'CREATE')";
    assert_eq!(as_api.output_of(who).unwrap(), "orders_api|f\n");
    let by_wrong_password = Launch::new("psql", "psql")
        .args([
            "--host",
            postgres.host(),
            "--port",
            &postgres.port().to_string(),
        ])
        .args([
            "--username",
            postgres.user(),
            "--dbname",
            postgres.database(),
        ])
        .args(["--command", "SELECT 1"])
        .env("PGPASSWORD", "wrong")
        .output_of("");
    let message = by_wrong_password.unwrap_err().to_string();
    assert!(
        message.contains("password authentication failed"),
        "{message}"
    );
}

#[test]
fn kafka_that_was_killed_comes_back_with_its_records() {
    let mut kafka = PrivateKafka::start(None).unwrap();
    kafka.create_topic("kept", 4).unwrap();
    kafka.create_topic("kept", 4).unwrap();
    let described = kafka
        .run_tool("org.apache.kafka.tools.TopicCommand", &["--list"], "")
        .unwrap();
    assert_eq!(described, "kept\n");
    kafka
        .run_tool(
            "org.apache.kafka.tools.ConsoleProducer",
            &["--topic", "kept"],
            "an order\n",
        )
        .unwrap();

    kafka.kill_nine();
    kafka.restart().unwrap();
    let consumed = kafka
        .run_tool(
            "org.apache.kafka.tools.consumer.ConsoleConsumer",
            &["--topic", "kept", "--from-beginning", "--max-messages", "1"],
            "",
        )
        .unwrap();
    assert_eq!(consumed, "an order\n");

    kafka.stop().unwrap();
    kafka.restart().unwrap();
    let folder = kafka.log().parent().unwrap().to_owned();
    drop(kafka);
    assert!(!folder.exists());
}

/// The process id of the running server.
fn postmaster(postgres: &PrivatePostgres) -> u32 {
    let lock_file = postgres.folder().join("data/postmaster.pid");
    let text = fs::read_to_string(lock_file).unwrap();
    text.lines().next().unwrap().parse().unwrap()
}
