//! `ingestor offsets show` prints a table for people or JSON for programs.

use anyhow::Context;
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use super::Operator;
use crate::kafka::LogRange;
use crate::offsets::{Incident, OffsetRow, open_incident};

/// Everything that is known of a partition.
struct Shown {
    row: OffsetRow,
    /// None if no broker tells it.
    log: Option<LogRange>,
    incident: Option<Incident>,
}

impl Shown {
    fn lag_records(&self) -> Option<i64> {
        Some(self.log?.lag_records(self.row.next_offset))
    }

    fn unstable_records(&self) -> Option<i64> {
        Some(self.log?.unstable_records(self.row.next_offset))
    }

    /// The longest time that the oldest waiting record may have waited: the time since the last stored record. `None` if
    /// that is not known.
    fn lag_seconds(&self) -> Option<f64> {
        if self.lag_records()? == 0 {
            return Some(0.0);
        }
        let age_ms = Utc::now().timestamp_millis() - self.row.last_timestamp?;
        Some(age_ms.max(0) as f64 / 1000.0)
    }
}

impl Operator {
    pub(super) fn show(&mut self, as_json: bool) -> anyhow::Result<()> {
        let rows = self.rows()?;
        // Asked first: if the brokers are away, that costs one timeout, not one per partition.
        let (of_topic, trouble) = match self.probe.partitions() {
            Ok(partitions) => (partitions, None),
            Err(error) => (Vec::new(), Some(format!("{error:#}"))),
        };
        let mut partitions = Vec::new();
        for row in rows {
            let log = if of_topic.contains(&row.partition) {
                self.probe.log_range(row.partition).ok()
            } else {
                None
            };
            partitions.push(Shown {
                incident: open_incident(&mut self.connection, &self.consumer, row.partition)?,
                log,
                row,
            });
        }
        if as_json {
            let document = json!({
                "group_id": self.consumer.group_id,
                "topic": self.consumer.topic,
                "broker_error": trouble,
                "partitions": partitions.iter().map(to_json).collect::<Vec<_>>(),
            });
            let text = serde_json::to_string_pretty(&document).context("cannot print JSON")?;
            println!("{text}");
        } else {
            print!("{}", to_table(&partitions));
            if let Some(trouble) = trouble {
                println!("the lag is not known: {trouble}");
            }
        }
        Ok(())
    }
}

fn to_json(shown: &Shown) -> Value {
    let row = &shown.row;
    json!({
        "partition": row.partition.0,
        "next_offset": row.next_offset.0,
        "low_watermark": shown.log.map(|log| log.low.0),
        "last_stable_offset": shown.log.map(|log| log.last_stable.0),
        "high_watermark": shown.log.map(|log| log.high.0),
        "lag_records": shown.lag_records(),
        "unstable_records": shown.unstable_records(),
        "lag_seconds": shown.lag_seconds(),
        "epoch": row.epoch.0,
        "owner": row.owner.map(|owner| owner.to_string()),
        "incarnation": row.incarnation.0,
        "last_offset": row.last_offset.map(|offset| offset.0),
        "last_timestamp_ms": row.last_timestamp,
        "consecutive_bad": row.consecutive_bad,
        "halted": row.halted,
        "replay_until": row.replay_until.map(|offset| offset.0),
        "doubt_until": row.doubt_until.map(|offset| offset.0),
        "doubt_timestamp_ms": row.doubt_timestamp,
        "updated_at": row.updated_at.to_rfc3339_opts(SecondsFormat::Millis, true),
        "incident": shown.incident.as_ref().map(|incident| json!({
            "id": incident.id,
            "kind": incident.kind,
            "next_offset": incident.next_offset.0,
            "low_watermark": incident.low_watermark.0,
            "high_watermark": incident.high_watermark.0,
            "resume_offset": incident.resume_offset.map(|offset| offset.0),
            "detail": incident.detail,
            "detected_at": incident.detected_at.to_rfc3339_opts(SecondsFormat::Millis, true),
        })),
    })
}

/// The columns of the table, and the members of [`to_json`] that they show.
const COLUMNS: [(&str, &str); 15] = [
    ("PARTITION", "partition"),
    ("NEXT_OFFSET", "next_offset"),
    ("LOW", "low_watermark"),
    ("HIGH", "high_watermark"),
    ("LAG", "lag_records"),
    ("LAG_SECONDS", "lag_seconds"),
    ("EPOCH", "epoch"),
    ("OWNER", "owner"),
    ("INCARNATION", "incarnation"),
    ("LAST_OFFSET", "last_offset"),
    ("LAST_TIMESTAMP", "last_timestamp_ms"),
    ("BAD_IN_A_ROW", "consecutive_bad"),
    ("HALTED", "halted"),
    ("REPLAY_UNTIL", "replay_until"),
    ("UPDATED_AT", "updated_at"),
];

/// Each column is as wide as its widest value. `-` means that a value is not known or not set. Open transactions and incidents
/// follow below.
fn to_table(partitions: &[Shown]) -> String {
    let mut lines = vec![COLUMNS.map(|(title, _)| title.to_owned())];
    lines.extend(partitions.iter().map(|shown| {
        let document = to_json(shown);
        COLUMNS.map(|(_, member)| to_cell(member, &document[member]))
    }));
    let mut widths = [0; COLUMNS.len()];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.len().max(*width);
        }
    }
    let mut table = String::new();
    for line in lines {
        let cells: Vec<String> = line
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        table.push_str(cells.join("  ").trim_end());
        table.push('\n');
    }
    for shown in partitions {
        if let (Some(log), Some(records @ 1..)) = (shown.log, shown.unstable_records()) {
            table.push_str(&format!(
                "partition {}: {records} records wait behind an open transaction, which begins at offset {}\n",
                shown.row.partition, log.last_stable
            ));
        }
        if let Some(incident) = &shown.incident {
            table.push_str(&format!(
                "partition {} has waited since {}: {}: {}\n",
                shown.row.partition,
                incident
                    .detected_at
                    .to_rfc3339_opts(SecondsFormat::Secs, true),
                incident.kind,
                incident.detail
            ));
        }
    }
    table
}

fn to_cell(member: &str, value: &Value) -> String {
    match (member, value) {
        (_, Value::Null) => "-".to_owned(),
        (_, Value::String(text)) => text.clone(),
        (_, Value::Bool(is_set)) => if *is_set { "yes" } else { "no" }.to_owned(),
        ("lag_seconds", seconds) => format!("{:.1}", seconds.as_f64().unwrap_or_default()),
        ("last_timestamp_ms", ms) => (ms.as_i64())
            .and_then(DateTime::<Utc>::from_timestamp_millis)
            .map_or_else(
                || "-".to_owned(),
                |time| time.to_rfc3339_opts(SecondsFormat::Millis, true),
            ),
        (_, number) => number.to_string(),
    }
}
