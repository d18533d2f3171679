//! Renews the group's client if it gets no records though there are some.
//!
//! The client ignores the leader of a topic that was recreated, because each restart of a broker has raised the leader epoch of the
//! old topic (librdkafka 2.12, `rd_kafka_toppar_leader_update`). It then reads nothing for ever. A new client does not know the
//! old topic.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rdkafka::consumer::Consumer as _;
use tracing::warn;

use super::Poller;
use crate::kafka;
use crate::record::Partition;

/// How long the first record of a claimed partition may take. A fetch usually takes a tenth of a second.
const SILENCE: Duration = Duration::from_secs(20);
/// How long it may take at most, after many renewals.
const LONGEST_SILENCE: Duration = Duration::from_secs(600);

/// How long the first record of each partition may take.
///
/// Brokers that are only slow would never get to answer if every client were replaced as early as the first one. So each
/// renewal doubles the time of the partition that was silent, until it is heard.
#[derive(Debug, Default)]
pub(super) struct Patience(BTreeMap<Partition, Duration>);

impl Patience {
    fn with(&self, partition: Partition) -> Duration {
        self.0.get(&partition).copied().unwrap_or(SILENCE)
    }

    fn double(&mut self, partition: Partition) {
        let doubled = self.with(partition) * 2;
        self.0.insert(partition, doubled.min(LONGEST_SILENCE));
    }

    fn forget(&mut self, partition: Partition) {
        self.0.remove(&partition);
    }
}

impl Poller {
    /// Joins the group with a new client if a partition is silent. To be called when the client has nothing to tell.
    pub(super) fn renew_if_silent(&mut self) -> anyhow::Result<()> {
        if self.budget.is_paused() {
            return Ok(());
        }
        let mut silent = None;
        for (partition, assigned) in &self.partitions {
            if assigned.is_silent_for(self.patience.with(*partition)) {
                silent = Some(*partition);
            } else if assigned.is_heard() {
                self.patience.forget(*partition);
            }
        }
        silent.map_or(Ok(()), |partition| self.renew(partition))
    }

    fn renew(&mut self, silent: Partition) -> anyhow::Result<()> {
        self.metrics.client_renewals.inc();
        warn!(
            kafka.partition = silent.0,
            "the partition has records, but none has come for {} s; joining the group again with a new client",
            self.patience.with(silent).as_secs()
        );
        self.patience.double(silent);
        let assigned: Vec<Partition> = self.partitions.keys().copied().collect();
        for partition in assigned {
            self.release(partition);
        }
        let renewed = kafka::group_consumer(&self.kafka, self.memory)?;
        renewed
            .subscribe(&[&self.kafka.topic])
            .context("cannot subscribe")?;
        let former = std::mem::replace(&mut self.consumer, renewed);
        // It leaves the group, and waits for the brokers meanwhile.
        thread::Builder::new()
            .name("leave-group".to_owned())
            .spawn(move || drop(former))
            .context("cannot start a thread")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_that_stays_silent_gets_more_and_more_time() {
        let (slow, other) = (Partition(1), Partition(2));
        let mut patience = Patience::default();
        patience.double(slow);
        assert_eq!(patience.with(slow), SILENCE * 2);
        assert_eq!(patience.with(other), SILENCE);
        for _ in 0..20 {
            patience.double(slow);
        }
        assert_eq!(patience.with(slow), LONGEST_SILENCE);
        patience.forget(slow);
        assert_eq!(patience.with(slow), SILENCE);
    }
}
