//! How well the process is, for `/readyz` and `/health`.

use serde_json::{Value, json};

use super::{Board, Entry, Inner, Phase};

/// How well the process is, in the words of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Health {
    /// Everything works.
    Ok,
    /// The process works, but a partition is not read or is in trouble, or dead letters cannot be published.
    Degraded,
    /// The process does not work.
    Down,
}

impl Inner {
    /// Returns whether the database refuses something to every partition. Then it is not one partition's trouble.
    fn is_every_partition_refused(&self) -> bool {
        let is_refused = |entry: &Entry| {
            (entry.trouble.as_ref()).is_some_and(|trouble| trouble.is_refused_by_database)
        };
        !self.partitions.is_empty() && self.partitions.values().all(is_refused)
    }
}

impl Board {
    /// Returns how well the process is, and the checks that show it.
    pub fn health(&self) -> (Health, Value) {
        let inner = self.inner.lock();
        let is_database_ok = inner.is_database_seen
            && inner.troubled_writers.is_empty()
            && !inner.is_every_partition_refused();
        let are_all_well = (inner.partitions.values())
            .all(|entry| entry.state.is_well() && entry.trouble.is_none());
        let is_relay_ok = inner.relay_trouble.is_none();
        let health = match (inner.phase, is_database_ok, are_all_well && is_relay_ok) {
            (Phase::Running, true, true) => Health::Ok,
            (Phase::Running, true, false) => Health::Degraded,
            _ => Health::Down,
        };
        let partitions: Vec<Value> = (inner.partitions.iter())
            .map(|(partition, entry)| {
                let mut shown = json!({
                    "partition": partition.0,
                    "state": entry.state.as_str(),
                    "next_offset": entry.next_offset.map(|offset| offset.0),
                    "lag_records": entry.lag.map(|lag| lag.records),
                    "unstable_records": entry.lag.map(|lag| lag.unstable_records),
                });
                if let Some(trouble) = &entry.trouble {
                    shown["trouble"] = json!(trouble.reason);
                }
                shown
            })
            .collect();
        let checks = json!({
            "process": {"phase": <&str>::from(inner.phase)},
            "database": {"ok": is_database_ok},
            "partitions": partitions,
            "relay": {"ok": is_relay_ok, "reason": inner.relay_trouble},
        });
        (health, checks)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Cause, Trouble};
    use super::*;
    use crate::record::Partition;

    #[test]
    fn health_follows_phase_database_and_partitions() {
        let board = Board::default();
        assert_eq!(board.health().0, Health::Down);
        board.set_database_seen();
        board.set_running();
        let reading = board.begin_claim(Partition(0));
        assert_eq!(board.health().0, Health::Ok);
        board.start(reading);
        assert_eq!(board.health().0, Health::Ok);
        let other = board.begin_claim(Partition(1));
        board.pause(other, Cause::OffsetOutOfRange, Duration::ZERO);
        let (health, checks) = board.health();
        assert_eq!(health, Health::Degraded);
        let other = json!({
            "partition": 1,
            "state": "offset out of range",
            "next_offset": null,
            "lag_records": null,
            "unstable_records": null,
        });
        assert_eq!(checks["partitions"][1], other);
        board.release(Partition(1));
        board.set_relay_trouble(Some("topic dlq: Broker: Unknown topic".to_owned()));
        let (health, checks) = board.health();
        assert_eq!(health, Health::Degraded);
        let relay = r#"{"ok":false,"reason":"topic dlq: Broker: Unknown topic"}"#;
        assert_eq!(checks["relay"].to_string(), relay);
        board.set_relay_trouble(None);
        assert_eq!(board.health().0, Health::Ok);
        board.set_database_ok(0, false);
        board.set_database_ok(1, true);
        assert_eq!(
            board.health().0,
            Health::Down,
            "writer 0 is still in trouble"
        );
        board.set_database_ok(0, true);
        assert_eq!(board.health().0, Health::Ok);
        board.set_stopping();
        assert_eq!(board.health().0, Health::Down);
    }
    #[test]
    fn trouble_of_one_partition_is_not_the_databases_but_refusals_of_all_are() {
        let board = Board::default();
        board.set_database_seen();
        board.set_running();
        let readings = [0, 1].map(|number| board.begin_claim(Partition(number)));
        let trouble = |is_refused_by_database| Trouble {
            reason: "locked by psql".to_owned(),
            is_refused_by_database,
        };
        board.set_trouble(readings[0], trouble(true));
        let (health, checks) = board.health();
        assert_eq!(health, Health::Degraded);
        assert_eq!(checks["database"]["ok"], true);
        assert_eq!(checks["partitions"][0]["trouble"], "locked by psql");
        assert_eq!(checks["partitions"][1].get("trouble"), None);
        board.set_trouble(readings[1], trouble(false));
        assert_eq!(board.health().0, Health::Degraded);
        board.set_trouble(readings[1], trouble(true));
        assert_eq!(board.health().0, Health::Down);
        readings.iter().for_each(|reading| board.confirm(*reading));
        assert_eq!(board.health().0, Health::Ok);
    }
}
