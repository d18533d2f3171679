//! What the poll thread does about an error of the consumer, and about a partition in trouble that holds much memory.

use std::time::Duration;

use anyhow::bail;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tracing::{error, warn};

use super::Poller;
use crate::board::Cause;
use crate::record::Reading;
use crate::writer::Task;

/// A batch that the client cannot read is read again after this time.
const UNREADABLE_RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// A partition that gave up its memory is claimed again after this time.
const HELD_UP_RETRY_INTERVAL: Duration = Duration::from_secs(5);

impl Poller {
    /// When the memory for batches is used up, drops the batches of partitions in trouble, unless all are in trouble. They are
    /// read again later. Otherwise a partition that cannot be stored would fill the memory and so stop all others. Returns
    /// whether any were dropped.
    pub(super) fn give_up_held_up(&mut self) -> anyhow::Result<bool> {
        let mut readings = self.board.held_up();
        readings.retain(|reading| {
            (self.partitions.get(&reading.partition))
                .is_some_and(|assigned| assigned.batch.is_some())
        });
        for reading in &readings {
            warn!(
                kafka.partition = reading.partition.0,
                "the partition is held up, and the others need its memory: it is read again later"
            );
            self.stop_reading(*reading, Cause::HeldUp, HELD_UP_RETRY_INTERVAL)?;
        }
        Ok(!readings.is_empty())
    }

    pub(super) fn trouble(&mut self, error: &KafkaError) -> anyhow::Result<()> {
        match error {
            KafkaError::MessageConsumptionFatal(code) => {
                bail!("Kafka's client cannot continue: {code}")
            }
            KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset) => {
                // The client does not tell which partition is concerned: the claim finds the one whose offset is gone.
                let running: Vec<Reading> = (self.partitions.values())
                    .filter_map(|partition| partition.batch.as_ref())
                    .map(|batch| batch.reading)
                    .collect();
                for reading in running {
                    self.stop_reading(reading, Cause::OffsetOutOfRange, Duration::ZERO)?;
                }
            }
            KafkaError::MessageConsumption(
                RDKafkaErrorCode::BadMessage
                | RDKafkaErrorCode::BadCompression
                | RDKafkaErrorCode::NotImplemented,
            ) => self.suspend_all(error)?,
            other if self.trouble_reports.is_due() => warn!(
                kafka.topic = self.kafka.topic,
                "trouble with reading the topic, retrying: {other}"
            ),
            _ => {}
        }
        Ok(())
    }

    /// Has everything stored that was read, and reads again after a while. By then damage on the wire is gone; damage in
    /// Kafka's log stays.
    ///
    /// Otherwise the client would continue after the batch that it cannot read, which would be a loss that looks like a
    /// gap, or it would fetch it again without a pause. It does not tell which partition is concerned.
    fn suspend_all(&mut self, error: &KafkaError) -> anyhow::Result<()> {
        error!(
            kafka.topic = self.kafka.topic,
            "a batch cannot be read, so its log may be damaged; nothing after it is stored; reading again in {} s: {error}",
            UNREADABLE_RETRY_INTERVAL.as_secs()
        );
        let mut suspended = Vec::new();
        for (partition, assigned) in &mut self.partitions {
            if let Some(batch) = assigned.take_any() {
                self.writers.send(Task::Store(batch))?;
            }
            if let Some(batch) = assigned.batch.take() {
                let cause = Cause::Unreadable;
                self.board
                    .suspend(batch.reading, cause, UNREADABLE_RETRY_INTERVAL);
                suspended.push(*partition);
            }
        }
        suspended
            .into_iter()
            .try_for_each(|partition| self.pause(partition))
    }
}
