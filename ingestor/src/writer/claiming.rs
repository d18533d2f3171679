//! A writer claims a partition: it compares the partition's row with what the brokers hold.
//!
//! The brokers may take seconds to answer, and for a partition without a leader they never do. So each claim asks them on a
//! thread of its own, which ends with the answer. Meanwhile the writer goes on with other partitions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tracing::info;

use super::job::{Answer, ClaimJob, Due, Hold};
use super::trouble::Trouble;
use super::{Message, Report, Writer};
use crate::kafka::Probe;
use crate::offsets::{self, ClaimOutcome, Glimpse, LOCK_PATIENCE, Patience, Sighting, Standing};
use crate::record::{Partition, Reading};
use crate::witnesses::Witness;

/// The time between two looks at watermarks that do not match.
const DOUBT_INTERVAL: Duration = Duration::from_secs(3);

/// A question for the brokers.
enum Question {
    /// Where every partition begins. It is asked if the partition has no row yet.
    Lows,
    /// What they hold of a partition with this row, and whether this record that was read still exists.
    Sighting(Glimpse, Option<Witness>),
}

impl Question {
    /// Asks the brokers, and waits for the answer.
    ///
    /// The client remembers for minutes that a partition has no leader, and answers from that (librdkafka 2.12,
    /// `rd_kafka_topic_partition_list_get_leaders`). A question that is repeated therefore begins with new metadata.
    fn ask(
        &self,
        probe: &Probe,
        partition: Partition,
        is_repeated: bool,
    ) -> Result<Answer, Trouble> {
        if is_repeated {
            probe.partitions()?;
        }
        Ok(match self {
            Self::Lows => {
                let mut lows = Vec::new();
                for number in probe.partitions()? {
                    lows.push((number, probe.watermarks(number)?.low));
                }
                Answer::Lows(lows)
            }
            Self::Sighting(glimpse, held) => {
                Answer::Sighting(Sighting::take(probe, partition, glimpse, held.as_slice())?)
            }
        })
    }
}

/// The outcome of a step of a claim.
enum Step {
    /// The brokers are asked.
    Asked,
    /// The row was created, and is looked at again.
    Created,
    Settled(ClaimOutcome),
}

impl Writer {
    /// Takes one step of a claim. Returns when the next one is due; `None` if the partition is claimed, stopped, or not ours to
    /// claim any more.
    pub(super) fn claim(&mut self, job: &mut ClaimJob, hold: &mut Hold) -> Option<Due> {
        const DOING: &str = "claim a partition";
        let started_at = Instant::now();
        let reading = job.reading;
        if !self.context.board.is_current(reading) {
            return None;
        }
        let outcome = match self.try_claim(job, hold.has_failed) {
            Ok(Step::Asked) => {
                hold.row_is_free();
                return Some(Due::WithAnswer);
            }
            Ok(Step::Created) => return Some(Due::now()),
            Ok(Step::Settled(outcome)) => outcome,
            Err(trouble) => {
                // By the next attempt an answer may be too old.
                job.answer = None;
                return Some(self.in_trouble(reading, &trouble, DOING, hold, started_at));
            }
        };
        self.healthy();
        match outcome {
            ClaimOutcome::Locked => {
                let due = self.wait_for_row(reading, Patience::EndOurs, DOING, hold);
                if (hold.locked_since).is_none_or(|since| since.elapsed() >= LOCK_PATIENCE) {
                    // The brokers' answer is too old. They are asked again when the row is free.
                    job.answer = None;
                }
                Some(due)
            }
            ClaimOutcome::Doubtful => {
                job.is_confirmed = true;
                Some(Due::after(DOUBT_INTERVAL))
            }
            ClaimOutcome::Claimed(claim) => {
                info!(
                    kafka.partition = reading.partition.0,
                    kafka.offset = claim.next_offset.0,
                    epoch = claim.epoch.0,
                    "claimed"
                );
                self.context.board.claimed(reading, &claim);
                self.report(Report::Claimed(reading, claim));
                None
            }
            ClaimOutcome::Stopped(reason) => {
                self.report(Report::Stopped(reading, reason));
                None
            }
            ClaimOutcome::Incident(reason) => {
                self.context.metrics.offset_incidents.inc();
                self.report(Report::Stopped(reading, reason));
                None
            }
            ClaimOutcome::Missing => Some(Due::now()),
        }
    }

    fn try_claim(&mut self, job: &mut ClaimJob, is_repeated: bool) -> Result<Step, Trouble> {
        let partition = job.reading.partition;
        let consumer = &self.context.consumer;
        let connection = self.connection.get()?;
        match job.answer.take().transpose()? {
            Some(Answer::Sighting(sighting)) => {
                let is_confirmed = job.is_confirmed;
                let outcome =
                    offsets::claim(connection, consumer, partition, &sighting, is_confirmed)?;
                if outcome == ClaimOutcome::Locked {
                    job.answer = Some(Ok(Answer::Sighting(sighting)));
                }
                return Ok(Step::Settled(outcome));
            }
            Some(Answer::Lows(lows)) => {
                let refusal = offsets::initialise(connection, consumer, &lows)?;
                return Ok(refusal.map_or(Step::Created, |reason| {
                    Step::Settled(ClaimOutcome::Stopped(reason))
                }));
            }
            None => {}
        }
        if offsets::is_row_held(connection, consumer, partition)? {
            return Ok(Step::Settled(ClaimOutcome::Locked));
        }
        let question = match offsets::standing(connection, consumer, partition)? {
            Standing::Stopped(reason) => {
                return Ok(Step::Settled(ClaimOutcome::Stopped(reason)));
            }
            Standing::Missing => Question::Lows,
            Standing::Claimable(glimpse) => {
                let held = (self.context.board).held_witness(partition, glimpse.incarnation);
                Question::Sighting(glimpse, held)
            }
        };
        self.ask(job.reading, question, is_repeated)?;
        Ok(Step::Asked)
    }

    /// Asks the brokers on a thread of its own.
    fn ask(&self, reading: Reading, question: Question, is_repeated: bool) -> anyhow::Result<()> {
        let probe = Arc::clone(&self.context.probe);
        let messages_tx = self.messages_tx.clone();
        std::thread::Builder::new()
            .name(format!("claim-{}", reading.partition))
            .spawn(move || {
                let answer = question.ask(&probe, reading.partition, is_repeated);
                // The writer is gone only when the process ends.
                messages_tx.send(Message::Answer(reading, answer)).ok();
            })
            .context("cannot start a thread that asks the brokers")?;
        Ok(())
    }
}
