//! PostgreSQL: connection settings, TLS, the pool, start-up checks, migrations.
//!
//! Two drivers stand side by side: diesel over libpq for the ingestor's writers and for migrations (typed COPY needs
//! it), tokio-postgres for everything asynchronous (it shows SQLSTATEs and can LISTEN). Both get the same settings.

pub mod models;
pub mod orders;
pub mod schema;
mod startup;
mod tls;

use std::io;
use std::time::Duration;

use anyhow::{Context, bail};
use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::pg::PgConnection;
use diesel::sql_types::Bool;
use diesel::{Connection, ConnectionError, ConnectionResult, RunQueryDsl};
use diesel_async::pooled_connection::deadpool::{Hook, HookError, Pool};
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod,
};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use tokio_postgres::config::SslMode as TokioSslMode;

use crate::config::{DatabaseSettings, SslMode};
pub use startup::{StartupError, check, wait_until_reachable};
pub use tls::{TlsConnector, tls_connector};

/// Every migration, compiled in.
pub const MIGRATIONS: EmbeddedMigrations = embed_migrations!("../migrations");

/// Serialises migrations over processes; any number that nothing else of ours uses.
const MIGRATION_LOCK: i64 = 0x6f72_6465_7273;

/// How long connecting may take; beyond it the server counts as away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A peer that answers nothing for `IDLE + RETRIES * INTERVAL` is gone; the kernels' default is two hours.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;
/// How long sent data may stay unacknowledged.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);

/// Settings of every session of ours: a client that froze inside a transaction must not hold its locks, and the server
/// must notice a client that is gone.
///
/// `orders.emits` is a promise: whoever changes orders in this session emits the events itself. For everyone else the
/// database does (trigger function `emit_foreign_writes`).
const SESSION_OPTIONS: &str = "-c idle_in_transaction_session_timeout=30s -c tcp_keepalives_idle=30 \
                               -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3 -c tcp_user_timeout=30s \
                               -c orders.emits=on";

/// A migration that changes orders emits nothing itself.
const EMITS_NOTHING: &str = "SET orders.emits = 'off'";
const EMITS_AGAIN: &str = "RESET orders.emits";

/// What is wrong with a server that takes no writes, and what to do.
pub const NOT_A_PRIMARY: &str = "the server takes no writes: it is a standby, whose rows lag behind, or set to read-only; \
                                 point DB_HOST and DB_PORT at the primary";

/// Whether the database holds the schema of before the first release, in SQL. Items had a table then; its name is that of a
/// view now.
const IS_FORMER_SCHEMA: &str =
    "EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('order_items') AND relkind = 'r')";

/// What is wrong with such a database, and what to do.
const FORMER_SCHEMA: &str = "the database holds the schema of before the first release, which cannot be migrated: create an \
                                 empty database, name it in DB_NAME, and let the ingestor read the topic again";

/// The pool of asynchronous connections.
pub type AsyncPool = Pool<AsyncPgConnection>;

/// Connects by libpq, for diesel's synchronous connection.
///
/// # Errors
/// Fails as diesel does; SQLSTATEs are not to be had here, see [`check`].
pub fn connect_blocking(
    settings: &DatabaseSettings,
    application_name: &str,
) -> ConnectionResult<PgConnection> {
    PgConnection::establish(&libpq_conninfo(settings, application_name))
}

fn libpq_conninfo(settings: &DatabaseSettings, application_name: &str) -> String {
    let root_certificate = settings
        .sslrootcert
        .as_ref()
        .map(|path| path.display().to_string());
    let parameters = [
        ("host", settings.host.clone()),
        ("port", settings.port.to_string()),
        ("user", settings.user.clone()),
        ("password", settings.password.expose().to_owned()),
        ("dbname", settings.name.clone()),
        ("sslmode", settings.sslmode.as_str().to_owned()),
        // A file that is not there, in place of libpq's default in the home directory: what is checked depends on our
        // settings alone.
        (
            "sslrootcert",
            root_certificate.unwrap_or_else(|| "/nonexistent".to_owned()),
        ),
        ("gssencmode", "disable".to_owned()),
        ("application_name", application_name.to_owned()),
        ("connect_timeout", CONNECT_TIMEOUT.as_secs().to_string()),
        ("keepalives_idle", KEEPALIVE_IDLE.as_secs().to_string()),
        (
            "keepalives_interval",
            KEEPALIVE_INTERVAL.as_secs().to_string(),
        ),
        ("keepalives_count", KEEPALIVE_RETRIES.to_string()),
        ("tcp_user_timeout", TCP_USER_TIMEOUT.as_millis().to_string()),
        ("options", SESSION_OPTIONS.to_owned()),
    ];
    let quoted = parameters.map(|(name, value)| {
        format!(
            "{name}='{}'",
            value.replace('\\', "\\\\").replace('\'', "\\'")
        )
    });
    quoted.join(" ")
}

/// The same settings for tokio-postgres; callers may change them further.
pub fn tokio_config(settings: &DatabaseSettings, application_name: &str) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config
        .host(&settings.host)
        .port(settings.port)
        .user(&settings.user)
        .password(settings.password.expose())
        .dbname(&settings.name)
        .ssl_mode(match settings.sslmode {
            SslMode::Disable => TokioSslMode::Disable,
            SslMode::Prefer => TokioSslMode::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => TokioSslMode::Require,
        })
        .application_name(application_name)
        .connect_timeout(CONNECT_TIMEOUT)
        .keepalives_idle(KEEPALIVE_IDLE)
        .keepalives_interval(KEEPALIVE_INTERVAL)
        .keepalives_retries(KEEPALIVE_RETRIES)
        .tcp_user_timeout(TCP_USER_TIMEOUT)
        .options(SESSION_OPTIONS);
    config
}

/// How large a pool is and how long it may take.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// Most connections.
    pub size: usize,
    /// Most time to wait for a connection, opening one included.
    pub wait: Duration,
    /// Most time that a statement may run; the server enforces it.
    pub statement_timeout: Duration,
}

/// Makes a pool; it connects when it is first asked.
///
/// # Errors
/// Fails where the CA's file cannot be used.
pub fn pool(
    settings: &DatabaseSettings,
    application_name: &'static str,
    limits: PoolLimits,
) -> anyhow::Result<AsyncPool> {
    let tls = tls_connector(settings)?;
    let config = tokio_config(settings, application_name);
    let mut manager_config = ManagerConfig::default();
    // No query before each use: a closed connection is noticed without, one that hangs would not answer that query either.
    manager_config.recycling_method = RecyclingMethod::Fast;
    manager_config.custom_setup = Box::new(move |_url| {
        let (config, tls) = (config.clone(), tls.clone());
        Box::pin(async move {
            let (client, connection) = config
                .connect(tls)
                .await
                .map_err(|error| ConnectionError::BadConnection(describe(&error)))?;
            AsyncPgConnection::try_from_client_and_connection(client, connection).await
        })
    });
    // The URL is unused: `custom_setup` knows everything.
    let manager = AsyncDieselConnectionManager::new_with_config(String::new(), manager_config);
    let set_timeout = format!(
        "SET statement_timeout = {}",
        limits.statement_timeout.as_millis()
    );
    Pool::builder(manager)
        .max_size(limits.size)
        .wait_timeout(Some(limits.wait))
        .create_timeout(Some(limits.wait))
        .recycle_timeout(Some(limits.wait))
        .runtime(deadpool::Runtime::Tokio1)
        .post_create(Hook::async_fn(
            move |connection: &mut AsyncPgConnection, _| {
                let set_timeout = set_timeout.clone();
                Box::pin(async move {
                    let refused =
                        |error: diesel::result::Error| HookError::message(error.to_string());
                    connection
                        .batch_execute(&set_timeout)
                        .await
                        .map_err(refused)?;
                    // A primary that is set to read-only may be read; a standby's rows lag behind the events.
                    let query = diesel::select(sql::<Bool>("pg_is_in_recovery()"));
                    let is_standby: bool = diesel_async::RunQueryDsl::get_result(query, connection)
                        .await
                        .map_err(refused)?;
                    if is_standby {
                        return Err(HookError::message(NOT_A_PRIMARY));
                    }
                    Ok(())
                })
            },
        ))
        .build()
        .context("cannot set up the connection pool")
}

/// Whether connecting failed because `target_session_attrs` asked for a session that may write.
pub fn refuses_writes(error: &tokio_postgres::Error) -> bool {
    let cause =
        std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    // Made by tokio-postgres: the system's own refusals carry a number.
    cause.is_some_and(|cause| {
        cause.kind() == io::ErrorKind::PermissionDenied && cause.raw_os_error().is_none()
    })
}

/// An error of tokio-postgres with its causes, which its own text leaves out.
pub fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db_error) => format!(
            "{} (SQLSTATE {})",
            db_error.message(),
            db_error.code().code()
        ),
        None => {
            let causes =
                std::iter::successors(std::error::Error::source(error), |cause| cause.source());
            std::iter::once(error.to_string())
                .chain(causes.map(ToString::to_string))
                .collect::<Vec<_>>()
                .join(": ")
        }
    }
}

/// Brings the schema up to date, one process at a time; says which migrations ran.
///
/// # Errors
/// Fails where the database refuses a statement, or holds the schema of before the first release. Each migration is a
/// transaction of its own.
pub fn migrate(connection: &mut PgConnection) -> anyhow::Result<Vec<String>> {
    with_migration_lock(connection, |connection| {
        refuse_former_schema(connection)?;
        connection
            .run_pending_migrations(MIGRATIONS)
            .map(|versions| versions.iter().map(ToString::to_string).collect())
    })
}

/// Names the migrations that have not run yet.
///
/// # Errors
/// Fails where the database cannot be asked, or holds the schema of before the first release.
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

/// No migration leads from the schema of before the first release.
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
            .bind::<diesel::sql_types::BigInt, _>(MIGRATION_LOCK)
            .execute(connection)
    };
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
