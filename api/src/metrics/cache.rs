//! The metrics of the cache. They are read from the cache when somebody asks for them, so each thing is counted once.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::cache::OrderCache;
use crate::cache::counters::{Count, Counters};
use crate::cache::status::ListenerState;

#[derive(Debug)]
pub(super) struct CacheCollector(pub(super) Arc<OrderCache>);

impl Collector for CacheCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        self.write_cache(&mut writer)?;
        self.write_listener(&mut writer)
    }
}

impl CacheCollector {
    fn write_cache(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let core = &self.0.core;
        let Counters {
            lookups,
            loads,
            evictions,
        } = core.counters();
        let by_outcome = [
            ("hit", &lookups.hits),
            ("negative_hit", &lookups.negative_hits),
            ("miss", &lookups.misses),
            ("bypass", &lookups.bypasses),
        ];
        writer.counters("cache_lookups", "Lookups by outcome", "outcome", by_outcome)?;
        let by_outcome = [
            ("succeeded", &loads.succeeded),
            ("not_found", &loads.not_found),
            ("failed", &loads.failed),
        ];
        let help = "Loads ended, by outcome";
        writer.counters("cache_loads", help, "outcome", by_outcome)?;
        let by_reason = [
            ("capacity", &evictions.capacity),
            ("event", &evictions.event),
            ("resync", &evictions.resync),
            ("audit", &evictions.audit),
        ];
        let help = "Entries that left, by reason";
        writer.counters("cache_evictions", help, "reason", by_reason)?;

        let help = "Misses and demanded reads (no-cache) that joined a load of others";
        writer.counter("cache_coalesced_waits", help, &loads.coalesced)?;
        let help = "Loads not stored, because an event came in between";
        writer.counter("cache_discarded_loads", help, &loads.discarded)?;
        let audit = &self.0.audit_status;
        let help = "Cached orders compared with the database";
        writer.counter("cache_audit_checks", help, &audit.checked)?;
        let help = "Cached orders that were stale without an event";
        writer.counter("cache_audit_mismatches", help, &audit.mismatches)?;

        let (size, missing, weight_bytes) = core.sizes();
        let help = "Largest number of orders in the cache";
        let capacity = core.capacity();
        writer.size("cache_capacity_entries", help, None, capacity.entries.get())?;
        if let Some(max_bytes) = capacity.weight_bytes {
            let help = "Largest size of the cached orders together";
            writer.size("cache_capacity", help, Some(&Unit::Bytes), max_bytes.get())?;
        }
        writer.size("cache_entries", "Orders cached", None, size)?;
        writer.size("cache_negative_entries", "Absences cached", None, missing)?;
        let help = "Size of the cached orders";
        writer.size("cache_weight", help, Some(&Unit::Bytes), weight_bytes)
    }

    fn write_listener(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let listener = &self.0.listener;
        let help = "Connections of the listener that were lost";
        writer.counter("listener_reconnects", help, &listener.reconnects)?;
        let help = "Notifications of writers";
        writer.counter("listener_events", help, &listener.events)?;
        let help = "Notifications not understood";
        writer.counter("listener_malformed_events", help, &listener.malformed)?;
        let help = "Times that every entry was dropped because of a notification";
        writer.counter("listener_flushes", help, &listener.flushes)?;
        let help = "Time in which nothing cached could be served";
        let blind = ConstCounter::new(listener.blind_time().as_secs_f64());
        writer.value("listener_blind", help, Some(&Unit::Seconds), &blind)?;
        if let Some(age) = listener.proof_age() {
            let help = "Time since the listener last proved that it had seen every commit";
            let age = ConstGauge::new(age.as_secs_f64());
            writer.value("listener_proof_age", help, Some(&Unit::Seconds), &age)?;
        }
        let present = listener.state();
        let states = ListenerState::ALL
            .map(|(state, name)| (name, ConstGauge::new(i64::from(state == present))));
        writer.labelled("listener_state", "1 for the present state", "state", states)
    }
}

/// Writes metrics one after another.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn counter(&mut self, name: &str, help: &str, count: &Count) -> fmt::Result {
        self.value(name, help, None, &ConstCounter::new(count.get()))
    }

    fn counters<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        counts: [(&'static str, &Count); N],
    ) -> fmt::Result {
        let counters = counts.map(|(value, count)| (value, ConstCounter::new(count.get())));
        self.labelled(name, help, label, counters)
    }

    fn size(&mut self, name: &str, help: &str, unit: Option<&Unit>, size: usize) -> fmt::Result {
        self.value(name, help, unit, &ConstGauge::new(size as i64))
    }

    fn value(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: &impl EncodeMetric,
    ) -> fmt::Result {
        let descriptor = self
            .0
            .encode_descriptor(name, help, unit, value.metric_type())?;
        value.encode(descriptor)
    }

    /// Writes one metric that has a value for each value of a label.
    fn labelled<M: EncodeMetric, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: [(&'static str, M); N],
    ) -> fmt::Result {
        let metric_type = values[0].1.metric_type();
        let mut family = self.0.encode_descriptor(name, help, None, metric_type)?;
        for (value, metric) in &values {
            metric.encode(family.encode_family(&[(label, *value)])?)?;
        }
        Ok(())
    }
}
