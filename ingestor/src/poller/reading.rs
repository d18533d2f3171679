//! Moves the consumer to an offset, and pauses and resumes partitions.

use std::time::Duration;

use anyhow::Context;
use rdkafka::consumer::Consumer as _;
use tracing::{debug, info};

use super::Poller;
use crate::board::Cause;
use crate::failpoints::{self, Phase};
use crate::kafka::{check_each, partition_list};
use crate::offsets::Claim;
use crate::record::{Offset, Partition, Reading};
use crate::writer::Task;

/// The client's own thread serves a seek, so it takes no time.
const SEEK_TIMEOUT: Duration = Duration::from_secs(5);

impl Poller {
    /// Moves the consumer to the claimed offset and lets it fetch.
    pub(super) fn start_reading(&mut self, reading: Reading, claim: &Claim) -> anyhow::Result<()> {
        failpoints::reached(Phase::Start);
        let has_records = claim.end_offset > claim.next_offset;
        if let Some(partition) = self.partitions.get_mut(&reading.partition) {
            partition.start(reading, claim.next_offset, has_records);
        }
        self.board.start(reading);
        // While everything is paused, this partition stays paused too. It is resumed with the others.
        if self.budget.is_paused() {
            return Ok(());
        }
        self.read_from(reading.partition, claim.next_offset, has_records)
    }

    /// Lets a paused partition fetch from an offset.
    ///
    /// It is moved while it is paused, so that it never fetches from another offset. If the broker does not hold that offset,
    /// all partitions would be claimed again, because the client does not tell which one is concerned.
    ///
    /// A resume does not wake the thread that fetches, which then sleeps for up to a second. A second seek wakes it, but only
    /// a seek to an offset above 0 (librdkafka 2.12, `rd_kafka_toppar_seek`). A partition that starts at 0 is therefore moved
    /// to 1 and back if it has records. If it has none, nothing waits to be fetched, and the broker would reject offset 1.
    fn read_from(
        &self,
        partition: Partition,
        next_offset: Offset,
        has_records: bool,
    ) -> anyhow::Result<()> {
        let is_moved = self.seek(partition, next_offset)?;
        let list = partition_list(&self.kafka.topic, [(partition, None)])?;
        self.consumer
            .resume(&list)
            .context("cannot resume a partition")?;
        let waking_seeks: &[Offset] = match next_offset {
            Offset(0) if has_records => &[Offset(1), Offset(0)],
            Offset(0) => &[],
            _ => &[next_offset],
        };
        if !is_moved {
            return self.assign_again(partition, next_offset);
        }
        for offset in waking_seeks {
            failpoints::reached(Phase::Moving);
            if !self.seek(partition, *offset)? {
                return self.assign_again(partition, next_offset);
            }
        }
        Ok(())
    }

    /// Moves a partition, and returns whether that was possible. After an error of the fetcher it is not.
    fn seek(&self, partition: Partition, offset: Offset) -> anyhow::Result<bool> {
        let target = partition_list(&self.kafka.topic, [(partition, Some(offset))])?;
        let sought = self
            .consumer
            .seek_partitions(target, SEEK_TIMEOUT)
            .and_then(|result| check_each(&result));
        if let Err(error) = &sought {
            debug!(kafka.partition = partition.0, "a seek failed: {error}");
        }
        Ok(sought.is_ok())
    }

    /// Starts a partition whose fetcher has stopped.
    fn assign_again(&self, partition: Partition, offset: Offset) -> anyhow::Result<()> {
        let target = partition_list(&self.kafka.topic, [(partition, Some(offset))])?;
        self.consumer
            .incremental_unassign(&target)
            .context("cannot unassign a partition")?;
        self.consumer
            .incremental_assign(&target)
            .context("cannot assign a partition")
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
        // A writer that has died is noticed when a batch is handed over.
        self.writers.send(Task::Forget(reading.partition)).ok();
        self.pause(reading.partition)?;
        Ok(stopped_before)
    }

    pub(super) fn pause(&self, partition: Partition) -> anyhow::Result<()> {
        let list = partition_list(&self.kafka.topic, [(partition, None)])?;
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
        for assigned in self.partitions.values_mut() {
            assigned.wait_anew();
        }
        for (partition, assigned) in &self.partitions {
            let Some(batch) = &assigned.batch else {
                continue;
            };
            if is_paused {
                self.pause(*partition)?;
            } else {
                self.read_from(*partition, batch.new_next_offset, false)?;
            }
        }
        Ok(())
    }
}
