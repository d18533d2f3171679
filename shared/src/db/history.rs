//! The history of a database: what tells it from another server's, and from itself before a restore or a failover.
//!
//! Two reads of one history with the same version of an order gave the same content. Between histories nothing can be
//! compared: a failover may have undone commits, and a restore brings old versions back.

use std::fmt;
use std::hash::Hasher;

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Oid, Uuid as SqlUuid};
use fnv::FnvHasher;
use tokio_postgres::Row;
use uuid::Uuid;

/// An SQL expression: the timeline of the log which is being written. The one in the control file lags behind a promotion.
macro_rules! timeline {
    () => {
        "('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer"
    };
}

/// Reads a [`Standing`]. Fails if the schema does not exist, and on a standby.
pub const STANDING: &str = concat!(
    "SELECT server.system_identifier, ",
    timeline!(),
    " AS timeline, id, to_regclass('orders')::oid AS orders_oid, \
     (pg_current_wal_flush_lsn() - '0/0')::bigint AS log_position FROM pg_control_system() AS server, service_history"
);

/// Reads a [`ServerId`]. Gives no row on a standby.
pub const SERVER_ID: &str = concat!(
    "SELECT system_identifier, ",
    timeline!(),
    " AS timeline FROM pg_control_system() WHERE NOT pg_is_in_recovery()"
);

/// The identity of a database's content.
#[derive(Clone, Debug, PartialEq, Eq, QueryableByName)]
pub struct History {
    /// The cluster, as `initdb` has named it.
    #[diesel(sql_type = BigInt)]
    pub system_identifier: i64,
    /// Rises at each promotion of a standby, and at each recovery to a point in time.
    #[diesel(sql_type = Integer)]
    pub timeline: i32,
    /// The id in `service_history`.
    #[diesel(sql_type = SqlUuid)]
    pub id: Uuid,
    /// The table `orders`. It differs if the table was dropped and created again.
    #[diesel(sql_type = Oid)]
    pub orders_oid: u32,
}

/// A hash of a [`History`]. Other processes compute the same one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistoryId(pub u64);

impl HistoryId {
    /// Of a database without a schema. No history has this hash.
    pub const NONE: Self = Self(0);
}

impl History {
    /// Returns the hash.
    pub fn hash_id(&self) -> HistoryId {
        let mut hasher = FnvHasher::default();
        hasher.write(&self.system_identifier.to_be_bytes());
        hasher.write(&self.timeline.to_be_bytes());
        hasher.write(self.id.as_bytes());
        hasher.write(&self.orders_oid.to_be_bytes());
        HistoryId(hasher.finish())
    }
}

impl fmt::Display for History {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            system_identifier,
            timeline,
            id,
            orders_oid,
        } = self;
        write!(
            formatter,
            "system {system_identifier}, timeline {timeline}, id {id}, table {orders_oid}"
        )
    }
}

/// What a server that takes writes says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, QueryableByName)]
pub struct ServerId {
    /// The cluster, as `initdb` has named it.
    #[diesel(sql_type = BigInt)]
    pub system_identifier: i64,
    /// Rises at each promotion of a standby, and at each recovery to a point in time.
    #[diesel(sql_type = Integer)]
    pub timeline: i32,
}

/// A history, and how far it has come.
#[derive(Clone, Debug, QueryableByName)]
pub struct Standing {
    /// The history.
    #[diesel(embed)]
    pub history: History,
    /// The position in the server's log, in bytes. Within a history it goes back only if the server's files were replaced by
    /// older ones.
    #[diesel(sql_type = BigInt)]
    pub log_position: i64,
}

impl Standing {
    /// Takes a row of [`STANDING`].
    ///
    /// # Errors
    /// Returns an error if a column is missing or null.
    pub fn from_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            history: History {
                system_identifier: row.try_get("system_identifier")?,
                timeline: row.try_get("timeline")?,
                id: row.try_get("id")?,
                orders_oid: row.try_get("orders_oid")?,
            },
            log_position: row.try_get("log_position")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_history_counts() {
        let history = History {
            system_identifier: 1,
            timeline: 2,
            id: Uuid::from_u128(3),
            orders_oid: 4,
        };
        let mut others = [
            history.clone(),
            history.clone(),
            history.clone(),
            history.clone(),
        ];
        others[0].system_identifier += 1;
        others[1].timeline += 1;
        others[2].id = Uuid::from_u128(4);
        others[3].orders_oid += 1;
        for other in others {
            assert_ne!(other.hash_id(), history.hash_id(), "{other}");
        }
        // Another program, or a later version of this one, must come to the same hash.
        assert_eq!(history.hash_id(), HistoryId(488_534_870_054_360_297));
    }
}
