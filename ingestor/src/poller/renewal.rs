//! Renews the group's client if it gets no records though there are some.
//!
//! The client ignores the leader of a topic that was recreated, because each restart of a broker has raised the leader epoch of the
//! old topic (librdkafka 2.12, `rd_kafka_toppar_leader_update`). It then reads nothing for ever. A new client does not know the
//! old topic.

use std::thread;
use std::time::Duration;

use anyhow::Context;
use rdkafka::consumer::Consumer as _;
use tracing::warn;

use super::Poller;
use super::partition::AssignedPartition;
use crate::kafka;
use crate::record::Partition;

/// How long the first record of a claimed partition may take. A fetch usually takes a tenth of a second. If the brokers are only
/// slow, a new client costs no more than a rebalance.
const SILENCE: Duration = Duration::from_secs(20);

impl Poller {
    /// Joins the group with a new client if a partition is silent. To be called when the client has nothing to tell.
    pub(super) fn renew_if_silent(&mut self) -> anyhow::Result<()> {
        let is_silent = |assigned: &AssignedPartition| assigned.is_silent_for(SILENCE);
        let silent = (self.partitions.iter()).find(|(_, assigned)| is_silent(assigned));
        let Some((silent, _)) = silent.filter(|_| !self.budget.is_paused()) else {
            return Ok(());
        };
        warn!(
            kafka.partition = silent.0,
            "the partition has records, but none has come for {} s; joining the group again with a new client",
            SILENCE.as_secs()
        );
        let assigned: Vec<Partition> = self.partitions.keys().copied().collect();
        for partition in assigned {
            self.release(partition);
        }
        let renewed = kafka::group_consumer(&self.kafka, self.memory)?;
        renewed
            .subscribe(&[&self.topic])
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
