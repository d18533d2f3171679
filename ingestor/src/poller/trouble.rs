//! What is done about an error of the consumer.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tracing::{error, warn};

use super::partition::{Partition, State};
use super::{Poller, writer_of};
use crate::batch::Reading;
use crate::writer::Task;

/// A batch that the client cannot read is read again after a while.
const UNREADABLE_RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// How often trouble with the consumer is reported while it lasts.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

impl Poller {
    pub(super) fn trouble(&mut self, error: &KafkaError) -> anyhow::Result<()> {
        match error {
            KafkaError::MessageConsumptionFatal(code) => {
                bail!("Kafka's client cannot go on: {code}")
            }
            KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset) => {
                // The client does not say of which partition: the claim finds the one whose offset is gone.
                let running: Vec<Reading> = self
                    .partitions
                    .values()
                    .filter_map(Partition::running)
                    .collect();
                for reading in running {
                    self.stop_reading(reading, "offset out of range", Duration::ZERO)?;
                }
            }
            KafkaError::MessageConsumption(
                RDKafkaErrorCode::BadMessage
                | RDKafkaErrorCode::BadCompression
                | RDKafkaErrorCode::NotImplemented,
            ) => self.suspend_all(error)?,
            other => {
                if self
                    .last_trouble_report
                    .is_none_or(|at| at.elapsed() >= REPORT_INTERVAL)
                {
                    self.last_trouble_report = Some(Instant::now());
                    warn!(
                        "trouble with reading topic {}, going on trying: {other}",
                        self.topic
                    );
                }
            }
        }
        Ok(())
    }

    /// Stores what was read and reads again after a while: damage on the wire is gone then, damage in Kafka's log stays.
    ///
    /// The client goes on behind a batch that it cannot read, which would be a loss that looks like a gap, or asks for it
    /// again without a pause. It does not say of which partition.
    fn suspend_all(&mut self, error: &KafkaError) -> anyhow::Result<()> {
        error!(
            "a batch of topic {} cannot be read, is its log damaged? nothing behind it is taken; reading again in {} s: \
             {error}",
            self.topic,
            UNREADABLE_RETRY_INTERVAL.as_secs()
        );
        let mut suspended = Vec::new();
        for (&number, partition) in &mut self.partitions {
            if partition.running().is_none() {
                continue;
            }
            if let Some(batch) = partition.take_any() {
                self.writers[writer_of(number)]
                    .send(Task::Store(batch))
                    .ok()
                    .context("a writer has died")?;
            }
            partition.state = State::Waiting {
                until: Instant::now() + UNREADABLE_RETRY_INTERVAL,
            };
            self.status.set_state(number, "a batch cannot be read");
            suspended.push(number);
        }
        suspended
            .into_iter()
            .try_for_each(|number| self.pause(number))
    }
}
