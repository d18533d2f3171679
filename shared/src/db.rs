//! PostgreSQL: how we connect. The children have the pool, TLS, start-up checks, migrations, rows and statements.
//!
//! There are two drivers. The ingestor's writers and the migrations use diesel over libpq, because typed COPY needs it.
//! Everything asynchronous uses tokio-postgres, which shows SQLSTATEs and can LISTEN. Both get the same settings.

mod history;
mod migrations;
pub mod models;
pub mod orders;
mod pool;
pub mod removed;
pub mod rights;
pub mod schema;
mod startup;
mod tls;

use std::io;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::pg::PgConnection;
use diesel::sql_types::Bool;
use diesel::{Connection, ConnectionError, ConnectionResult, RunQueryDsl};
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::config::SslMode as TokioSslMode;

use crate::config::{DatabaseSettings, SslMode, name_of};
pub use history::{History, HistoryId, SERVER_ID, STANDING, ServerId, Standing};
pub use migrations::{MIGRATIONS, migrate, migrate_from, pending_migrations};
pub use pool::{AsyncPool, PoolLimits, PooledSession, SessionError, SessionManager, pool};
pub use startup::{StartupError, check, wait_until_reachable};
pub use tls::{TlsConnector, tls_connector};

/// How long connecting may take. After that the server counts as away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A peer that answers nothing for `IDLE + RETRIES * INTERVAL` is gone. The kernel's default is two hours.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;
/// How long sent data may stay unacknowledged.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);

/// The settings that every session of ours begins with. A client that froze inside a transaction must not keep its locks, and
/// the server must notice that a client is gone.
///
/// `lock_timeout` also bounds a COMMIT that waits for the server's lock on the queue of notifications. `statement_timeout` does
/// not: the server has switched it off by then.
///
/// `orders.emits` is a promise: the program that changes orders in this session emits the events itself. For all other
/// sessions the trigger function `emit_foreign_writes` does it.
///
/// They are statements and not startup options, because poolers drop startup options (PgBouncer's
/// `ignore_startup_parameters`).
const SESSION_SETTINGS: &str = "SET idle_in_transaction_session_timeout = '30s'; SET lock_timeout = '10s'; \
                                SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; \
                                SET tcp_keepalives_count = 3; SET tcp_user_timeout = '30s'; \
                                SET orders.emits = 'on'";

/// An SQL expression: does the session still have [`SESSION_SETTINGS`]? Behind a pooler that changes sessions between
/// transactions it may have lost them.
const HAS_SESSION_SETTINGS: &str =
    "current_setting('orders.emits', true) IS NOT DISTINCT FROM 'on'";

/// The message about such a session.
const LOST_SETTINGS: &str = "the session has lost its settings: connect to PostgreSQL itself or to a pooler in session mode";

/// The message about a server that accepts no writes.
pub const NOT_A_PRIMARY: &str = "the server accepts no writes: it is a standby, whose rows lag behind, or it is read-only; \
                                 point DB_HOST and DB_PORT at the primary";

/// Connects through libpq, for diesel's synchronous connection.
///
/// # Errors
/// Returns diesel's error if the server cannot be reached or refuses the session. It has no SQLSTATE; [`check`] has.
pub fn connect_blocking(
    settings: &DatabaseSettings,
    application_name: &str,
) -> ConnectionResult<PgConnection> {
    let mut connection = PgConnection::establish(&libpq_conninfo(settings, application_name))?;
    let refused = ConnectionError::CouldntSetupConfiguration;
    connection
        .batch_execute(SESSION_SETTINGS)
        .map_err(refused)?;
    let look = diesel::select(sql::<Bool>(HAS_SESSION_SETTINGS));
    if look.get_result(&mut connection).map_err(refused)? {
        Ok(connection)
    } else {
        Err(ConnectionError::BadConnection(LOST_SETTINGS.to_owned()))
    }
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
        ("sslmode", name_of(settings.sslmode)),
        // A file that does not exist replaces libpq's default in the home directory, so that only our settings decide
        // what is checked.
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
    ];
    let quoted = parameters.map(|(name, value)| {
        format!(
            "{name}='{}'",
            value.replace('\\', "\\\\").replace('\'', "\\'")
        )
    });
    quoted.join(" ")
}

/// The same for tokio-postgres. Callers may change it further. The session has no settings before [`set_up_session`] has run.
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
        .tcp_user_timeout(TCP_USER_TIMEOUT);
    config
}

/// Gives a new session its settings, and then those of the statements in `more`.
///
/// # Errors
/// Returns an error if the server refuses, or if the session did not keep the settings.
pub async fn set_up_session(client: &tokio_postgres::Client, more: &str) -> anyhow::Result<()> {
    let described = |error: tokio_postgres::Error| anyhow::anyhow!(describe(&error));
    let settings = [SESSION_SETTINGS, "; ", more].concat();
    client.batch_execute(&settings).await.map_err(described)?;
    // It is not prepared: a pooler that loses the settings would lose the prepared statement, too, and that error would come
    // first.
    let look = ["SELECT ", HAS_SESSION_SETTINGS].concat();
    let answer = client.simple_query(&look).await.map_err(described)?;
    let has_settings = answer
        .iter()
        .any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("t")));
    anyhow::ensure!(has_settings, LOST_SETTINGS);
    Ok(())
}

/// Returns whether connecting failed because `target_session_attrs` asked for a session that may write.
pub fn refuses_writes(error: &tokio_postgres::Error) -> bool {
    let cause =
        std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    // tokio-postgres made this error. Errors of the system carry a number.
    cause.is_some_and(|cause| {
        cause.kind() == io::ErrorKind::PermissionDenied && cause.raw_os_error().is_none()
    })
}

/// Describes an error of tokio-postgres with its causes, which its own text leaves out.
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
