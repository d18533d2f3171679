//! What PostgreSQL and the broker spend on one measurement.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Text};
use servers::proc;
use shared::testing::database_settings_from_environment;

use crate::benchmarks::ServerOptions;

/// A mark in the benchmark's own statements, which are not counted.
pub(super) const OWN_MARK: &str = "/* by the benchmark */";

/// Reads the counters of the servers. Counters that are not known are not shown: the process ids of the user's own servers
/// are not known.
pub(super) struct Servers {
    postmaster: Option<u32>,
    broker: Option<u32>,
    /// A session in another database than the measured ones; `None` if the server does not have `pg_stat_statements`.
    statistics: Option<PgConnection>,
}

/// All counters at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counters {
    /// Without the benchmark's own session.
    pub postgres_cpu_seconds: Option<f64>,
    pub broker_cpu_seconds: Option<f64>,
    pub statements: Option<f64>,
    pub commits: Option<f64>,
}

#[derive(QueryableByName)]
struct Calls {
    #[diesel(sql_type = BigInt)]
    statements: i64,
    #[diesel(sql_type = BigInt)]
    commits: i64,
}

impl Servers {
    pub(super) fn new(options: &ServerOptions) -> anyhow::Result<Self> {
        let settings = database_settings_from_environment();
        let mut connection = shared::db::connect_blocking(&settings, "orders-bench")?;
        let readable = connection
            .batch_execute("SELECT FROM pg_stat_statements LIMIT 1")
            .is_ok();
        Ok(Self {
            postmaster: options.postgres_pid,
            broker: options.broker_pid,
            statistics: readable.then_some(connection),
        })
    }

    /// Reads the counters of one database and of the processes. `own_session` is the benchmark's session in that database.
    ///
    /// Statements and commits are what clients have sent: `pg_stat_statements` counts them at once and by kind. The
    /// server's own count of commits, `pg_stat_database`, is up to a second late. That is too late for the start of a drain.
    pub(super) fn count(&mut self, database: &str, own_session: u32) -> anyhow::Result<Counters> {
        let postgres = self.postmaster;
        let postgres = postgres.map(|pid| proc::family_cpu_seconds(pid, own_session));
        let broker = self.broker.map(proc::cpu_seconds);
        let calls: Option<Calls> = self
            .statistics
            .as_mut()
            .map(|connection| calls_in(connection, database))
            .transpose()?;
        Ok(Counters {
            postgres_cpu_seconds: postgres.transpose()?,
            broker_cpu_seconds: broker.transpose()?,
            statements: calls.as_ref().map(|calls| calls.statements as f64),
            commits: calls.as_ref().map(|calls| calls.commits as f64),
        })
    }
}

fn calls_in(connection: &mut PgConnection, database: &str) -> QueryResult<Calls> {
    diesel::sql_query(
        "SELECT coalesce(sum(calls), 0)::bigint AS statements,
                coalesce(sum(calls) FILTER (WHERE query ILIKE 'COMMIT%'), 0)::bigint AS commits
           FROM pg_stat_statements
          WHERE dbid = (SELECT oid FROM pg_database WHERE datname = $1) AND strpos(query, $2) = 0",
    )
    .bind::<Text, _>(database)
    .bind::<Text, _>(OWN_MARK)
    .get_result(connection)
}

/// Returns the id of the server's process for a session.
pub(super) fn session_pid(connection: &mut PgConnection) -> anyhow::Result<u32> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Integer)]
        pid: i32,
    }
    let query = "SELECT /* by the benchmark */ pg_backend_pid() AS pid";
    let row: Row = diesel::sql_query(query).get_result(connection)?;
    Ok(u32::try_from(row.pid)?)
}

impl Counters {
    /// Returns what was spent since `earlier`.
    pub(super) fn since(self, earlier: Self) -> Self {
        let difference =
            |later: Option<f64>, earlier: Option<f64>| later.zip(earlier).map(|(l, e)| l - e);
        Self {
            postgres_cpu_seconds: difference(
                self.postgres_cpu_seconds,
                earlier.postgres_cpu_seconds,
            ),
            broker_cpu_seconds: difference(self.broker_cpu_seconds, earlier.broker_cpu_seconds),
            statements: difference(self.statements, earlier.statements),
            commits: difference(self.commits, earlier.commits),
        }
    }
}
