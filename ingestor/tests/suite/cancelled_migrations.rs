//! A statement that takes long, such as the build of an index, does not hold up the end of the process.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use ingestor::database::cancel_on_shutdown;
use shared::testing::{TestDatabase, wait_until};
use tokio_util::sync::CancellationToken;

use crate::support::PATIENCE;

#[test]
fn a_migration_that_runs_is_cancelled_at_shutdown() {
    let database = TestDatabase::create();
    let shutdown = CancellationToken::new();
    std::thread::scope(|scope| {
        let working = scope.spawn(|| {
            let mut connection = database.connect();
            cancel_on_shutdown(
                &database.settings(),
                &mut connection,
                &shutdown,
                |connection| Ok(connection.batch_execute("SELECT pg_sleep(30)")?),
            )
        });
        let sleeping = "SELECT count(*) AS value FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
        wait_until("it works", PATIENCE, || database.integer(sleeping) == 1);
        let stopped_at = Instant::now();
        shutdown.cancel();
        let error = working.join().unwrap().unwrap_err();
        assert!(stopped_at.elapsed() < Duration::from_secs(8));
        assert!(error.to_string().contains("cancel"), "{error:#}");
    });
}

#[test]
fn work_that_ends_by_itself_is_not_held_up() {
    let database = TestDatabase::create();
    let mut connection = database.connect();
    let shutdown = CancellationToken::new();
    let settings = database.settings();
    let outcome = cancel_on_shutdown(&settings, &mut connection, &shutdown, |_| Ok(7));
    assert_eq!(outcome.unwrap(), 7);
}
