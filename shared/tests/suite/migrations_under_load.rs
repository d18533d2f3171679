//! Migrations run while others read and write: nobody waits for long.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel::migration::MigrationSource;
use diesel::pg::Pg;
use diesel_migrations::{FileBasedMigrations, MigrationHarness};
use shared::db::{self, MIGRATIONS};
use shared::testing::{TestDatabase, wait_until};

/// How long a reader or writer may wait: for the two seconds that a migration waits for its lock, and for a loaded machine.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the sessions of the load do before they commit, so that their transactions overlap.
const STAY_OPEN: &str = "SELECT pg_sleep(0.2)";

/// When each session that waits for a table began to wait.
const WAITS: &str = "SELECT waitstart::text AS value FROM pg_locks JOIN pg_class ON pg_class.oid = relation
     WHERE NOT granted AND mode = 'AccessExclusiveLock' AND relnamespace = 'public'::regnamespace
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND waitstart IS NOT NULL";
/// How often a migration waits in vain for the session that somebody has left open.
const WAITS_IN_VAIN: usize = 3;

/// What the sessions do to a table; no row is needed to take the lock.
const READ: &str = "SELECT count(*) FROM ";
const WRITE: &str = "DELETE FROM ";

/// A session of the load. Each of its transactions touches all tables and then stays open.
struct Session<'a> {
    connection: PgConnection,
    statements: Vec<String>,
    transactions: &'a AtomicUsize,
}

impl<'a> Session<'a> {
    fn new(database: &TestDatabase, operation: &str, transactions: &'a AtomicUsize) -> Self {
        let tables = database.texts(
            "SELECT oid::regclass::text AS value FROM pg_class
              WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> '__diesel_schema_migrations'
              ORDER BY 1",
        );
        let condition = if operation == WRITE {
            " WHERE false"
        } else {
            ""
        };
        let statement = |table: &String| [operation, table, condition].concat();
        Self {
            connection: database.connect(),
            statements: tables.iter().map(statement).collect(),
            transactions,
        }
    }

    /// Runs a transaction that stays open for as long as `stay_open` takes. Returns how long its slowest statement took.
    fn run(&mut self, stay_open: impl FnOnce(&mut PgConnection)) -> Duration {
        let mut slowest = Duration::ZERO;
        self.connection.batch_execute("BEGIN").unwrap();
        for statement in &self.statements {
            let started = Instant::now();
            self.connection.batch_execute(statement).unwrap();
            slowest = slowest.max(started.elapsed());
        }
        self.transactions.fetch_add(1, Ordering::Relaxed);
        stay_open(&mut self.connection);
        self.connection.batch_execute("COMMIT").unwrap();
        slowest
    }
}

/// Runs the pending migrations under load, and returns how long somebody waited at most.
fn longest_wait(database: &TestDatabase, source: &(impl MigrationSource<Pg> + Sync)) -> Duration {
    let (is_over, transactions) = (AtomicBool::new(false), AtomicUsize::new(0));
    let session = |operation| Session::new(database, operation, &transactions);
    let repeat = |mut session: Session<'_>| {
        let mut slowest = Duration::ZERO;
        while !is_over.load(Ordering::Relaxed) {
            let stay_open =
                |connection: &mut PgConnection| connection.batch_execute(STAY_OPEN).unwrap();
            slowest = slowest.max(session.run(stay_open));
        }
        slowest
    };
    thread::scope(|scope| {
        let mut forgotten = session(READ);
        // Somebody has left a session open. It ends after the migrations have waited for it more than once.
        let until_waited_for = || {
            let mut waits = BTreeSet::new();
            wait_until("a migration waits for a table", PATIENCE, || {
                waits.extend(database.texts(WAITS));
                waits.len() > WAITS_IN_VAIN || is_over.load(Ordering::Relaxed)
            });
        };
        let mut sessions = vec![scope.spawn(move || forgotten.run(|_| until_waited_for()))];
        for operation in [READ, READ, WRITE, WRITE] {
            let session = session(operation);
            sessions.push(scope.spawn(move || repeat(session)));
        }
        wait_until("all sessions have begun", PATIENCE, || {
            transactions.load(Ordering::Relaxed) > 20
        });
        db::migrate_from(source, &mut database.connect(), || false).unwrap();
        is_over.store(true, Ordering::Relaxed);
        let waits = sessions.into_iter().map(|session| session.join().unwrap());
        waits.max().unwrap()
    })
}

#[test]
fn no_migration_after_the_first_stops_readers_or_writers() {
    let database = TestDatabase::create_empty();
    database.connect().run_next_migration(MIGRATIONS).unwrap();
    let waited = longest_wait(&database, &MIGRATIONS);
    assert!(waited < LONGEST_WAIT, "{waited:?}");
    let pending = db::pending_migrations(&mut database.connect()).unwrap();
    assert!(pending.is_empty(), "{pending:?}");
}

#[test]
fn a_migration_that_holds_a_strong_lock_for_long_would_be_noticed() {
    let database = TestDatabase::create();
    let folder = std::env::temp_dir().join(format!("migrations-{}", uuid::Uuid::new_v4()));
    let migration = folder.join("2099-01-01-000001_stop_everybody");
    fs::create_dir_all(&migration).unwrap();
    let up = "ALTER TABLE orders ADD COLUMN note text; SELECT pg_sleep(6);";
    fs::write(migration.join("up.sql"), up).unwrap();
    let source = FileBasedMigrations::from_path(&folder).unwrap();
    let waited = longest_wait(&database, &source);
    fs::remove_dir_all(&folder).unwrap();
    assert!(waited > LONGEST_WAIT, "{waited:?}");
}
