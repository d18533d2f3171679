//! What operators count: requests, connections, tokens, the memory of answers, exports, traces, and clients of the live feed. The
//! cache and the pool of database connections count by themselves, and are asked. No label contains a uid.

pub mod answers;
mod cache;
mod database;
pub mod exports;
pub mod feed;
pub mod tokens;

use std::borrow::Borrow;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};
use shared::server::ConnectionMetrics;
use shared::traces::metrics::TraceMetrics;
use tracing::error;
use warp::http::{Method, StatusCode};

use crate::cache::OrderCache;
use crate::repository::Repository;
use answers::AnswerMetrics;
use cache::CacheCollector;
use database::DatabaseCollector;
use exports::ExportMetrics;
use feed::FeedMetrics;
use tokens::TokenMetrics;

/// Upper bounds in seconds. A hit takes some tens of microseconds; the slowest answer is a time-out.
const DURATION_BUCKETS: [f64; 11] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 5.0, 10.0,
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    route: &'static str,
    status: u16,
}

/// The labels of nearly all requests. Their series are found without a lock that all requests share.
const MOST_COMMON: RequestLabels = RequestLabels {
    method: "GET",
    route: "order",
    status: 200,
};

/// One label: its name and its value.
type Label = [(&'static str, &'static str); 1];

/// The metrics of this process.
#[derive(Debug)]
pub struct Metrics {
    /// The metrics of the memory of answers.
    pub answers: AnswerMetrics,
    /// The metrics of exports.
    pub exports: ExportMetrics,
    /// The metrics of the live feed.
    pub feed: FeedMetrics,
    /// The metrics of the tokens.
    pub tokens: TokenMetrics,
    /// The metrics of traces.
    pub traces: TraceMetrics,
    /// The metrics of clients' connections.
    pub connections: ConnectionMetrics,
    /// The metrics of the operators' connections.
    pub ops_connections: ConnectionMetrics,
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<Label, Histogram, fn() -> Histogram>,
    most_common: OnceLock<(Counter, Histogram)>,
    in_flight: Gauge,
}

/// Counts something as present until it is dropped.
#[derive(Debug)]
pub struct Present<G: Borrow<Gauge>>(G);

impl<G: Borrow<Gauge>> Present<G> {
    fn count(gauge: G) -> Self {
        gauge.borrow().inc();
        Self(gauge)
    }
}

impl<G: Borrow<Gauge>> Drop for Present<G> {
    fn drop(&mut self) {
        self.0.borrow().dec();
    }
}

impl Metrics {
    /// Registers every metric.
    pub fn new(cache: &Arc<OrderCache>, repository: &Repository) -> Self {
        let registry = &mut Registry::with_prefix("orders_api");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The program", version);
        let requests = register(registry, "http_requests", "Requests answered");
        let durations = Family::new_with_constructor(new_histogram as fn() -> Histogram);
        let help = "Time to answer";
        let name = "http_request_duration";
        registry.register_with_unit(name, help, Unit::Seconds, durations.clone());
        let in_flight = register(registry, "http_in_flight_requests", "Requests under way");
        let connections = ConnectionMetrics::register(registry, "http");
        let ops_connections = ConnectionMetrics::register(registry, "ops");
        registry.register_collector(Box::new(CacheCollector(Arc::clone(cache))));
        registry.register_collector(Box::new(DatabaseCollector(repository.clone())));
        Self {
            answers: AnswerMetrics::register(registry),
            exports: ExportMetrics::register(registry),
            feed: FeedMetrics::register(registry),
            tokens: TokenMetrics::register(registry),
            traces: TraceMetrics::register(registry),
            registry: std::mem::take(registry),
            connections,
            ops_connections,
            requests,
            durations,
            most_common: OnceLock::new(),
            in_flight,
        }
    }

    /// Counts a request as under way until the value is dropped.
    pub fn request_started(&self) -> Present<&Gauge> {
        Present::count(&self.in_flight)
    }

    /// Counts a request that was answered.
    pub fn request_ended(
        &self,
        method: &Method,
        route: &'static str,
        status: StatusCode,
        duration: Duration,
    ) {
        let labels = RequestLabels {
            method: known_method(method).unwrap_or("other"),
            route,
            status: status.as_u16(),
        };
        let series = || {
            let durations = self.durations.get_or_create(&[("route", route)]);
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

    /// Returns all metrics as text, in the format that Prometheus reads.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            error!("cannot write the metrics: {error}");
        }
        text
    }
}

fn register<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn new_histogram() -> Histogram {
    Histogram::new(DURATION_BUCKETS)
}

/// The name of a method that routes know. Clients may invent others, and the number of names must stay small.
pub(crate) fn known_method(method: &Method) -> Option<&'static str> {
    Some(match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => return None,
    })
}
