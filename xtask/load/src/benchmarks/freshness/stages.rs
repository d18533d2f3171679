//! Where the time of new orders goes. The stages lie between marks that cost nothing while orders stream: the broker notes
//! when it has appended a message, and PostgreSQL notes when a transaction began and when it wrote its commit record.

use std::collections::HashMap;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, Text, Timestamptz};

use super::floor::Floor;
use super::log::Appended;
use super::rival::Heard;
use super::table;
use super::watcher::Sighting;
use crate::benchmarks::clock::{Clock, ms};
use crate::benchmarks::times::Times;

/// Reads the marks of orders that no later message has changed. The transaction that wrote such a row has inserted it.
const MARKS: &str =
    "SELECT order_uid, created_at AS begun_at, pg_xact_commit_timestamp(xmin) AS committed_at
    FROM orders WHERE order_uid = ANY($1) AND updated_at = created_at";

#[derive(QueryableByName)]
struct Marks {
    #[diesel(sql_type = Text)]
    order_uid: String,
    #[diesel(sql_type = Timestamptz)]
    begun_at: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    committed_at: DateTime<Utc>,
}

/// Prints how long each stage took, and how long it takes without ingestor and api.
pub(super) fn print(
    connection: &mut PgConnection,
    clock: Clock,
    sightings: &[Vec<Sighting>],
    log: &[Appended],
    heard: &Heard,
    floor: &Floor,
) -> anyhow::Result<()> {
    let all = sightings.first().map_or(&[][..], Vec::as_slice);
    let uids: Vec<&str> = all.iter().map(|sighting| sighting.uid.as_str()).collect();
    let marks: Vec<Marks> = diesel::sql_query(MARKS)
        .bind::<Array<Text>, _>(uids)
        .load(connection)
        .context(
            "cannot read commit times: PostgreSQL must run with track_commit_timestamp = on",
        )?;
    let marks: HashMap<&str, &Marks> = (marks.iter())
        .map(|marks| (marks.order_uid.as_str(), marks))
        .collect();
    // The first message of an order has created it.
    let mut appended: HashMap<&str, i64> = HashMap::new();
    for message in log {
        appended
            .entry(&message.key)
            .or_insert(message.appended_at_ms);
    }
    let mut stages: Vec<Vec<f64>> = vec![Vec::new(); 4 + sightings.len()];
    for (index, sighting) in all.iter().enumerate() {
        let Some(marks) = marks.get(sighting.uid.as_str()) else {
            continue;
        };
        let heard_at = heard.first(&sighting.uid, sighting.begun_at);
        let appended_at_ms = appended.get(sighting.uid.as_str());
        let ends = [
            clock.ms(sighting.start),
            *appended_at_ms.context("Kafka's log lacks a message")? as f64,
            ms(marks.begun_at),
            ms(marks.committed_at),
            clock.ms(heard_at.context("a change was not notified")?),
        ];
        for (stage, pair) in stages.iter_mut().zip(ends.windows(2)) {
            stage.push(pair[1] - pair[0]);
        }
        for (stage, sightings) in stages[4..].iter_mut().zip(sightings) {
            stage.push(clock.ms(sightings[index].seen_at) - ends[4]);
        }
    }
    println!();
    println!("                                                milliseconds         bare");
    println!("new order, stage by stage    samples      p50      p99      max      p50      p99");
    let floors = floor.iter().map(Some).chain(std::iter::repeat(None));
    let names = [
        "  to Kafka's log",
        "  to BEGIN of its batch",
        "  to the commit record",
        "  to the notification",
    ];
    let answers = (1..).map(|number| format!("  to the answer of api {number}"));
    let names = names.map(str::to_owned).into_iter().chain(answers);
    for ((name, times), floor) in names.zip(stages).zip(floors) {
        table::print_stage(&name, &Times::of_ms(times), floor);
    }
    Ok(())
}
