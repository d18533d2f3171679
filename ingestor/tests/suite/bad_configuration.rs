//! A wrong setting ends the process before it subscribes, with one line that names the setting. The process waits for
//! servers that may come back.

use std::time::Duration;

use shared::testing::wait_until;

use crate::support::{Scene, command};

/// Runs the program to its end and returns what it wrote to standard error.
fn failure_of(scene: &Scene, arguments: &[&str], changes: &[(&str, &str)]) -> String {
    let mut environment = scene.environment();
    environment.extend(
        changes
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    );
    let output = command(arguments, &environment).output().unwrap();
    assert!(!output.status.success(), "{changes:?} was accepted");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_wrong_setting_ends_the_process_with_one_line_that_names_it() {
    let scene = Scene::new(1);
    for (changes, expected) in [
        (&[("DB_PORT", "abc")][..], "DB_PORT"),
        (&[("DB_SSLMODE", "verify-full")], "DB_SSLROOTCERT"),
        (
            &[
                ("DB_SSLMODE", "verify-ca"),
                ("DB_SSLROOTCERT", "/no/such/file"),
            ],
            "DB_SSLROOTCERT: cannot read",
        ),
        (&[("DB_SSLMODE", "require")], "server does not support TLS"),
        (
            &[("DB_PASSWORD", "wrong")],
            "password authentication failed",
        ),
        (&[("DB_NAME", "no_such_database")], "no_such_database"),
        (
            &[("DB_PASSWORD_FILE", "/x")],
            "DB_PASSWORD and DB_PASSWORD_FILE are both set",
        ),
        (
            &[("KAFKA_CONFIG", "no.such.key=1")],
            "KAFKA_CONFIG: no.such.key",
        ),
        (
            &[("KAFKA_CONFIG", "enable.auto.commit=true")],
            "KAFKA_CONFIG: enable.auto.commit may not be set",
        ),
        (&[("KAFKA_TOPIC", " ")], "KAFKA_TOPIC"),
        (&[("BATCH_MAX_RECORDS", "0")], "BATCH_MAX_RECORDS"),
        (&[("INGESTOR_HOST", "not an address")], "INGESTOR_HOST"),
    ] {
        let complaint = failure_of(&scene, &["run"], changes);
        let last = complaint.trim_end().lines().last().unwrap().to_owned();
        assert!(
            last.starts_with("ingestor: ") && last.contains(expected),
            "{changes:?}: {complaint}"
        );
        assert!(!complaint.contains("subscribed"), "{complaint}");
    }
    assert!(failure_of(&scene, &[], &[]).contains("say what to do"));
    assert!(
        failure_of(
            &scene,
            &["--check-config"],
            &[("KAFKA_CONFIG", "no.such.key=1")]
        )
        .contains("no.such.key")
    );
    assert_eq!(
        scene
            .database
            .integer("SELECT count(*) AS value FROM consumer_offsets"),
        0
    );
}

#[test]
fn check_config_shows_the_settings_without_the_secrets() {
    let scene = Scene::new(1);
    let mut environment = scene.environment();
    environment.push(("KAFKA_CONFIG".to_owned(), "sasl.password=canary".to_owned()));
    environment.push(("DB_PASSWORD".to_owned(), "canary".to_owned()));
    let output = command(&["--check-config"], &environment).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(
        text.contains(&format!("KAFKA_TOPIC={}\n", scene.topic)) && !text.contains("canary"),
        "{text}"
    );
}

#[test]
fn no_migrate_refuses_to_start_if_migrations_are_pending() {
    let scene = Scene::with_database(1, shared::testing::TestDatabase::create_empty());
    assert!(failure_of(&scene, &["run", "--no-migrate"], &[]).contains("migrations are pending"));
    scene.run_well(&["migrate"]);
    assert_eq!(scene.stored(), 0);
}

#[test]
fn an_unreachable_database_or_broker_is_waited_for() {
    let scene = Scene::new(1);
    let mut daemon = scene.start_daemon_with(&[("DB_PORT", "1")]);
    daemon.wait_until_logged("waiting for the database");
    assert_eq!(daemon.get("/readyz").unwrap().0, 503);
    assert_eq!(daemon.get("/livez").unwrap().0, 200);
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.wait(Duration::from_secs(15)).success());

    let daemon = scene.start_daemon_with(&[("KAFKA_BROKERS", "localhost:1")]);
    daemon.wait_until_logged("trouble with Kafka");
    wait_until("few lines are logged", Duration::from_secs(1), || {
        daemon.log().lines().count() < 20
    });
}
