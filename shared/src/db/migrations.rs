//! The migrations, and how they are run.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::migration::{Migration, MigrationName, MigrationSource, MigrationVersion};
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use tracing::{info, warn};

use super::rights;
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

/// No other time-out of the role or the database applies to a migration: an index of a large table takes its time. If our
/// process is gone, the server notices it after a second and ends the statement. Not every version has all of these settings.
const SESSION_OF_MIGRATIONS: &str = "SELECT set_config(name, CASE name WHEN 'client_connection_check_interval' THEN '1s' \
                                            ELSE '0' END, false) \
                                       FROM pg_settings \
                                      WHERE name IN ('client_connection_check_interval', 'statement_timeout', \
                                                     'transaction_timeout')";

/// What the name of the folder of a migration begins with, after the number, if the migration builds an index CONCURRENTLY. The
/// name of the index follows. `cargo xtask check` makes sure of it.
const CREATES_INDEX: &str = "create_";

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

/// Brings the schema up to date, grants the service's roles what they lack, and returns the versions of the migrations that ran.
/// One process at a time does this.
///
/// A migration that waits too long for a table is rolled back and tried again, for as long as it takes. One that runs outside of
/// a transaction waits for as long as it takes. An index that its interrupted run left invalid is dropped first.
///
/// # Errors
/// Returns an error if the database refuses a statement, if it holds the schema from before the first release, or if
/// `is_stopping` became true before the end. Each migration is a transaction of its own, so the migrations before the failed one
/// stay.
pub fn migrate(
    connection: &mut PgConnection,
    is_stopping: impl Fn() -> bool,
) -> anyhow::Result<Vec<String>> {
    migrate_from(&MIGRATIONS, connection, is_stopping)
}

/// Does the same as [`migrate`] with other migrations than our own.
///
/// # Errors
/// Returns the same errors as [`migrate`], and one if the migrations cannot be read.
pub fn migrate_from(
    source: &impl MigrationSource<Pg>,
    connection: &mut PgConnection,
    is_stopping: impl Fn() -> bool,
) -> anyhow::Result<Vec<String>> {
    let mut all = source
        .migrations()
        .map_err(|error| anyhow!("cannot read the migrations: {error}"))?;
    all.sort_by(|a, b| a.name().version().cmp(&b.name().version()));
    lock_migrations(connection, &is_stopping)?;
    let applied = refuse_former_schema(connection).and_then(|()| {
        connection.batch_execute(EMITS_NOTHING)?;
        run_pending(&all, connection, &is_stopping)
    });
    let applied = applied.and_then(|applied| {
        rights::grant(connection).context("cannot grant the roles their rights")?;
        Ok(applied)
    });
    let unlocked = unlock_migrations(connection);
    // If the connection is lost, both fail, and only the first error tells where.
    let applied = applied?;
    unlocked.context("cannot unlock the schema after migration")?;
    Ok(applied)
}

fn unlock_migrations(connection: &mut PgConnection) -> QueryResult<()> {
    connection.batch_execute(EMITS_AGAIN)?;
    diesel::sql_query("SELECT pg_advisory_unlock($1)")
        .bind::<BigInt, _>(MIGRATION_LOCK)
        .execute(connection)?;
    Ok(())
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
    all: &[Box<dyn Migration<Pg>>],
    connection: &mut PgConnection,
    is_stopping: &impl Fn() -> bool,
) -> anyhow::Result<Vec<String>> {
    let mut applied: Vec<String> = Vec::new();
    let mut backoff = Backoff::for_database();
    connection.batch_execute(SESSION_OF_MIGRATIONS)?;
    loop {
        let started = Instant::now();
        match run_next(all, connection, is_stopping) {
            Ok(Some(version)) => applied.push(version),
            Ok(None) => return Ok(applied),
            // diesel hides the SQLSTATE of a lock that was not granted in time.
            Err(error)
                if started.elapsed() >= TABLE_LOCK_TIMEOUT
                    && !error.is::<OutsideTransaction>()
                    && !is_stopping() =>
            {
                warn!("a migration waited too long for a table, and is tried again: {error}");
                sleep(backoff.next_delay());
            }
            Err(error) => bail!("cannot migrate the schema: {error}"),
        }
    }
}

/// Runs the first pending migration, and returns its version.
fn run_next(
    all: &[Box<dyn Migration<Pg>>],
    connection: &mut PgConnection,
    is_stopping: &impl Fn() -> bool,
) -> diesel::migration::Result<Option<String>> {
    let timeout_ms = TABLE_LOCK_TIMEOUT.as_millis().to_string();
    connection.batch_execute(&["SET lock_timeout = ", &timeout_ms].concat())?;
    // diesel's look at what has run needs the right to create tables. A role that may not migrate has it not.
    if pending_of(all, connection)?.is_empty() {
        return Ok(None);
    }
    let applied = connection.applied_migrations()?;
    let next = all
        .iter()
        .find(|migration| !applied.contains(&migration.name().version()));
    let Some(next) = next else {
        return Ok(None);
    };
    if is_stopping() {
        return Err("stopped before all migrations had run".into());
    }
    let version = if next.metadata().run_in_transaction() {
        connection.run_migration(&**next)?
    } else {
        run_outside_transaction(&**next, connection).map_err(OutsideTransaction)?
    };
    Ok(Some(version.to_string()))
}

/// Why a migration outside of a transaction failed. There was no time-out that would explain it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct OutsideTransaction(Box<dyn std::error::Error + Send + Sync>);

fn run_outside_transaction(
    migration: &dyn Migration<Pg>,
    connection: &mut PgConnection,
) -> diesel::migration::Result<MigrationVersion<'static>> {
    // Nobody waits for it while it waits for others: for their transactions, not only for a lock.
    connection.batch_execute("SET lock_timeout = 0")?;
    drop_invalid_index(connection, &migration.name().to_string())?;
    connection.run_migration(migration)
}

/// Drops the index of a migration if it is invalid, as an interrupted CREATE INDEX CONCURRENTLY leaves it.
///
/// No other process of ours builds it now, because we hold the lock. If an operator builds it by hand, dropping it waits until
/// the build has ended.
fn drop_invalid_index(connection: &mut PgConnection, migration: &str) -> QueryResult<()> {
    let name = migration.split_once('_').map(|(_, name)| name);
    let Some(index) = name.and_then(|name| name.strip_prefix(CREATES_INDEX)) else {
        return Ok(());
    };
    let invalid = sql::<Text>("indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid AND indexrelid = to_regclass(quote_ident(")
        .bind::<Text, _>(index)
        .sql("))");
    let invalid: Option<String> = diesel::select(invalid).get_result(connection).optional()?;
    if let Some(invalid) = invalid {
        warn!(
            "the index {invalid} is invalid, because its build was interrupted: it is dropped and built anew"
        );
        connection.batch_execute(&["DROP INDEX CONCURRENTLY IF EXISTS ", &invalid].concat())?;
    }
    Ok(())
}

/// Returns the names of the migrations that have not run yet. Needs no right but to read.
///
/// # Errors
/// Returns an error if the database cannot be asked, or if it holds the schema from before the first release.
pub fn pending_migrations(connection: &mut PgConnection) -> anyhow::Result<Vec<String>> {
    refuse_former_schema(connection)?;
    let all = MigrationSource::<Pg>::migrations(&MIGRATIONS);
    let all = all.map_err(|error| anyhow!("cannot read our own migrations: {error}"))?;
    pending_of(&all, connection)
}

fn pending_of(
    all: &[Box<dyn Migration<Pg>>],
    connection: &mut PgConnection,
) -> anyhow::Result<Vec<String>> {
    let applied = applied_versions(connection).context("cannot read the list of migrations")?;
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
