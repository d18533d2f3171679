//! The checks of a database, each on the facts alone.

use super::Facts;
use crate::doctor::{Check, Fault};

/// The oldest version whose statements and settings we use.
const MIN_VERSION: i64 = 140_000;
/// A clock may differ by so many seconds.
const MAX_CLOCK_DIFFERENCE: f64 = 1.0;
/// The queue of notifications holds 8 GB and is empty while every listener keeps up.
const MAX_QUEUE_USAGE: f64 = 0.05;

/// All checks.
pub const CHECKS: [Check<Facts>; 16] = [
    ("postgres.version", version),
    ("postgres.primary", primary),
    ("postgres.encoding", encoding),
    ("postgres.schema", schema),
    ("postgres.rights", rights),
    ("postgres.superuser", superuser),
    ("postgres.connections", connections),
    ("postgres.session", session),
    ("postgres.listen", listen),
    ("postgres.notify_queue", notify_queue),
    ("postgres.isolation", isolation),
    ("postgres.replication_role", replication_role),
    ("postgres.triggers", triggers),
    ("postgres.synchronous_commit", synchronous_commit),
    ("postgres.wal_compression", wal_compression),
    ("postgres.clock", clock),
];

fn version(facts: &Facts) -> Option<Fault> {
    (facts.version_number < MIN_VERSION).then(|| {
        Fault::error(
            format!("the server is PostgreSQL {}", facts.version),
            "the schema needs version 14 or later",
            "upgrade the server",
        )
    })
}

fn primary(facts: &Facts) -> Option<Fault> {
    const WHY: &str = "orders cannot be stored, and the cache hears of no change";
    if facts.is_standby {
        let remedy = "point DB_HOST and DB_PORT at the primary";
        return Some(Fault::error("the server is a standby", WHY, remedy));
    }
    facts.is_read_only.then(|| {
        Fault::error(
            "new sessions are read-only",
            WHY,
            "reset default_transaction_read_only of the role, the database and the server",
        )
    })
}

fn encoding(facts: &Facts) -> Option<Fault> {
    (facts.encoding != "UTF8").then(|| {
        Fault::error(
            format!("the database has the encoding {}", facts.encoding),
            "it cannot hold every order",
            "create a database with ENCODING 'UTF8' TEMPLATE template0, and name it in DB_NAME",
        )
    })
}

fn schema(facts: &Facts) -> Option<Fault> {
    const WHY: &str = "this release does not start on an older schema";
    match facts.pending_migrations.as_ref()? {
        Ok(pending) if pending.is_empty() => None,
        Ok(pending) => Some(Fault::error(
            format!(
                "{} migrations are pending, from {} on",
                pending.len(),
                pending[0]
            ),
            WHY,
            "run `ingestor migrate` as the owner of the schema",
        )),
        Err(reason) => Some(Fault::error(
            format!("the list of migrations cannot be read: {reason}"),
            WHY,
            "run `ingestor migrate` as the owner of the schema, which also grants the rights",
        )),
    }
}

fn rights(facts: &Facts) -> Option<Fault> {
    (!facts.lacking_rights.is_empty()).then(|| {
        Fault::error(
            format!("the role lacks {}", facts.lacking_rights),
            "statements of the program are refused",
            "run `ingestor migrate` as orders_migrator, or grant the rights; see docs/OPERATIONS.md#roles",
        )
    })
}

fn superuser(facts: &Facts) -> Option<Fault> {
    facts.is_superuser.then(|| {
        Fault::advice(
            "the role is a superuser",
            "whoever gets its password can do everything on the server",
            "give the program a role of its own with deploy/postgres/roles.sql",
        )
    })
}

fn connections(facts: &Facts) -> Option<Fault> {
    let (needed, are) = facts.needed_connections;
    let limits = facts.connection_limits.iter();
    let (owner, limit) = limits
        .filter(|(_, limit)| *limit >= 0)
        .min_by_key(|(_, limit)| *limit)?;
    (*limit < needed).then(|| {
        Fault::error(
            format!("{owner} allows {limit} connections, and this process opens up to {needed} ({are})"),
            "requests and batches wait for connections that nobody gets",
            "raise max_connections, or the CONNECTION LIMIT of the role or the database, or lower DB_POOL_SIZE",
        )
    })
}

fn session(facts: &Facts) -> Option<Fault> {
    let reason = facts.kept_settings.as_ref().err()?;
    Some(Fault::error(
        reason.clone(),
        "without its settings a session waits for ever, and its writes are announced twice",
        "connect to PostgreSQL itself, or to a pooler in session mode",
    ))
}

fn listen(facts: &Facts) -> Option<Fault> {
    let reason = facts.heard_notification.as_ref()?.as_ref().err()?;
    Some(Fault::error(
        format!("notifications of other sessions do not arrive through this address: {reason}"),
        "the api's cache hears of no change, so every read goes to the database",
        "connect to PostgreSQL itself, or to a pooler in session mode",
    ))
}

fn notify_queue(facts: &Facts) -> Option<Fault> {
    (facts.queue_usage > MAX_QUEUE_USAGE).then(|| {
        Fault::warning(
            format!("the queue of notifications is {:.0} % full", facts.queue_usage * 100.0),
            "when it is full, nothing can be stored",
            "find the session that LISTENs in an open transaction, by the oldest xact_start in pg_stat_activity, and end it",
        )
    })
}

fn isolation(facts: &Facts) -> Option<Fault> {
    (facts.isolation != "read committed").then(|| {
        Fault::error(
            format!("default_transaction_isolation is {}", facts.isolation),
            "after waiting for a lock, transactions fail instead of seeing the new row",
            "reset it for the role, the database and the server: RESET default_transaction_isolation",
        )
    })
}

fn replication_role(facts: &Facts) -> Option<Fault> {
    (facts.replication_role != "origin").then(|| {
        Fault::error(
            format!("session_replication_role is {}", facts.replication_role),
            "triggers do not fire, so rewinds are not guarded and changes by hand are not announced",
            "reset it for the role, the database and the server: RESET session_replication_role",
        )
    })
}

fn triggers(facts: &Facts) -> Option<Fault> {
    (!facts.disabled_triggers.is_empty()).then(|| {
        Fault::warning(
            format!(
                "these triggers of orders are disabled: {}",
                facts.disabled_triggers
            ),
            "changes by hand are neither checked nor announced, so caches become wrong",
            "ALTER TABLE orders ENABLE TRIGGER ALL, and then `ingestor new-history`",
        )
    })
}

fn synchronous_commit(facts: &Facts) -> Option<Fault> {
    (facts.synchronous_commit == "off").then(|| {
        Fault::warning(
            "synchronous_commit is off",
            "after a crash of the server, writes are lost that clients were told are stored",
            "set it to on, for the role, the database or the server",
        )
    })
}

fn wal_compression(facts: &Facts) -> Option<Fault> {
    matches!(facts.wal_compression.as_str(), "on" | "pglz").then(|| {
        Fault::advice(
            format!("wal_compression is {}", facts.wal_compression),
            "pglz costs several times what storing an order costs",
            "set it to off, or to lz4 if the volume of the log matters",
        )
    })
}

fn clock(facts: &Facts) -> Option<Fault> {
    let ahead = facts.clock_ahead;
    (ahead.abs() > MAX_CLOCK_DIFFERENCE).then(|| {
        let direction = if ahead > 0.0 { "ahead of" } else { "behind" };
        Fault::warning(
            format!("the server's clock is {:.1} s {direction} this machine's", ahead.abs()),
            "the times of deletions and messages are compared, and the ages in metrics and alerts are wrong",
            "synchronise both clocks (NTP)",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    /// A database without a fault.
    fn healthy() -> Facts {
        Facts {
            version: "15.18".to_owned(),
            version_number: 150_018,
            is_standby: false,
            is_read_only: false,
            encoding: "UTF8".to_owned(),
            isolation: "read committed".to_owned(),
            replication_role: "origin".to_owned(),
            synchronous_commit: "on".to_owned(),
            wal_compression: "off".to_owned(),
            connection_limits: [("the server", 97), ("the role", -1), ("the database", -1)],
            needed_connections: (14, "DB_POOL_SIZE and 6 more"),
            is_superuser: false,
            queue_usage: 0.0,
            disabled_triggers: String::new(),
            clock_ahead: 0.0,
            kept_settings: Ok(()),
            heard_notification: Some(Ok(())),
            pending_migrations: Some(Ok(Vec::new())),
            lacking_rights: String::new(),
        }
    }

    fn found(facts: &Facts) -> Vec<(&'static str, Severity)> {
        let found = CHECKS
            .iter()
            .filter_map(|(name, look)| Some((*name, look(facts)?.severity)));
        found.collect()
    }

    #[test]
    fn each_fault_is_found_alone() {
        assert_eq!(found(&healthy()), []);
        type Break = fn(&mut Facts);
        let cases: [(Break, &str, Severity); 19] = [
            (
                |facts| facts.version_number = 130_022,
                "postgres.version",
                Severity::Error,
            ),
            (
                |facts| facts.is_standby = true,
                "postgres.primary",
                Severity::Error,
            ),
            (
                |facts| facts.is_read_only = true,
                "postgres.primary",
                Severity::Error,
            ),
            (
                |facts| facts.encoding = "LATIN1".to_owned(),
                "postgres.encoding",
                Severity::Error,
            ),
            (
                |facts| facts.pending_migrations = Some(Ok(vec!["one".to_owned()])),
                "postgres.schema",
                Severity::Error,
            ),
            (
                |facts| facts.pending_migrations = Some(Err("no".to_owned())),
                "postgres.schema",
                Severity::Error,
            ),
            (
                |facts| facts.lacking_rights = "INSERT on orders".to_owned(),
                "postgres.rights",
                Severity::Error,
            ),
            (
                |facts| facts.is_superuser = true,
                "postgres.superuser",
                Severity::Advice,
            ),
            (
                |facts| facts.connection_limits[0].1 = 13,
                "postgres.connections",
                Severity::Error,
            ),
            (
                |facts| facts.connection_limits[1].1 = 0,
                "postgres.connections",
                Severity::Error,
            ),
            (
                |facts| facts.kept_settings = Err("lost".to_owned()),
                "postgres.session",
                Severity::Error,
            ),
            (
                |facts| facts.heard_notification = Some(Err("none".to_owned())),
                "postgres.listen",
                Severity::Error,
            ),
            (
                |facts| facts.queue_usage = 0.06,
                "postgres.notify_queue",
                Severity::Warning,
            ),
            (
                |facts| facts.isolation = "serializable".to_owned(),
                "postgres.isolation",
                Severity::Error,
            ),
            (
                |facts| facts.replication_role = "replica".to_owned(),
                "postgres.replication_role",
                Severity::Error,
            ),
            (
                |facts| facts.disabled_triggers = "orders_truncate".to_owned(),
                "postgres.triggers",
                Severity::Warning,
            ),
            (
                |facts| facts.synchronous_commit = "off".to_owned(),
                "postgres.synchronous_commit",
                Severity::Warning,
            ),
            (
                |facts| facts.wal_compression = "pglz".to_owned(),
                "postgres.wal_compression",
                Severity::Advice,
            ),
            (
                |facts| facts.clock_ahead = -3.0,
                "postgres.clock",
                Severity::Warning,
            ),
        ];
        for (damage, check, severity) in cases {
            let mut facts = healthy();
            damage(&mut facts);
            assert_eq!(found(&facts), [(check, severity)]);
        }
        // Every check has been seen to find something.
        for (check, _) in CHECKS {
            assert!(cases.iter().any(|(_, found, _)| *found == check), "{check}");
        }
    }

    #[test]
    fn what_was_not_looked_at_is_no_fault() {
        let facts = Facts {
            heard_notification: None,
            pending_migrations: None,
            ..healthy()
        };
        assert_eq!(found(&facts), []);
    }
}
