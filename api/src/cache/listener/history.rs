//! Which history of commits a server follows. A failover to a standby that lacked the last commits undoes them: what was
//! cached of them never was, and no event says so.

use anyhow::Context;
use tokio_postgres::Client;

use super::described;

/// A cluster and its timeline; promoting a standby begins a new timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct History {
    system_identifier: i64,
    timeline: String,
}

impl History {
    /// Asks a primary. The timeline is that of the log being written: the control file's lags behind a promotion.
    pub(super) async fn of(client: &Client) -> anyhow::Result<Self> {
        let query = "SELECT system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8) FROM pg_control_system()";
        let row = client
            .query_one(query, &[])
            .await
            .map_err(described)
            .context("cannot tell the server's system identifier and timeline")?;
        Ok(Self {
            system_identifier: row.get(0),
            timeline: row.get(1),
        })
    }
}

impl std::fmt::Display for History {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            system_identifier,
            timeline,
        } = self;
        write!(formatter, "system {system_identifier}, timeline {timeline}")
    }
}
