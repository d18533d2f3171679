//! `ingestor offsets show|init|accept-gap|rewind|resume`.
//!
//! A daemon may run meanwhile. Every change fences it, and it continues from the changed row within seconds.

mod show;

use anyhow::{Context, bail};
use diesel::PgConnection;

use super::confirm::confirm;
use super::operator_connection;
use crate::config::{How, OffsetsCommand, Settings, Start, Which};
use crate::kafka::{Probe, Watermarks};
use crate::offsets::acceptance::Decision;
use crate::offsets::operators::{self, Changes};
use crate::offsets::{OffsetRow, Sighting, open_incident};
use crate::record::{Consumer, Offset, Partition};

pub(super) async fn offsets(settings: Settings, command: OffsetsCommand) -> anyhow::Result<()> {
    super::with_operator_checks(settings, move |settings| execute(settings, command)).await
}

fn execute(settings: &Settings, command: OffsetsCommand) -> anyhow::Result<()> {
    let mut operator = Operator {
        connection: operator_connection(settings)?,
        probe: Probe::new(&settings.kafka)?,
        consumer: settings.kafka.new_consumer(),
    };
    match command {
        OffsetsCommand::Show { json } => operator.show(json),
        OffsetsCommand::Init {
            from,
            partition,
            yes,
        } => operator.init(from, partition, yes),
        OffsetsCommand::AcceptGap {
            partition,
            how,
            yes,
        } => operator.accept_gap(partition, decision(&how), yes),
        OffsetsCommand::Rewind { which, to, yes } => operator.rewind(&which, to, yes),
        OffsetsCommand::Resume { which, yes } => operator.resume(&which, yes),
    }
}

fn decision(how: &How) -> Decision {
    match how.resume_at {
        Some(offset) => Decision::ResumeAt(offset),
        None if how.new_topic => Decision::NewTopic,
        None => Decision::AsRecorded,
    }
}

struct Operator {
    connection: PgConnection,
    probe: Probe,
    consumer: Consumer,
}

impl Operator {
    /// Returns the group's rows, or an error if there are none.
    fn rows(&mut self) -> anyhow::Result<Vec<OffsetRow>> {
        let rows = operators::list(&mut self.connection, &self.consumer)?;
        if rows.is_empty() {
            let Consumer {
                group_id, topic, ..
            } = &self.consumer;
            let others = operators::groups_of_topic(&mut self.connection, topic)?;
            let hint = if others.is_empty() {
                "no group has".to_owned()
            } else {
                format!("these groups have: {}", others.join(", "))
            };
            bail!(
                "group {group_id} has not read topic {topic} yet ({hint}); see KAFKA_GROUP_ID and KAFKA_TOPIC"
            );
        }
        Ok(rows)
    }

    fn rows_of(&mut self, which: &Which) -> anyhow::Result<Vec<OffsetRow>> {
        let mut rows = self.rows()?;
        if let Some(partition) = which.partition {
            rows.retain(|row| row.partition == partition);
            if rows.is_empty() {
                bail!("partition {partition} has not been read yet; see `ingestor offsets show`");
            }
        }
        Ok(rows)
    }

    fn watermarks(&self, partition: Partition) -> anyhow::Result<Watermarks> {
        self.probe.watermarks(partition).with_context(|| {
            format!("the brokers did not tell which offsets partition {partition} holds")
        })
    }

    fn init(&mut self, from: Start, partition: Option<Partition>, yes: bool) -> anyhow::Result<()> {
        let topic = self.consumer.topic.clone();
        let mut partitions = self.probe.partitions()?;
        partitions.sort_unstable();
        if let Some(partition) = partition {
            if !partitions.contains(&partition) {
                bail!("topic {topic} has no partition {partition}");
            }
            partitions = vec![partition];
        }
        let mut starts = Vec::new();
        let mut plan = Vec::new();
        for partition in partitions {
            let Watermarks { low, high } = self.watermarks(partition)?;
            let start = match from {
                Start::Earliest => low,
                Start::Latest => high,
                Start::Offset(offset) if (low..=high).contains(&offset) => offset,
                Start::Offset(offset) => bail!(
                    "partition {partition} holds offsets {low}..{high}, and {offset} is not one of them"
                ),
            };
            starts.push((partition, start));
            plan.push(format!(
                "partition {partition} starts at offset {start} (the broker holds {low}..{high})"
            ));
        }
        let note = if partition.is_some() {
            "\nthe other partitions of the topic are read from offset 0"
        } else {
            ""
        };
        let question = format!(
            "group {} on topic {topic}:\n{}{note}\nearlier records are never read; later ones replace orders, even if these \
             were changed or deleted since",
            self.consumer.group_id,
            plan.join("\n")
        );
        confirm(&question, yes)?;
        operators::init(&mut self.connection, &self.consumer, &starts)?;
        println!("{}", plan.join("\n"));
        Ok(())
    }

    fn accept_gap(
        &mut self,
        partition: Partition,
        decision: Decision,
        yes: bool,
    ) -> anyhow::Result<()> {
        let Some(incident) = open_incident(&mut self.connection, &self.consumer, partition)? else {
            bail!(
                "partition {partition} of topic {} has no open incident for group {}; see `ingestor offsets show`",
                self.consumer.topic,
                self.consumer.group_id
            );
        };
        let from = match (decision, incident.resume_offset) {
            (Decision::AsRecorded, Some(offset)) => offset,
            (Decision::AsRecorded, None) => bail!(
                "partition {partition}, incident {} ({}): {}",
                incident.id,
                incident.kind,
                incident.detail
            ),
            (Decision::NewTopic, _) => incident.low_watermark,
            (Decision::ResumeAt(offset), _) => {
                let Watermarks { low, high } = self.watermarks(partition)?;
                if !(low..=high).contains(&offset) {
                    bail!(
                        "partition {partition} holds offsets {low}..{high}, and {offset} is not one of them"
                    );
                }
                offset
            }
        };
        let question = format!(
            "partition {partition}, incident {} ({}): {}\nreading continues at offset {from}. {}",
            incident.id,
            incident.kind,
            incident.detail,
            self.warning(partition, from)?
        );
        confirm(&question, yes)?;
        let accepted = operators::accept_gap(
            &mut self.connection,
            &self.consumer,
            partition,
            &incident,
            decision,
        )?;
        println!(
            "partition {partition}: accepted incident {} ({}); it was at offset {}, the broker held {}..{}, and it continues \
             at {} as incarnation {}",
            incident.id,
            incident.kind,
            incident.next_offset,
            incident.low_watermark,
            incident.high_watermark,
            accepted.next_offset,
            accepted.incarnation
        );
        Ok(())
    }

    /// How many writes by the api the records from an offset may touch.
    fn warning(&mut self, partition: Partition, from: Offset) -> anyhow::Result<String> {
        let first = self.probe.first_record_from(partition, from)?;
        let since_ms = first.and_then(|record| record.position.timestamp_ms);
        let Changes { put, removed } = operators::changes_since(&mut self.connection, since_ms)?;
        Ok(format!(
            "Since the first of these records was produced, {put} orders were last written by a PUT, and {removed} were deleted or \
             erased. A record that may have been read before replaces none of the former, but becomes a dead letter in state \
             superseded; only a record that is later than a deletion brings an order back"
        ))
    }

    fn rewind(&mut self, which: &Which, to: Start, yes: bool) -> anyhow::Result<()> {
        let mut targets = Vec::new();
        let mut plan = Vec::new();
        for row in self.rows_of(which)? {
            let (partition, next_offset) = (row.partition, row.next_offset);
            let low = self.check_is_the_same_log(&row)?;
            let target = match to {
                Start::Offset(offset) if offset < low => bail!(
                    "the records of partition {partition} below offset {low} no longer exist; give `--to earliest`"
                ),
                Start::Offset(offset) => offset,
                Start::Earliest | Start::Latest => low,
            };
            operators::check_rewind(&mut self.connection, &self.consumer, &row, target)?;
            if target == next_offset {
                println!("partition {partition} is already at offset {target}");
                continue;
            }
            targets.push((partition, target));
            plan.push(format!(
                "partition {partition} goes back from offset {next_offset} to {target}"
            ));
        }
        if targets.is_empty() {
            return Ok(());
        }
        let question = format!(
            "{}\nthese records are read again: an order that is newer than its record is kept, and one that was \
             deleted through the api or erased since stays away",
            plan.join("\n")
        );
        confirm(&question, yes)?;
        operators::rewind(&mut self.connection, &self.consumer, &targets)?;
        println!("{}", plan.join("\n"));
        Ok(())
    }

    /// Checks the log and returns its low watermark. Records of another log are not read again as a replay.
    fn check_is_the_same_log(&mut self, row: &OffsetRow) -> anyhow::Result<Offset> {
        let partition = row.partition;
        let sighting =
            Sighting::take(&self.probe, partition, &row.glimpse(), &[]).with_context(|| {
                format!("the brokers did not tell what partition {partition} holds")
            })?;
        let Watermarks { low, high } = sighting.watermarks;
        if sighting.change.is_some() {
            bail!(
                "partition {partition} is at offset {}, but its log was cut or its topic was made anew (it holds {low}..{high}): \
                 a running ingestor records that as an incident, which `ingestor offsets accept-gap` accepts",
                row.next_offset
            );
        }
        Ok(low)
    }

    fn resume(&mut self, which: &Which, yes: bool) -> anyhow::Result<()> {
        let (halted, running): (Vec<_>, Vec<_>) =
            self.rows_of(which)?.into_iter().partition(|row| row.halted);
        for row in running {
            println!("partition {} is not halted", row.partition);
        }
        if halted.is_empty() {
            return Ok(());
        }
        let plan: Vec<String> = halted
            .iter()
            .map(|row| {
                format!(
                    "partition {} continues at offset {}, after {} bad messages in a row",
                    row.partition, row.next_offset, row.consecutive_bad
                )
            })
            .collect();
        let plan = plan.join("\n");
        confirm(&plan, yes)?;
        let partitions: Vec<Partition> = halted.iter().map(|row| row.partition).collect();
        operators::resume(&mut self.connection, &self.consumer, &partitions)?;
        println!("{plan}");
        Ok(())
    }
}
