//! Migrations that build an index CONCURRENTLY: they wait for others, nobody waits for them, and what an interrupted build left
//! is made anew.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel_migrations::FileBasedMigrations;
use shared::config::DatabaseSettings;
use shared::db;
use shared::testing::{TcpProxy, TestDatabase, wait_until};

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The migration's session, while it waits for the transactions of others.
const BUILDING: &str = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'CREATE%INDEX CONCURRENTLY%' \
                        AND wait_event_type = 'Lock'";

/// A build waits for this transaction.
const OPEN_WRITE: &str = "BEGIN; INSERT INTO towns VALUES ('last')";

/// A folder with one migration, which is removed at the end.
struct Migrations(PathBuf);

impl Migrations {
    /// The index `towns_name_idx`, unique or not.
    fn of_index(kind: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("migrations-{}", uuid::Uuid::new_v4()));
        let migration = folder.join("2099-01-01-000001_create_towns_name_idx");
        fs::create_dir_all(&migration).unwrap();
        let up =
            format!("CREATE {kind} CONCURRENTLY IF NOT EXISTS towns_name_idx ON towns (name);");
        fs::write(migration.join("up.sql"), up).unwrap();
        fs::write(
            migration.join("metadata.toml"),
            "run_in_transaction = false\n",
        )
        .unwrap();
        Self(folder)
    }

    fn run(&self, settings: &DatabaseSettings) -> anyhow::Result<usize> {
        let mut connection = db::connect_blocking(settings, "orders-test")?;
        let source = FileBasedMigrations::from_path(&self.0)?;
        Ok(db::migrate_from(&source, &mut connection, || false)?.len())
    }
}

impl Drop for Migrations {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// A database with a table, and a transaction that has written to it.
fn towns() -> (TestDatabase, diesel::PgConnection) {
    let database = TestDatabase::create();
    database.execute("CREATE TABLE towns (name text); INSERT INTO towns SELECT 't' || n FROM generate_series(1, 1000) n");
    let mut writer = database.connect();
    writer.batch_execute(OPEN_WRITE).unwrap();
    (database, writer)
}

fn indexes(database: &TestDatabase) -> Vec<String> {
    database.texts(
        "SELECT indexrelid::regclass || CASE WHEN indisvalid THEN '' ELSE ' (invalid)' END AS value
           FROM pg_index WHERE indrelid = 'towns'::regclass ORDER BY 1",
    )
}

fn wait_for_build(database: &TestDatabase, for_ms: u32) {
    let condition = format!(
        "SELECT count(*) AS value {BUILDING} AND now() - query_start > interval '{for_ms} ms'"
    );
    wait_until("it waits", PATIENCE, || database.integer(&condition) == 1);
}

#[test]
fn an_index_that_an_interrupted_build_left_invalid_is_made_anew() {
    let (database, mut writer) = towns();
    let migrations = Migrations::of_index("INDEX");
    // An operator's index, which is not ours to drop.
    writer.batch_execute("COMMIT").unwrap();
    let by_hand = "CREATE UNIQUE INDEX CONCURRENTLY other_idx ON towns ((1))";
    database.connect().batch_execute(by_hand).unwrap_err();
    writer.batch_execute(OPEN_WRITE).unwrap();
    std::thread::scope(|scope| {
        let migrating = scope.spawn(|| migrations.run(&database.settings()));
        wait_for_build(&database, 0);
        database.texts(&format!(
            "SELECT pg_terminate_backend(pid)::text AS value {BUILDING}"
        ));
        migrating.join().unwrap().unwrap_err();
    });
    assert_eq!(
        indexes(&database),
        ["other_idx (invalid)", "towns_name_idx (invalid)"]
    );
    writer.batch_execute("COMMIT").unwrap();
    assert_eq!(migrations.run(&database.settings()).unwrap(), 1);
    assert_eq!(
        indexes(&database),
        ["other_idx (invalid)", "towns_name_idx"]
    );
    assert_eq!(migrations.run(&database.settings()).unwrap(), 0);
}

#[test]
fn a_unique_index_that_rows_broke_is_made_anew() {
    let (database, mut writer) = towns();
    writer
        .batch_execute("INSERT INTO towns VALUES ('last'); COMMIT")
        .unwrap();
    let migrations = Migrations::of_index("UNIQUE INDEX");
    for _ in 0..2 {
        let refusal = migrations.run(&database.settings()).unwrap_err();
        assert!(
            refusal.to_string().contains("towns_name_idx"),
            "{refusal:#}"
        );
        assert_eq!(indexes(&database), ["towns_name_idx (invalid)"]);
    }
    database.execute("DELETE FROM towns WHERE name = 'last'");
    assert_eq!(migrations.run(&database.settings()).unwrap(), 1);
    assert_eq!(indexes(&database), ["towns_name_idx"]);
}

#[test]
fn a_build_that_was_finished_but_not_recorded_is_kept() {
    let (database, mut writer) = towns();
    writer
        .batch_execute("COMMIT; CREATE INDEX towns_name_idx ON towns (name)")
        .unwrap();
    let oid = || database.integer("SELECT 'towns_name_idx'::regclass::oid::bigint AS value");
    let before = oid();
    assert_eq!(
        Migrations::of_index("INDEX")
            .run(&database.settings())
            .unwrap(),
        1
    );
    assert_eq!(oid(), before);
}

#[test]
fn no_time_out_ends_a_build_and_a_second_process_waits_for_it() {
    let (database, mut writer) = towns();
    let name = database.settings().name;
    for setting in ["statement_timeout", "lock_timeout"] {
        database.execute(&format!("ALTER DATABASE {name} SET {setting} = '2s'"));
    }
    let migrations = Migrations::of_index("INDEX");
    std::thread::scope(|scope| {
        let run = || migrations.run(&database.settings()).unwrap();
        let first = scope.spawn(run);
        wait_for_build(&database, 0);
        let second = scope.spawn(run);
        // Longer than any time-out of ours on locks that others wait for, and than the server takes to see a deadlock.
        wait_for_build(&database, 4_000);
        let polling = "SELECT count(*) AS value FROM pg_stat_activity
                        WHERE datname = current_database() AND query LIKE '%pg_try_advisory_lock%' AND pid <> pg_backend_pid()";
        wait_until("the second one polls", PATIENCE, || {
            database.integer(polling) == 1
        });
        writer.batch_execute("COMMIT").unwrap();
        assert_eq!(first.join().unwrap() + second.join().unwrap(), 1);
    });
    assert_eq!(indexes(&database), ["towns_name_idx"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_ends_the_build_of_a_process_that_is_gone() {
    let (database, mut writer) = towns();
    let settings = database.settings();
    let proxy = TcpProxy::start(&settings.host, settings.port).await;
    let migrations = Migrations::of_index("INDEX");
    std::thread::scope(|scope| {
        let through_proxy = DatabaseSettings {
            host: "127.0.0.1".to_owned(),
            port: proxy.port(),
            ..settings.clone()
        };
        let migrations = &migrations;
        let migrating = scope.spawn(move || migrations.run(&through_proxy));
        wait_for_build(&database, 0);
        proxy.cut();
        migrating.join().unwrap().unwrap_err();
        let building = format!("SELECT count(*) AS value {BUILDING}");
        wait_until("the build ends", PATIENCE, || {
            database.integer(&building) == 0
        });
    });
    assert_eq!(indexes(&database), ["towns_name_idx (invalid)"]);
    writer.batch_execute("COMMIT").unwrap();
    assert_eq!(migrations.run(&settings).unwrap(), 1);
    assert_eq!(indexes(&database), ["towns_name_idx"]);
}
