//! The database's history. A failover to a standby that lacks the last commits undoes these commits. What was cached of them
//! never existed, and no event says so.

use anyhow::Context;
use tokio_postgres::Client;

use super::described;

/// The identity of a server's data, as text: its system identifier and its timeline. The promotion of a standby begins a new
/// timeline.
pub(super) type History = String;

/// Asks a primary for its history. The timeline is that of the log which is being written, because the one in the control file
/// lags behind a promotion.
pub(super) async fn read_history(client: &Client) -> anyhow::Result<History> {
    let query = "SELECT format('system %s, timeline %s', system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8)) \
                 FROM pg_control_system()";
    let row = client.query_one(query, &[]).await.map_err(described);
    let row = row.context("cannot read the server's system identifier and timeline")?;
    Ok(row.get(0))
}
