//! The row of `service_history` is made anew: by `ingestor new-history`, and by the daemon on another server or timeline.

use std::time::{SystemTime, UNIX_EPOCH};

use diesel::connection::SimpleConnection;
use servers::postgres::{Options, PrivatePostgres};
use shared::config::DatabaseSettings;
use shared::db::rights::Role;
use shared::testing::{TestDatabase, settings_of, variables_of, wait_until};

use crate::support::{Answer, Daemon, PATIENCE, Scene, command};

const RENEWED: &str = "was given a new history: ";
const LAST_VERSION: &str = "SELECT last_value AS value FROM order_version_seq";
/// Makes the row look as if it were copied from another server.
const COME_FROM_ELSEWHERE: &str =
    "UPDATE service_history SET system_identifier = 17, timeline = 99, made_at = '2020-01-01Z'";

/// Runs the command. It is told of no Kafka.
fn new_history(database: &DatabaseSettings) -> Answer {
    let output = command(&["new-history"], &variables_of(database)).output();
    output.unwrap().into()
}

/// Returns the command's only line.
fn new_history_well(database: &TestDatabase) -> String {
    let answer = new_history(&database.settings_as(Role::Ingestor));
    assert!(answer.success, "{answer:?}");
    let line = answer.stdout.strip_suffix('\n').unwrap();
    assert!(!line.contains('\n'), "{line}");
    line.to_owned()
}

fn new_history_badly(database: &DatabaseSettings) -> String {
    let answer = new_history(database);
    assert!(!answer.success, "{answer:?}");
    answer.stderr
}

/// The row, without the time, as the command prints it.
fn row(database: &TestDatabase) -> String {
    let rows = database.texts(
        "SELECT format('%s (system %s, timeline %s)', id, system_identifier, timeline) AS value FROM service_history",
    );
    assert_eq!(rows.len(), 1);
    rows.into_iter().next().unwrap()
}

/// Asserts that the row names the server and was made just now.
fn assert_is_of_this_server(database: &TestDatabase) {
    let made_here = database.integer(
        "SELECT count(*) AS value FROM service_history, pg_control_system() AS server
          WHERE service_history.system_identifier = server.system_identifier
            AND to_hex(timeline) = ltrim(left(pg_walfile_name(pg_current_wal_lsn()), 8), '0')
            AND made_at > now() - interval '5 minutes'",
    );
    assert_eq!(made_here, 1, "{}", row(database));
}

fn microseconds() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since_1970.as_micros()).unwrap()
}

#[test]
fn the_command_makes_the_row_anew_and_raises_the_sequence_but_never_lowers_it() {
    let database = TestDatabase::create();
    database.execute(COME_FROM_ELSEWHERE);
    database.execute("SELECT setval('order_version_seq', 1234)");
    let (before, begun) = (row(&database), microseconds());

    let printed = new_history_well(&database);
    let (after, raised) = (row(&database), database.integer(LAST_VERSION));
    assert_eq!(
        printed,
        format!("new history: {before} -> {after}; order_version_seq 1234 -> {raised}")
    );
    assert_ne!(before[..36], after[..36], "the id");
    assert_is_of_this_server(&database);
    // The server's clock is this machine's.
    assert!((begun..=microseconds()).contains(&raised), "{raised}");

    let ahead = raised + 1_000_000_000_000;
    database.execute(&format!("SELECT setval('order_version_seq', {ahead})"));
    let printed = new_history_well(&database);
    let newest = row(&database);
    assert_eq!(
        printed,
        format!("new history: {after} -> {newest}; order_version_seq {ahead} -> {ahead}")
    );
    assert_ne!(after[..36], newest[..36], "the id");
    assert_eq!(database.integer(LAST_VERSION), ahead);
}

#[test]
fn an_empty_table_gets_its_row() {
    let database = TestDatabase::create();
    database.execute("DELETE FROM service_history");
    let printed = new_history_well(&database);
    let expected = format!(
        "new history: (none) -> {}; order_version_seq ",
        row(&database)
    );
    assert!(printed.starts_with(&expected), "{printed}");
    assert_is_of_this_server(&database);
}

#[test]
fn a_database_without_the_schema_is_refused() {
    let refusal = new_history_badly(&TestDatabase::create_empty().settings_as(Role::Ingestor));
    assert!(
        refusal.contains("migrations are pending") && refusal.contains("run `ingestor migrate`"),
        "{refusal}"
    );
}

#[test]
fn of_two_commands_at_once_the_second_replaces_what_the_first_has_made() {
    let database = TestDatabase::create();
    let before = row(&database);
    let mut holder = database.connect();
    holder
        .batch_execute("BEGIN; LOCK TABLE service_history IN SHARE ROW EXCLUSIVE MODE")
        .unwrap();
    let variables = variables_of(&database.settings_as(Role::Ingestor));
    let commands = [(), ()].map(|()| command(&["new-history"], &variables).spawn().unwrap());
    wait_until("both wait for the lock", PATIENCE, || {
        database.integer(
            "SELECT count(*) AS value FROM pg_stat_activity WHERE datname = current_database()
                AND application_name = 'orders-ingestor' AND wait_event_type = 'Lock'",
        ) == 2
    });
    holder.batch_execute("COMMIT").unwrap();
    let mut lines = commands.map(|child| {
        let answer = Answer::from(child.wait_with_output().unwrap());
        assert!(answer.success, "{answer:?}");
        answer.stdout
    });
    let is_first = |line: &str| line.starts_with(&format!("new history: {before} -> "));
    lines.sort_by_key(|line| !is_first(line));
    let [first, second] = &lines;
    assert!(is_first(first), "{lines:?}");
    // The second continues from the row and from the sequence that the first has left.
    let made = |line: &str| {
        let (made, raised) = line.split_once(" -> ").unwrap().1.split_once("; ").unwrap();
        let raised = raised.trim_end().rsplit_once(" -> ").unwrap().1;
        (made.to_owned(), raised.parse::<i64>().unwrap())
    };
    let ((between, raised_first), (last, raised_second)) = (made(first), made(second));
    let expected =
        format!("new history: {between} -> {last}; order_version_seq {raised_first} -> ");
    assert!(second.starts_with(&expected), "{lines:?}");
    assert!(raised_second >= raised_first, "{lines:?}");
    assert_eq!(
        (row(&database), database.integer(LAST_VERSION)),
        (last, raised_second)
    );
}

#[test]
fn of_the_daemons_that_start_on_a_copied_database_one_makes_the_row_anew_before_it_reads() {
    let scene = Scene::new(1);
    scene.database.execute(COME_FROM_ELSEWHERE);
    let (before, begun) = (row(&scene.database), microseconds());
    let daemons = [scene.start_daemon(), scene.start_daemon()];
    for daemon in &daemons {
        daemon.wait_until_logged("subscribed");
    }
    let logs = daemons.map(|daemon| {
        let log = daemon.log();
        assert!(daemon.stop().success());
        log
    });
    let reports: Vec<&str> = logs
        .iter()
        .flat_map(|log| log.lines().take_while(|line| !line.contains("subscribed")))
        .filter(|line| line.contains(RENEWED))
        .collect();
    let expected = format!("{RENEWED}{before} -> {}", row(&scene.database));
    assert!(
        reports.len() == 1 && reports[0].contains(&expected) && reports[0].contains("WARN"),
        "{logs:?}"
    );
    assert_is_of_this_server(&scene.database);
    assert!(scene.database.integer(LAST_VERSION) >= begun);
}

#[test]
fn a_daemon_that_lacks_the_right_says_so_and_does_it_once_it_has_the_right() {
    let mut scene = Scene::new(1);
    scene.database.execute(COME_FROM_ELSEWHERE);
    scene
        .database
        .execute("REVOKE UPDATE ON SEQUENCE order_version_seq FROM orders_ingestor");
    let before = row(&scene.database);
    let daemon = Daemon::start_with(&["run", "--no-migrate"], &scene.environment());
    daemon.wait_until_logged("permission denied for sequence order_version_seq");
    assert!(daemon.log().contains("run `ingestor new-history`"));
    scene.produce_orders(10);
    scene.wait_until_settled(10);
    assert_eq!(
        row(&scene.database),
        before,
        "the row and the sequence change together"
    );

    scene
        .database
        .execute("GRANT UPDATE ON SEQUENCE order_version_seq TO orders_ingestor");
    daemon.wait_until_logged(RENEWED);
    assert_is_of_this_server(&scene.database);
    assert!(daemon.stop().success());
}

#[test]
fn a_standby_is_refused_and_once_promoted_gets_a_new_row_from_the_running_daemon() {
    let mut primary = PrivatePostgres::start(&Options::default()).unwrap();
    let database = TestDatabase::create_on(settings_of(&primary));
    let mut standby = primary.start_standby().unwrap();
    let mut scene = Scene::with_database(1, database);
    let (before, begun) = (row(&scene.database), microseconds());
    let of_standby = DatabaseSettings {
        port: standby.port(),
        ..scene.database.settings_as(Role::Ingestor)
    };
    let refusal = new_history_badly(&of_standby);
    assert!(
        refusal.contains("it is a standby") && refusal.contains("point DB_HOST and DB_PORT at"),
        "{refusal}"
    );

    let daemon = scene.start_daemon();
    scene.produce_orders(10);
    scene.wait_until_settled(10);
    primary.kill_nine().unwrap();
    standby.restart_in_place_of(&primary).unwrap();
    standby.promote().unwrap();
    daemon.wait_until_logged(RENEWED);
    let after = row(&scene.database);
    assert!(
        before.ends_with("timeline 1)") && after.ends_with("timeline 2)"),
        "{before} -> {after}"
    );
    assert!(
        daemon
            .log()
            .contains(&format!("{RENEWED}{before} -> {after}")),
        "{before} -> {after}"
    );
    assert_is_of_this_server(&scene.database);
    assert!(scene.database.integer(LAST_VERSION) >= begun);

    scene.produce_orders(10);
    scene.wait_until_settled(20);
    assert_eq!(daemon.log().matches(RENEWED).count(), 1);
    assert!(daemon.stop().success());
}
