//! Where the consumer reads, and whether it does.

use std::time::{Duration, Instant};

use anyhow::Context;
use rdkafka::Offset;
use rdkafka::consumer::Consumer as _;
use tracing::{debug, info};

use super::Poller;
use super::partition::State;
use crate::batch::Reading;
use crate::consumer::{check_each, partition_list};
use crate::failpoints::{self, Phase};
use crate::status::RUNNING;

/// A seek is served by the client's own thread.
const SEEK_TIMEOUT: Duration = Duration::from_secs(5);

impl Poller {
    /// Moves the consumer to the claimed offset and lets it fetch.
    pub(super) fn start_reading(
        &mut self,
        reading: Reading,
        next_offset: i64,
    ) -> anyhow::Result<()> {
        let number = reading.partition;
        failpoints::reached(Phase::Start);
        if let Some(partition) = self.partitions.get_mut(&number) {
            partition.start(reading, next_offset);
        }
        self.status.set_state(number, RUNNING);
        // While everything is paused this one stays so too, and is resumed with the others.
        if self.budget.is_paused() {
            return Ok(());
        }
        self.read_from(number, next_offset)
    }

    /// Lets a paused partition fetch from an offset.
    ///
    /// Resumed first and moved then: a resume alone does not wake the thread that fetches, which then sleeps for up to a
    /// second; a seek does, but only one to an offset above 0 (librdkafka 2.12, `rd_kafka_toppar_seek`).
    fn read_from(&self, number: i32, next_offset: i64) -> anyhow::Result<()> {
        self.resume(number)?;
        if next_offset == 0 {
            self.seek(number, 1)?;
        }
        self.seek(number, next_offset)
    }

    fn seek(&self, number: i32, offset: i64) -> anyhow::Result<()> {
        let target = || partition_list(&self.topic, [(number, Offset::Offset(offset))]);
        let sought = self
            .consumer
            .seek_partitions(target()?, SEEK_TIMEOUT)
            .and_then(|result| check_each(&result));
        if let Err(error) = sought {
            // After an error of the fetcher the partition is not started, and a seek fails: assign it anew.
            debug!(
                kafka.partition = number,
                "seek failed, assigning anew: {error}"
            );
            self.consumer
                .incremental_unassign(&target()?)
                .context("cannot unassign a partition")?;
            self.consumer
                .incremental_assign(&target()?)
                .context("cannot assign a partition")?;
        }
        Ok(())
    }

    pub(super) fn stop_reading(
        &mut self,
        reading: Reading,
        state: &str,
        retry_after: Duration,
    ) -> anyhow::Result<()> {
        let number = reading.partition;
        self.current.end(number);
        if let Some(partition) = self.partitions.get_mut(&number) {
            self.budget.free(partition.drop_batch());
            partition.state = State::Waiting {
                until: Instant::now() + retry_after,
            };
        }
        self.status.set_state(number, state);
        self.pause(number)
    }

    pub(super) fn pause(&self, number: i32) -> anyhow::Result<()> {
        let list = partition_list(&self.topic, [(number, Offset::Invalid)])?;
        self.consumer
            .pause(&list)
            .context("cannot pause a partition")
    }

    fn resume(&self, number: i32) -> anyhow::Result<()> {
        let list = partition_list(&self.topic, [(number, Offset::Invalid)])?;
        self.consumer
            .resume(&list)
            .context("cannot resume a partition")
    }

    /// Pauses or resumes everything that runs, where that is a change. Only when the database is away for long: a pause
    /// throws away what the client has fetched.
    pub(super) fn set_paused(&mut self, paused: bool) -> anyhow::Result<()> {
        if !self.budget.change_pause(paused) {
            return Ok(());
        }
        info!(paused, "the writers' queue decides over reading");
        for (number, partition) in &self.partitions {
            let State::Running(open) = &partition.state else {
                continue;
            };
            if paused {
                self.pause(*number)?;
            } else {
                self.read_from(*number, open.new_next_offset)?;
            }
        }
        Ok(())
    }
}
