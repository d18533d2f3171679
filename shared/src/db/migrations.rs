//! The migrations, and how they are run.

use anyhow::{Context, bail};
use diesel::RunQueryDsl;
use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::pg::PgConnection;
use diesel::sql_types::{BigInt, Bool};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

/// All migrations, compiled into the program.
pub const MIGRATIONS: EmbeddedMigrations = embed_migrations!("../migrations");

/// The advisory lock that lets one process migrate at a time. No other lock of ours has this number.
const MIGRATION_LOCK: i64 = 0x6f72_6465_7273;

/// During a migration the trigger emits the events, because a migration that changes orders emits none.
const EMITS_NOTHING: &str = "SET orders.emits = 'off'";
const EMITS_AGAIN: &str = "SET orders.emits = 'on'";
/// Another process may migrate for long.
const WAIT_FOR_LOCKS: &str = "SET lock_timeout = 0";

/// An SQL expression: does the database hold the schema from before the first release? Items had a table then. A view has
/// its name now.
const IS_FORMER_SCHEMA: &str =
    "EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('order_items') AND relkind = 'r')";

/// The message about such a database.
const FORMER_SCHEMA: &str = "the database holds the schema from before the first release, which cannot be migrated: create an \
                                 empty database, name it in DB_NAME, and let the ingestor read the topic again";

/// Brings the schema up to date and returns the names of the migrations that ran. One process at a time does this.
///
/// # Errors
/// Returns an error if the database refuses a statement, or if it holds the schema from before the first release. Each
/// migration is a transaction of its own, so the migrations before the failed one stay.
pub fn migrate(connection: &mut PgConnection) -> anyhow::Result<Vec<String>> {
    with_migration_lock(connection, |connection| {
        refuse_former_schema(connection)?;
        connection
            .run_pending_migrations(MIGRATIONS)
            .map(|versions| versions.iter().map(ToString::to_string).collect())
    })
}

/// Returns the names of the migrations that have not run yet.
///
/// # Errors
/// Returns an error if the database cannot be asked, or if it holds the schema from before the first release.
pub fn pending_migrations(connection: &mut PgConnection) -> anyhow::Result<Vec<String>> {
    refuse_former_schema(connection)?;
    let pending = connection
        .pending_migrations(MIGRATIONS)
        .map_err(|error| anyhow::anyhow!("cannot read the list of migrations: {error}"))?;
    Ok(pending
        .iter()
        .map(|migration| migration.name().to_string())
        .collect())
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

fn with_migration_lock<T>(
    connection: &mut PgConnection,
    run: impl FnOnce(&mut PgConnection) -> diesel::migration::Result<T>,
) -> anyhow::Result<T> {
    let lock = |connection: &mut PgConnection, function: &str| {
        diesel::sql_query(function)
            .bind::<BigInt, _>(MIGRATION_LOCK)
            .execute(connection)
    };
    connection.batch_execute(WAIT_FOR_LOCKS)?;
    lock(connection, "SELECT pg_advisory_lock($1)")
        .context("cannot lock the schema for migration")?;
    connection.batch_execute(EMITS_NOTHING)?;
    let result =
        run(connection).map_err(|error| anyhow::anyhow!("cannot migrate the schema: {error}"));
    connection.batch_execute(EMITS_AGAIN)?;
    lock(connection, "SELECT pg_advisory_unlock($1)")
        .context("cannot unlock the schema after migration")?;
    result
}
