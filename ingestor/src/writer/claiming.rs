//! A writer claims a partition: what the database says of it, held against what the brokers show.

use std::time::{Duration, Instant};

use shared::backoff::Backoff;
use tracing::info;

use super::{Owned, Report, Trouble, Writer};
use crate::batch::Reading;
use crate::offsets::{self, ClaimOutcome, Sighting, Standing};

/// Time between two looks at watermarks that do not fit.
const DOUBT_INTERVAL: Duration = Duration::from_secs(3);

impl Writer {
    /// Tries until the partition is claimed, stopped, or not ours to claim any more.
    pub(super) fn claim(&mut self, reading: Reading) {
        self.session.claims.remove(&reading.partition);
        let mut backoff = Backoff::for_database();
        let mut confirmed = false;
        while self.current.is(reading) && !self.current.is_stopping() {
            let outcome = self.try_claim(reading, confirmed);
            if outcome.is_ok() {
                self.healthy();
            }
            match outcome {
                Ok(ClaimOutcome::Claimed(claim)) => {
                    let next_offset = claim.next_offset;
                    info!(
                        kafka.partition = reading.partition,
                        kafka.offset = next_offset,
                        epoch = claim.epoch,
                        "claimed"
                    );
                    self.status.set_claimed(reading, &claim);
                    let owned = Owned {
                        reading,
                        claim,
                        last_confirmed_at: Instant::now(),
                    };
                    self.session.claims.insert(reading.partition, owned);
                    return self.report(Report::Claimed {
                        reading,
                        next_offset,
                    });
                }
                Ok(ClaimOutcome::Doubtful) => {
                    confirmed = true;
                    self.current.wait(DOUBT_INTERVAL);
                }
                Ok(ClaimOutcome::Stopped(reason)) => {
                    return self.report(Report::Stopped { reading, reason });
                }
                Ok(ClaimOutcome::Incident(reason)) => {
                    self.metrics.offset_incidents.inc();
                    return self.report(Report::Stopped { reading, reason });
                }
                Err(trouble) => {
                    self.trouble(&trouble, "claim a partition");
                    self.current.wait(backoff.next_delay());
                }
            }
        }
    }

    fn try_claim(&mut self, reading: Reading, confirmed: bool) -> Result<ClaimOutcome, Trouble> {
        let partition = reading.partition;
        let consumer = self.consumer.clone();
        let glimpse = loop {
            match offsets::standing(self.connection()?, &consumer, partition)? {
                Standing::Claimable(glimpse) => break glimpse,
                Standing::Stopped(reason) => return Ok(ClaimOutcome::Stopped(reason)),
                Standing::Missing => {
                    let mut lows = Vec::new();
                    for number in self.probe.partitions()? {
                        lows.push((number, self.probe.watermarks(number)?.low));
                    }
                    if let Some(reason) = offsets::initialise(self.connection()?, &consumer, &lows)?
                    {
                        return Ok(ClaimOutcome::Stopped(reason));
                    }
                }
            }
        };
        let witness = self.status.witness(partition);
        let sighting = Sighting::take(&self.probe, partition, &glimpse, witness)?;
        let connection = self.connection()?;
        Ok(offsets::claim(
            connection, &consumer, partition, &sighting, confirmed,
        )?)
    }
}
