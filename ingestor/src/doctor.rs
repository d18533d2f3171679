//! `ingestor doctor`: what the ingestor needs of its machine, of PostgreSQL and of Kafka.

mod checks;
mod survey;

use anyhow::Context;
use chrono::TimeDelta;
use shared::db;
use shared::db::rights::Role;
use shared::doctor::postgres::{self, Needs};
use shared::doctor::{Check, Fault, Report, machine};

use crate::config::{APPLICATION_NAME, Days, Settings};
use crate::offsets::OffsetRow;
use crate::offsets::operators;
use crate::writer::WRITERS;
use checks::{CHECKS, Known};
use survey::Survey;

/// The files besides connections to clients of the operators' port: Kafka, PostgreSQL, and what the process has open anyway.
const FILES: usize = 256;

/// What the daemon needs of its machine.
const MACHINE_CHECKS: [Check<Settings>; 2] = [
    ("machine.open_files", open_files),
    ("machine.memory", memory),
];

/// Checks everything, and prints what it finds. `longest_stop` is how long the daemon may stand still at most.
///
/// # Errors
/// Returns one line if something must be mended.
pub async fn doctor(settings: Settings, longest_stop: Days, as_json: bool) -> anyhow::Result<()> {
    let mut report = Report::new("ingestor", env!("CARGO_PKG_VERSION"));
    report.run(&MACHINE_CHECKS, &settings);
    let found = machine::port(&settings.ops_address, "INGESTOR_PORT").await;
    report.note("machine.port", found);
    postgres::examine(&mut report, &settings.database, needs(&settings)).await;
    examine_kafka(&mut report, settings, longest_stop).await?;
    report.print(as_json)
}

fn needs(settings: &Settings) -> Needs {
    let others = 1
        + i64::from(settings.kafka.dlq_topic.is_some())
        + i64::from(settings.dead_letter_retention_days.is_some());
    Needs {
        role: Role::Ingestor,
        connections: WRITERS as i64 + others,
        connections_are: "writers, the watch, the relay and retention",
    }
}

fn open_files(_: &Settings) -> Option<Fault> {
    machine::open_files(FILES, "Kafka, PostgreSQL and the operators' port", "")
}

/// `INGEST_MEMORY_MB` is a target, and what the topic's messages unpack to comes on top.
fn memory(settings: &Settings) -> Option<Fault> {
    let target = settings.memory.total_bytes as u64;
    machine::memory(target.saturating_mul(2), "INGEST_MEMORY_MB")
}

/// Kafka's clients block, and so does the connection to the database.
async fn examine_kafka(
    report: &mut Report,
    settings: Settings,
    longest_stop: Days,
) -> anyhow::Result<()> {
    let survey = Survey::make(&settings.kafka).await?;
    let survey = match survey {
        Ok(survey) => survey,
        Err(fault) => {
            report.note("kafka.topic", Some(fault));
            report.skip(&CHECKS, "the topic was not reached");
            return Ok(());
        }
    };
    report.note("kafka.topic", None);
    let stored = tokio::task::spawn_blocking(move || stored_progress(&settings))
        .await
        .context("looking at the offsets panicked")?;
    let known = Known {
        survey,
        stored,
        longest_stop: TimeDelta::days(longest_stop.count().into()),
    };
    report.run(&CHECKS, &known);
    Ok(())
}

/// What the database has of the group and of others; `None` if it cannot tell, which other checks find.
fn stored_progress(settings: &Settings) -> Option<Progress> {
    let consumer = settings.kafka.new_consumer();
    let mut connection = db::connect_blocking(&settings.database, APPLICATION_NAME).ok()?;
    Some(Progress {
        rows: operators::list(&mut connection, &consumer).ok()?,
        groups: operators::groups_of_topic(&mut connection, &consumer.topic).ok()?,
    })
}

/// How far a topic was read, according to the database.
struct Progress {
    /// The group's rows.
    rows: Vec<OffsetRow>,
    /// Every group that has rows for the topic.
    groups: Vec<String>,
}
