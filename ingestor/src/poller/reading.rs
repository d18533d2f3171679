//! Moves the consumer to an offset, and pauses and resumes partitions.

use std::time::Duration;

use anyhow::Context;
use rdkafka::consumer::Consumer as _;
use tracing::{debug, info};

use super::Poller;
use crate::board::Cause;
use crate::failpoints::{self, Phase};
use crate::kafka::{check_each, partition_list};
use crate::record::{Offset, Partition, Reading};

/// The client's own thread serves a seek, so it takes no time.
const SEEK_TIMEOUT: Duration = Duration::from_secs(5);

impl Poller {
    /// Moves the consumer to the claimed offset and lets it fetch.
    pub(super) fn start_reading(
        &mut self,
        reading: Reading,
        next_offset: Offset,
    ) -> anyhow::Result<()> {
        failpoints::reached(Phase::Start);
        if let Some(partition) = self.partitions.get_mut(&reading.partition) {
            partition.start(reading, next_offset);
        }
        self.board.start(reading);
        // While everything is paused, this partition stays paused too. It is resumed with the others.
        if self.budget.is_paused() {
            return Ok(());
        }
        self.read_from(reading.partition, next_offset)
    }

    /// Lets a paused partition fetch from an offset.
    ///
    /// It is resumed first and moved then. A resume alone does not wake the thread that fetches, which then sleeps for up to
    /// a second. A seek wakes it, but only a seek to an offset above 0 (librdkafka 2.12, `rd_kafka_toppar_seek`).
    fn read_from(&self, partition: Partition, next_offset: Offset) -> anyhow::Result<()> {
        let list = partition_list(&self.topic, [(partition, None)])?;
        self.consumer
            .resume(&list)
            .context("cannot resume a partition")?;
        if next_offset == Offset(0) {
            self.seek(partition, Offset(1))?;
        }
        self.seek(partition, next_offset)
    }

    fn seek(&self, partition: Partition, offset: Offset) -> anyhow::Result<()> {
        let target = partition_list(&self.topic, [(partition, Some(offset))])?;
        let sought = self
            .consumer
            .seek_partitions(target.clone(), SEEK_TIMEOUT)
            .and_then(|result| check_each(&result));
        if let Err(error) = sought {
            // After an error of the fetcher the partition is not started and a seek fails: it must be assigned again.
            debug!(
                kafka.partition = partition.0,
                "a seek failed, assigning the partition again: {error}"
            );
            self.consumer
                .incremental_unassign(&target)
                .context("cannot unassign a partition")?;
            self.consumer
                .incremental_assign(&target)
                .context("cannot assign a partition")?;
        }
        Ok(())
    }

    /// Ends a reading, and has the partition claimed again after a while. Returns why an operator had to decide before.
    pub(super) fn stop_reading(
        &mut self,
        reading: Reading,
        cause: Cause,
        retry_after: Duration,
    ) -> anyhow::Result<Option<String>> {
        let stopped_before = self.board.pause(reading, cause, retry_after);
        if let Some(partition) = self.partitions.get_mut(&reading.partition) {
            self.budget.free(partition.drop_batch());
        }
        self.pause(reading.partition)?;
        Ok(stopped_before)
    }

    pub(super) fn pause(&self, partition: Partition) -> anyhow::Result<()> {
        let list = partition_list(&self.topic, [(partition, None)])?;
        self.consumer
            .pause(&list)
            .context("cannot pause a partition")
    }

    /// Pauses or resumes all partitions that are read, if that is a change. This happens only if the database is away for
    /// long, because a pause discards what the client has fetched.
    pub(super) fn set_paused(&mut self, is_paused: bool) -> anyhow::Result<()> {
        if !self.budget.change_pause(is_paused) {
            return Ok(());
        }
        info!(
            paused = is_paused,
            "reading follows the free memory for batches"
        );
        for (partition, assigned) in &self.partitions {
            let Some(batch) = &assigned.batch else {
                continue;
            };
            if is_paused {
                self.pause(*partition)?;
            } else {
                self.read_from(*partition, batch.new_next_offset)?;
            }
        }
        Ok(())
    }
}
