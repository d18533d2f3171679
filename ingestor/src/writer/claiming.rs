//! A writer claims a partition: it compares the partition's row with what the brokers hold.

use std::time::Duration;

use shared::backoff::Backoff;
use tracing::info;

use super::{Report, Trouble, Writer};
use crate::offsets::{self, ClaimOutcome, Sighting, Standing};
use crate::record::Reading;

/// The time between two looks at watermarks that do not match.
const DOUBT_INTERVAL: Duration = Duration::from_secs(3);

impl Writer {
    /// Tries until the partition is claimed, stopped, or not ours to claim any more.
    pub(super) fn claim(&mut self, reading: Reading) {
        let mut backoff = Backoff::for_database();
        let mut is_confirmed = false;
        while self.context.board.is_current(reading) && !self.context.board.is_stopping() {
            let outcome = self.try_claim(reading, is_confirmed);
            if outcome.is_ok() {
                self.healthy();
            }
            match outcome {
                Ok(ClaimOutcome::Claimed(claim)) => {
                    info!(
                        kafka.partition = reading.partition.0,
                        kafka.offset = claim.next_offset.0,
                        epoch = claim.epoch.0,
                        "claimed"
                    );
                    self.context.board.claimed(reading, &claim);
                    return self.report(Report::Claimed(reading, claim));
                }
                Ok(ClaimOutcome::Doubtful) => {
                    is_confirmed = true;
                    self.context.board.wait(DOUBT_INTERVAL);
                }
                Ok(ClaimOutcome::Stopped(reason)) => {
                    return self.report(Report::Stopped(reading, reason));
                }
                Ok(ClaimOutcome::Incident(reason)) => {
                    self.context.metrics.offset_incidents.inc();
                    return self.report(Report::Stopped(reading, reason));
                }
                Err(trouble) => {
                    self.trouble(&trouble, "claim a partition");
                    self.context.board.wait(backoff.next_delay());
                }
            }
        }
    }

    fn try_claim(&mut self, reading: Reading, is_confirmed: bool) -> Result<ClaimOutcome, Trouble> {
        let partition = reading.partition;
        let (consumer, probe) = (&self.context.consumer, &self.context.probe);
        let glimpse = loop {
            match offsets::standing(self.connection.get()?, consumer, partition)? {
                Standing::Claimable(glimpse) => break glimpse,
                Standing::Stopped(reason) => return Ok(ClaimOutcome::Stopped(reason)),
                Standing::Missing => {
                    let mut lows = Vec::new();
                    for number in probe.partitions()? {
                        lows.push((number, probe.watermarks(number)?.low));
                    }
                    let refusal = offsets::initialise(self.connection.get()?, consumer, &lows)?;
                    if let Some(reason) = refusal {
                        return Ok(ClaimOutcome::Stopped(reason));
                    }
                }
            }
        };
        let held = (self.context.board).held_witness(partition, glimpse.incarnation);
        let sighting = Sighting::take(probe, partition, &glimpse, held.as_slice())?;
        let connection = self.connection.get()?;
        offsets::claim(connection, consumer, partition, &sighting, is_confirmed)
            .map_err(|error| Trouble::with_row(partition, error))
    }
}
