//! Gathers what is known of a database.

use std::future::poll_fn;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Client, SimpleQueryMessage, SimpleQueryRow};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::config::DatabaseSettings;
use crate::db;
use crate::db::rights::{self, Role};
use crate::doctor::Fault;

/// The name of the sessions of `doctor`. It must not be that of an ingestor: a claim may end sessions of that name.
const APPLICATION_NAME: &str = "orders-doctor";
/// How long connecting may take, and each question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a notification may take to arrive.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(3);

/// Everything that one query tells. It is asked before the session gets its settings: those of the role and of the database count.
const LOOK: &str = "\
    SELECT current_setting('server_version') AS version, current_setting('server_version_num') AS version_number, \
           pg_is_in_recovery() AS is_standby, current_setting('transaction_read_only') AS is_read_only, \
           current_setting('server_encoding') AS encoding, current_setting('default_transaction_isolation') AS isolation, \
           current_setting('session_replication_role') AS replication_role, \
           current_setting('synchronous_commit') AS synchronous_commit, \
           current_setting('wal_compression') AS wal_compression, \
           current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer \
               - coalesce(current_setting('reserved_connections', true)::integer, 0) AS server_connections, \
           rolconnlimit AS role_connections, datconnlimit AS database_connections, rolsuper AS is_superuser, \
           CASE WHEN pg_is_in_recovery() THEN 0 ELSE pg_notification_queue_usage() END AS queue_usage, \
           coalesce((SELECT string_agg(tgname, ', ' ORDER BY tgname) FROM pg_trigger \
                      WHERE tgrelid = to_regclass('orders') AND NOT tgisinternal AND tgenabled NOT IN ('O', 'A')), '') \
               AS disabled_triggers, \
           extract(epoch FROM clock_timestamp()) AS clock \
      FROM pg_roles, pg_database WHERE rolname = current_user AND datname = current_database()";

/// What a program needs of the database.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// The role whose rights it needs.
    pub role: Role,
    /// The most connections that one process opens.
    pub connections: i64,
    /// The setting that their number depends on, or what it consists of.
    pub connections_are: &'static str,
}

/// What is known of a database.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The server's version, as people write it.
    pub version: String,
    /// The same as a number: 150018 is 15.18.
    pub version_number: i64,
    /// Whether it follows another server.
    pub is_standby: bool,
    /// Whether new sessions are read-only.
    pub is_read_only: bool,
    /// The encoding of the database.
    pub encoding: String,
    /// The isolation level of new sessions.
    pub isolation: String,
    /// The replication role of new sessions; triggers do not fire in `replica`.
    pub replication_role: String,
    /// Whether a COMMIT waits until it is on disk.
    pub synchronous_commit: String,
    /// How images of pages are compressed.
    pub wal_compression: String,
    /// The most connections of the server, of the role and of the database; -1 is no limit.
    pub connection_limits: [(&'static str, i64); 3],
    /// How many the program needs, and what they are.
    pub needed_connections: (i64, &'static str),
    /// Whether the role is a superuser.
    pub is_superuser: bool,
    /// How full the queue of notifications is, 0 to 1.
    pub queue_usage: f64,
    /// The triggers of `orders` that do not fire, comma-separated.
    pub disabled_triggers: String,
    /// By how many seconds the server's clock is ahead of ours at least; negative if it is behind.
    pub clock_ahead: f64,
    /// Whether the session kept the settings that we gave it. If not, the text says what to do.
    pub kept_settings: Result<(), String>,
    /// Whether a notification of another session arrived; `None` if that was not tried.
    pub heard_notification: Option<Result<(), String>>,
    /// The migrations that have not run; `None` if that was not looked at.
    pub pending_migrations: Option<Result<Vec<String>, String>>,
    /// The rights that the role lacks, comma-separated.
    pub lacking_rights: String,
}

/// Looks at the database at the address that is configured.
pub(super) async fn look(settings: &DatabaseSettings, needs: Needs) -> Result<Facts, Fault> {
    let mut session = (timeout(ANSWER_TIMEOUT, Session::connect(settings)).await)
        .unwrap_or_else(|_| Err(unreachable_fault(settings, "no answer within 10 s", None)))?;
    let looking = timeout(ANSWER_TIMEOUT * 3, session.look(settings, needs));
    (looking.await)
        .unwrap_or_else(|_| Err("no answer within 30 s".to_owned()))
        .map_err(|reason| unreachable_fault(settings, &reason, None))
}

struct Session {
    client: Client,
    /// The channels of notifications that arrive.
    heard_rx: tokio::sync::mpsc::UnboundedReceiver<String>,
    _driver: AbortOnDropHandle<()>,
}

impl Session {
    async fn connect(settings: &DatabaseSettings) -> Result<Self, Fault> {
        let tls = db::tls_connector(settings)
            .map_err(|error| unreachable_fault(settings, &format!("{error:#}"), None))?;
        let connected = db::tokio_config(settings, APPLICATION_NAME)
            .connect(tls)
            .await;
        let (client, mut connection) = connected.map_err(|error| {
            unreachable_fault(
                settings,
                &db::describe(&error),
                error.code().map(|code| code.code()),
            )
        })?;
        let (heard_tx, heard_rx) = tokio::sync::mpsc::unbounded_channel();
        // Awaited as a future, the connection would throw notifications away.
        let driver = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await
            {
                if let AsyncMessage::Notification(notification) = message
                    && heard_tx.send(notification.channel().to_owned()).is_err()
                {
                    return;
                }
            }
        });
        Ok(Self {
            client,
            heard_rx,
            _driver: AbortOnDropHandle::new(driver),
        })
    }

    async fn look(&mut self, settings: &DatabaseSettings, needs: Needs) -> Result<Facts, String> {
        let asked_at = now_seconds();
        let row = self.row(LOOK).await?.ok_or("the server told nothing")?;
        let answered_at = now_seconds();
        let lacking = self.row(&rights::lacking_of_session(needs.role)).await?;
        let kept_settings = db::set_up_session(&self.client, "").await;
        let kept_settings = kept_settings.map_err(|error| format!("{error:#}"));
        let is_standby = text(&row, "is_standby") == "t";
        // Where a session loses its settings, nothing else of it can be relied on.
        let (heard_notification, pending_migrations) = if kept_settings.is_err() {
            (None, None)
        } else {
            let heard = if is_standby {
                None
            } else {
                Some(self.hear(settings).await)
            };
            (heard, Some(pending_migrations(settings.clone()).await))
        };
        Ok(Facts {
            version: text(&row, "version"),
            version_number: integer(&row, "version_number"),
            is_standby,
            is_read_only: text(&row, "is_read_only") == "on",
            encoding: text(&row, "encoding"),
            isolation: text(&row, "isolation"),
            replication_role: text(&row, "replication_role"),
            synchronous_commit: text(&row, "synchronous_commit"),
            wal_compression: text(&row, "wal_compression"),
            connection_limits: [
                ("the server", integer(&row, "server_connections")),
                ("the role", integer(&row, "role_connections")),
                ("the database", integer(&row, "database_connections")),
            ],
            needed_connections: (needs.connections, needs.connections_are),
            is_superuser: text(&row, "is_superuser") == "t",
            queue_usage: number(&row, "queue_usage"),
            disabled_triggers: text(&row, "disabled_triggers"),
            clock_ahead: clock_ahead(number(&row, "clock"), asked_at, answered_at),
            kept_settings,
            heard_notification,
            pending_migrations,
            lacking_rights: lacking
                .and_then(|row| row.get(0).map(str::to_owned))
                .unwrap_or_default(),
        })
    }

    /// The first row. The query is not prepared, because some poolers lose prepared statements.
    async fn row(&self, query: &str) -> Result<Option<SimpleQueryRow>, String> {
        let answer = self.client.simple_query(query).await;
        let messages = answer.map_err(|error| db::describe(&error))?;
        Ok(messages.into_iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        }))
    }

    /// Lets another session notify this one. Behind a pooler that changes sessions between transactions nothing arrives, although
    /// a session hears itself.
    async fn hear(&mut self, settings: &DatabaseSettings) -> Result<(), String> {
        let channel = format!("orders_doctor_{}", Uuid::new_v4().simple());
        let listen = ["LISTEN ", &channel].concat();
        let described = |error: tokio_postgres::Error| db::describe(&error);
        (self.client.batch_execute(&listen).await).map_err(described)?;
        let other = Self::connect(settings).await.map_err(|fault| fault.what)?;
        let notify = ["NOTIFY ", &channel].concat();
        (other.client.batch_execute(&notify).await).map_err(described)?;
        match timeout(DELIVERY_TIMEOUT, self.heard_rx.recv()).await {
            Ok(Some(heard)) if heard == channel => Ok(()),
            Ok(Some(_)) => Err("another notification arrived".to_owned()),
            Ok(None) => Err("the connection was lost".to_owned()),
            Err(_) => Err("none arrived within 3 s".to_owned()),
        }
    }
}

/// Uses libpq, as migrations and writers do.
async fn pending_migrations(settings: DatabaseSettings) -> Result<Vec<String>, String> {
    let looking = tokio::task::spawn_blocking(move || {
        let mut connection = db::connect_blocking(&settings, APPLICATION_NAME)?;
        db::pending_migrations(&mut connection)
    });
    match looking.await {
        Ok(pending) => pending.map_err(|error| format!("{error:#}")),
        Err(panicked) => Err(panicked.to_string()),
    }
}

fn unreachable_fault(settings: &DatabaseSettings, reason: &str, code: Option<&str>) -> Fault {
    let remedy = match code.and_then(|code| code.get(..2)) {
        Some("28") => "correct DB_USER and DB_PASSWORD, or the server's pg_hba.conf",
        Some("3D") => "correct DB_NAME, or create the database",
        Some("42") => {
            "grant the role CONNECT on the database, for example by deploy/postgres/roles.sql"
        }
        Some("53") => "wait, or let the server accept more connections",
        _ => "correct DB_HOST, DB_PORT and DB_SSLMODE, or start the server",
    };
    Fault::error(
        format!(
            "database {} at {}:{}: {reason}",
            settings.name, settings.host, settings.port
        ),
        "nothing works without the database",
        remedy,
    )
}

fn text(row: &SimpleQueryRow, column: &str) -> String {
    row.get(column).unwrap_or_default().to_owned()
}

fn integer(row: &SimpleQueryRow, column: &str) -> i64 {
    text(row, column).parse().unwrap_or(-1)
}

fn number(row: &SimpleQueryRow, column: &str) -> f64 {
    text(row, column).parse().unwrap_or_default()
}

fn now_seconds() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

/// The server's clock was read at some moment between our question and its answer.
fn clock_ahead(clock: f64, asked_at: f64, answered_at: f64) -> f64 {
    if clock > answered_at {
        clock - answered_at
    } else {
        (clock - asked_at).min(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_differs_only_if_no_moment_of_the_question_explains_it() {
        assert!((clock_ahead(10.5, 10.0, 11.0) - 0.0).abs() < 1e-9);
        assert!((clock_ahead(13.0, 10.0, 11.0) - 2.0).abs() < 1e-9);
        assert!((clock_ahead(7.0, 10.0, 11.0) + 3.0).abs() < 1e-9);
    }
}
