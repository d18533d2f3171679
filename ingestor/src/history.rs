//! The row of `service_history`, which caches and `ETag`s are bound to. It is made anew when what was read before may no longer
//! hold: by an operator after a restore, and by the daemon after a failover.

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use diesel::dsl::now;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use shared::db::schema::service_history;
use shared::db::{NOT_A_PRIMARY, SERVER_ID, ServerId};
use shared::throttle::Throttle;
use tracing::warn;
use uuid::Uuid;

/// Lets one process at a time make the row anew. Whoever only reads it does not wait.
const LOCK: &str = "LOCK TABLE service_history IN SHARE ROW EXCLUSIVE MODE";

/// Raises the sequence to the microseconds since 1970, so that no version is drawn again that was drawn before a restore.
///
/// The caller holds [`LOCK`], so nobody else of us sets the sequence. Others may draw versions between the look at the
/// sequence and `setval`. If the sequence is behind the clock, these versions are below the clock's value, because nobody draws
/// a million versions per second. If it is ahead of the clock, it is not set at all. So no version is drawn twice.
const RAISE_VERSIONS: &str = "\
    WITH clock AS MATERIALIZED (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS microseconds) \
    SELECT last_value AS before, \
           CASE WHEN last_value < microseconds THEN setval('order_version_seq', microseconds) ELSE last_value END AS after \
      FROM order_version_seq, clock";

/// How often it is reported that a new history cannot be made.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// The row of `service_history`: its id, and the server on which it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Queryable, Selectable, Insertable, AsChangeset)]
// The primary key has to be named: a changeset would leave out a column `id`, which it takes for the key.
#[diesel(table_name = service_history, primary_key(is_only), check_for_backend(diesel::pg::Pg))]
pub struct HistoryRow {
    /// A new one whenever the row is made anew.
    pub id: Uuid,
    /// The server's cluster.
    pub system_identifier: i64,
    /// The server's timeline at that time.
    pub timeline: i32,
}

impl fmt::Display for HistoryRow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            system_identifier,
            timeline,
        } = self;
        write!(
            formatter,
            "{id} (system {system_identifier}, timeline {timeline})"
        )
    }
}

/// The last version that was drawn, before and after the sequence was raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, QueryableByName)]
pub struct Versions {
    /// Before.
    #[diesel(sql_type = BigInt)]
    pub before: i64,
    /// After: the greater of the value before and the microseconds since 1970.
    #[diesel(sql_type = BigInt)]
    pub after: i64,
}

/// What was changed. Its text is one line for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The row that was there; `None` if the table was empty.
    pub former: Option<HistoryRow>,
    /// The row that is there now.
    pub row: HistoryRow,
    /// What became of the sequence.
    pub versions: Versions,
}

impl fmt::Display for Renewal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            former,
            row,
            versions: Versions { before, after },
        } = self;
        match former {
            Some(former) => write!(formatter, "{former}")?,
            None => formatter.write_str("(none)")?,
        }
        write!(
            formatter,
            " -> {row}; order_version_seq {before} -> {after}"
        )
    }
}

/// Makes the row anew, or makes the first one, and raises the sequence of the versions.
///
/// # Errors
/// Returns an error on a standby, and if the database refuses. Then nothing was changed.
pub fn make_anew(connection: &mut PgConnection) -> anyhow::Result<Renewal> {
    let server = read_server_id(connection)?.context(NOT_A_PRIMARY)?;
    let renewal = connection.transaction(|connection| {
        diesel::sql_query(LOCK).execute(connection)?;
        let former = service_history::table
            .select(HistoryRow::as_select())
            .first(connection)
            .optional()?;
        replace(connection, former, server)
    });
    renewal.context("cannot make a new history")
}

/// Does the same, but only if the row was made on another server or on another timeline. Of several processes one does it.
///
/// Returns `None` if there was nothing to do, which is always so on a standby.
///
/// # Errors
/// Returns the database's error. Then nothing was changed.
pub fn renew_if_moved(connection: &mut PgConnection) -> QueryResult<Option<Renewal>> {
    let Some(server) = read_server_id(connection)? else {
        return Ok(None);
    };
    // The first look takes no lock, so that it needs no right but SELECT.
    if find_foreign_row(connection, server)?.is_none() {
        return Ok(None);
    }
    connection.transaction(|connection| {
        diesel::sql_query(LOCK).execute(connection)?;
        // Another process may have been faster.
        match find_foreign_row(connection, server)? {
            Some(former) => replace(connection, Some(former), server).map(Some),
            None => Ok(None),
        }
    })
}

fn read_server_id(connection: &mut PgConnection) -> QueryResult<Option<ServerId>> {
    diesel::sql_query(SERVER_ID)
        .get_result(connection)
        .optional()
}

/// Returns the row if it was made on another server or on another timeline.
fn find_foreign_row(
    connection: &mut PgConnection,
    server: ServerId,
) -> QueryResult<Option<HistoryRow>> {
    service_history::table
        .filter(
            service_history::system_identifier
                .ne(server.system_identifier)
                .or(service_history::timeline.ne(server.timeline)),
        )
        .select(HistoryRow::as_select())
        .first(connection)
        .optional()
}

/// Replaces the row. The caller's transaction holds [`LOCK`].
fn replace(
    connection: &mut PgConnection,
    former: Option<HistoryRow>,
    server: ServerId,
) -> QueryResult<Renewal> {
    let row = HistoryRow {
        id: Uuid::new_v4(),
        system_identifier: server.system_identifier,
        timeline: server.timeline,
    };
    diesel::insert_into(service_history::table)
        .values(row)
        .on_conflict(service_history::is_only)
        .do_update()
        .set((row, service_history::made_at.eq(now)))
        .execute(connection)?;
    let versions = diesel::sql_query(RAISE_VERSIONS).get_result(connection)?;
    Ok(Renewal {
        former,
        row,
        versions,
    })
}

/// Makes a new history when the daemon finds itself on another server or timeline, and logs what it did.
#[derive(Debug)]
pub struct HistoryKeeper {
    warnings: Throttle,
}

impl Default for HistoryKeeper {
    fn default() -> Self {
        Self {
            warnings: Throttle::every(WARNING_INTERVAL),
        }
    }
}

impl HistoryKeeper {
    /// Looks once. An error is only logged, because ingestion can continue without a new history.
    pub fn look(&mut self, connection: &mut PgConnection) {
        match renew_if_moved(connection) {
            Ok(renewal) => {
                self.warnings.reset();
                if let Some(renewal) = renewal {
                    warn!(
                        "the database is on another server or timeline than before, and was given a new history: {renewal}"
                    );
                }
            }
            Err(error) => {
                if self.warnings.is_due() {
                    warn!(
                        "the database may need a new history, which could not be made: {error}; let a role with more rights \
                         run `ingestor new-history`, or give this one the rights that docs/OPERATIONS.md lists under Roles"
                    );
                }
            }
        }
    }
}
