//! The migrations, and how they are run.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::migration::{MigrationName, MigrationSource};
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::throttle::Throttle;

/// All migrations, compiled into the program.
pub const MIGRATIONS: EmbeddedMigrations = embed_migrations!("../migrations");

/// The advisory lock that lets one process migrate at a time. No other lock of ours has this number.
const MIGRATION_LOCK: i64 = 0x6f72_6465_7273;

/// How often a process asks for the lock while another one migrates. It must not wait inside a statement: that would hold a
/// snapshot, for which CREATE INDEX CONCURRENTLY of the other process would wait in turn.
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long a statement of a migration waits for a lock on a table. All others who use the table queue up behind it meanwhile.
const TABLE_LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// During a migration the trigger emits the events, because a migration that changes orders emits none.
const EMITS_NOTHING: &str = "SET orders.emits = 'off'";
const EMITS_AGAIN: &str = "SET orders.emits = 'on'";

/// An SQL expression: does the database hold the schema from before the first release? Items had a table then. A view has
/// its name now.
const IS_FORMER_SCHEMA: &str =
    "EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('order_items') AND relkind = 'r')";

/// The message about such a database.
const FORMER_SCHEMA: &str = "the database holds the schema from before the first release, which cannot be migrated: create an \
                                 empty database, name it in DB_NAME, and let the ingestor read the topic again";

/// Brings the schema up to date and returns the names of the migrations that ran. One process at a time does this.
///
/// A migration that waits too long for a table is rolled back and tried again, for as long as it takes.
///
/// # Errors
/// Returns an error if the database refuses a statement, if it holds the schema from before the first release, or if
/// `is_stopping` became true during a wait. Each migration is a transaction of its own, so the migrations before the failed one
/// stay.
pub fn migrate(
    connection: &mut PgConnection,
    is_stopping: impl Fn() -> bool,
) -> anyhow::Result<Vec<String>> {
    lock_migrations(connection, &is_stopping)?;
    let applied = refuse_former_schema(connection).and_then(|()| {
        connection.batch_execute(EMITS_NOTHING)?;
        let applied = run_pending(connection, &is_stopping);
        connection.batch_execute(EMITS_AGAIN)?;
        applied
    });
    diesel::sql_query("SELECT pg_advisory_unlock($1)")
        .bind::<BigInt, _>(MIGRATION_LOCK)
        .execute(connection)
        .context("cannot unlock the schema after migration")?;
    applied
}

fn lock_migrations(
    connection: &mut PgConnection,
    is_stopping: &impl Fn() -> bool,
) -> anyhow::Result<()> {
    let mut reports = Throttle::for_reports();
    loop {
        let query = sql::<Bool>("pg_try_advisory_lock(")
            .bind::<BigInt, _>(MIGRATION_LOCK)
            .sql(")");
        let is_locked: bool = diesel::select(query)
            .get_result(connection)
            .context("cannot lock the schema for migration")?;
        if is_locked {
            return Ok(());
        }
        if reports.is_due() {
            info!("waiting for another process that migrates the database");
        }
        ensure!(
            !is_stopping(),
            "stopped while another process migrated the database"
        );
        sleep(LOCK_POLL_INTERVAL);
    }
}

fn run_pending(
    connection: &mut PgConnection,
    is_stopping: &impl Fn() -> bool,
) -> anyhow::Result<Vec<String>> {
    let timeout_ms = TABLE_LOCK_TIMEOUT.as_millis();
    let mut applied: Vec<String> = Vec::new();
    let mut backoff = Backoff::for_database();
    connection.batch_execute(&["SET lock_timeout = ", &timeout_ms.to_string()].concat())?;
    loop {
        let started = Instant::now();
        match run_next(connection) {
            Ok(Some(version)) => applied.push(version),
            Ok(None) => return Ok(applied),
            // diesel hides the SQLSTATE of a lock that was not granted in time.
            Err(error) if started.elapsed() >= TABLE_LOCK_TIMEOUT && !is_stopping() => {
                warn!("a migration waited too long for a table, and is tried again: {error}");
                sleep(backoff.next_delay());
            }
            Err(error) => bail!("cannot migrate the schema: {error}"),
        }
    }
}

/// Runs the first pending migration, and returns its version.
fn run_next(connection: &mut PgConnection) -> diesel::migration::Result<Option<String>> {
    let pending = connection.pending_migrations(MIGRATIONS)?;
    let Some(next) = pending.first() else {
        return Ok(None);
    };
    let version = connection.run_migration(next)?;
    Ok(Some(version.to_string()))
}

/// Returns the names of the migrations that have not run yet. Needs no right but to read.
///
/// # Errors
/// Returns an error if the database cannot be asked, or if it holds the schema from before the first release.
pub fn pending_migrations(connection: &mut PgConnection) -> anyhow::Result<Vec<String>> {
    refuse_former_schema(connection)?;
    let applied = applied_versions(connection).context("cannot read the list of migrations")?;
    let all = MigrationSource::<Pg>::migrations(&MIGRATIONS);
    let all = all.map_err(|error| anyhow::anyhow!("cannot read our own migrations: {error}"))?;
    let names = all.iter().map(|migration| migration.name());
    let is_pending = |name: &&dyn MigrationName| !applied.contains(&name.version().to_string());
    Ok(names.filter(is_pending).map(ToString::to_string).collect())
}

/// Reads diesel's own table. diesel would create it first, which a role that may only read cannot.
fn applied_versions(connection: &mut PgConnection) -> QueryResult<Vec<String>> {
    diesel::table! {
        __diesel_schema_migrations (version) {
            version -> VarChar,
        }
    }
    let exists = sql::<Bool>("to_regclass('__diesel_schema_migrations') IS NOT NULL");
    if !diesel::select(exists).get_result(connection)? {
        return Ok(Vec::new());
    }
    __diesel_schema_migrations::table
        .select(__diesel_schema_migrations::version)
        .load(connection)
}

/// Returns an error if the database holds the schema from before the first release: no migration leads away from it.
fn refuse_former_schema(connection: &mut PgConnection) -> anyhow::Result<()> {
    let is_former: bool = diesel::select(sql::<Bool>(IS_FORMER_SCHEMA))
        .get_result(connection)
        .context("cannot look at the schema")?;
    if is_former {
        bail!(FORMER_SCHEMA);
    }
    Ok(())
}
