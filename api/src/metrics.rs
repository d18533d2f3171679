//! What operators count: requests here, the cache's own counters as it keeps them. No uid in any label.

pub mod exports;
pub mod feed;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tracing::error;
use warp::http::{Method, StatusCode};

use crate::cache::OrderCache;
use crate::cache::counters::Eviction;
use crate::cache::status::ListenerState;
use exports::ExportMetrics;
use feed::FeedMetrics;

/// Upper bounds in seconds: a hit takes some tens of microseconds, the slowest answer is a time-out.
const DURATION_BUCKETS: [f64; 11] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 5.0, 10.0,
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    route: &'static str,
    status: u16,
}

/// Of nearly all requests: their series are found without a lock that all of them share.
const MOST_COMMON: RequestLabels = RequestLabels {
    method: "GET",
    route: "order",
    status: 200,
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DropLabels {
    reason: &'static str,
}

/// The metrics of this process.
#[derive(Debug)]
pub struct Metrics {
    /// Those of exports.
    pub exports: ExportMetrics,
    /// Those of the live feed.
    pub feed: FeedMetrics,
    connections: Gauge,
    dropped_connections: Family<DropLabels, Counter>,
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabels, Histogram, fn() -> Histogram>,
    most_common: OnceLock<(Counter, Histogram)>,
    in_flight: Gauge,
}

/// Counts a request as under way until it is dropped.
#[derive(Debug)]
pub struct InFlight<'a>(&'a Gauge);

/// Counts a connection as open until it is dropped.
#[derive(Debug)]
pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Registers every metric.
    pub fn new(cache: &Arc<OrderCache>) -> Self {
        let mut registry = Registry::with_prefix("orders_api");
        let requests = Family::default();
        let durations = Family::new_with_constructor(new_histogram as fn() -> Histogram);
        let in_flight = Gauge::default();
        let connections = Gauge::default();
        let dropped_connections = Family::default();
        registry.register("http_requests", "Requests answered", requests.clone());
        registry.register_with_unit(
            "http_request_duration",
            "Time to answer",
            Unit::Seconds,
            durations.clone(),
        );
        registry.register(
            "http_in_flight_requests",
            "Requests under way",
            in_flight.clone(),
        );
        registry.register("http_connections", "Connections open", connections.clone());
        registry.register(
            "http_dropped_connections",
            "Connections that the server hung up on, by reason",
            dropped_connections.clone(),
        );
        registry.register_collector(Box::new(CacheCollector(Arc::clone(cache))));
        Self {
            exports: ExportMetrics::register(&mut registry),
            feed: FeedMetrics::register(&mut registry),
            registry,
            connections,
            dropped_connections,
            requests,
            durations,
            most_common: OnceLock::new(),
            in_flight,
        }
    }

    /// A connection has been accepted.
    pub fn connection_opened(&self) -> OpenConnection {
        self.connections.inc();
        OpenConnection(self.connections.clone())
    }

    /// The server has hung up on a client.
    pub fn connection_dropped(&self, reason: &'static str) {
        self.dropped_connections
            .get_or_create(&DropLabels { reason })
            .inc();
    }

    /// A request has come.
    pub fn request_started(&self) -> InFlight<'_> {
        self.in_flight.inc();
        InFlight(&self.in_flight)
    }

    /// A request is answered.
    pub fn request_ended(
        &self,
        method: &Method,
        route: &'static str,
        status: StatusCode,
        duration: Duration,
    ) {
        let labels = RequestLabels {
            method: method_label(method),
            route,
            status: status.as_u16(),
        };
        let series = || {
            let durations = self.durations.get_or_create(&RouteLabels { route });
            (
                self.requests.get_or_create(&labels).clone(),
                durations.clone(),
            )
        };
        let count = |(requests, durations): &(Counter, Histogram)| {
            requests.inc();
            durations.observe(duration.as_secs_f64());
        };
        if labels == MOST_COMMON {
            count(self.most_common.get_or_init(series));
        } else {
            count(&series());
        }
    }

    /// All metrics as text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            error!("cannot write the metrics: {error}");
        }
        text
    }
}

fn new_histogram() -> Histogram {
    Histogram::new(DURATION_BUCKETS)
}

/// Clients may make methods up; labels are few.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// Reads the cache's counters when it is asked, so that there is one count of each thing.
#[derive(Debug)]
struct CacheCollector(Arc<OrderCache>);

impl Collector for CacheCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let core = self.0.core();
        let listener = self.0.listener();
        let audit = self.0.audit_status();
        let counters = core.counters();
        let (size, missing, weight_bytes) = core.sizes();

        let operations = [
            ("hit", counters.hits.get()),
            ("negative_hit", counters.negative_hits.get()),
            ("miss", counters.misses.get()),
            ("bypass", counters.bypasses.get()),
        ];
        count_by(
            &mut encoder,
            "cache_lookups",
            "Lookups by outcome",
            "outcome",
            &operations,
        )?;
        let loads = [
            ("succeeded", counters.loads_succeeded.get()),
            ("not_found", counters.loads_not_found.get()),
            ("failed", counters.loads_failed.get()),
        ];
        count_by(
            &mut encoder,
            "cache_loads",
            "Loads ended, by outcome",
            "outcome",
            &loads,
        )?;
        let evictions = [
            ("capacity", counters.evictions(Eviction::Capacity)),
            ("event", counters.evictions(Eviction::Event)),
            ("resync", counters.evictions(Eviction::Resync)),
            ("audit", counters.evictions(Eviction::Audit)),
        ];
        count_by(
            &mut encoder,
            "cache_evictions",
            "Entries that left, by reason",
            "reason",
            &evictions,
        )?;
        for (name, help, value) in [
            (
                "cache_coalesced_waits",
                "Misses and demanded reads (no-cache) that joined a load of others",
                counters.coalesced.get(),
            ),
            (
                "cache_discarded_loads",
                "Loads not stored, because an event came in between",
                counters.discarded.get(),
            ),
            (
                "cache_audit_checks",
                "Cached orders compared with the database",
                audit.checked.get(),
            ),
            (
                "cache_audit_mismatches",
                "Cached orders that were stale though no event had told of it",
                audit.mismatches.get(),
            ),
            (
                "listener_reconnects",
                "Connections of the listener that were lost",
                listener.reconnects.get(),
            ),
            (
                "listener_events",
                "Notifications of writers",
                listener.events.get(),
            ),
            (
                "listener_malformed_events",
                "Notifications not understood",
                listener.malformed.get(),
            ),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter_type())?)?;
        }
        let blind = ConstCounter::new(listener.blind_time().as_secs_f64());
        let help = "Time in which nothing cached could be served";
        blind.encode(encoder.encode_descriptor(
            "listener_blind",
            help,
            Some(&Unit::Seconds),
            counter_type(),
        )?)?;

        for (name, help, unit, value) in [
            ("cache_entries", "Orders cached", None, size as i64),
            (
                "cache_negative_entries",
                "Absences cached",
                None,
                missing as i64,
            ),
            (
                "cache_capacity_entries",
                "Most orders cached",
                None,
                core.capacity() as i64,
            ),
            (
                "cache_weight",
                "Size of the cached orders",
                Some(Unit::Bytes),
                weight_bytes as i64,
            ),
        ] {
            gauge(&mut encoder, name, help, unit.as_ref(), value)?;
        }
        if let Some(age) = listener.proof_age() {
            let help = "Time since the listener last proved that it had seen every commit";
            gauge(
                &mut encoder,
                "listener_proof_age",
                help,
                Some(&Unit::Seconds),
                age.as_secs_f64(),
            )?;
        }
        let mut states = encoder.encode_descriptor(
            "listener_state",
            "1 for the present state",
            None,
            gauge_type(),
        )?;
        for state in ListenerState::ALL {
            let value = i64::from(state == listener.state());
            ConstGauge::new(value).encode(states.encode_family(&[("state", state.as_str())])?)?;
        }
        Ok(())
    }
}

fn counter_type() -> prometheus_client::metrics::MetricType {
    prometheus_client::metrics::MetricType::Counter
}

fn gauge_type() -> prometheus_client::metrics::MetricType {
    prometheus_client::metrics::MetricType::Gauge
}

fn gauge<T: prometheus_client::encoding::EncodeGaugeValue + Copy>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: T,
) -> fmt::Result {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, unit, gauge_type())?)
}

fn count_by(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    values: &[(&'static str, u64)],
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, counter_type())?;
    for (value, count) in values {
        ConstCounter::new(*count).encode(family.encode_family(&[(label, *value)])?)?;
    }
    Ok(())
}
