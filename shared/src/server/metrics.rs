//! What a server counts of its connections.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Why the server has ended a connection, as a label: its name and its value.
type Reason = [(&'static str, &'static str); 1];

/// All reasons. Every one is counted from the start, because an alert cannot see the step from no value to the first one.
const REASONS: [&str; 6] = [
    "malformed",
    "peer_limit",
    "displaced",
    "header_timeout",
    "idle",
    "write_timeout",
];

/// The metrics of a server's connections.
#[derive(Clone, Debug, Default)]
pub struct ConnectionMetrics {
    open: Gauge,
    dropped: Family<Reason, Counter>,
}

/// A connection that is counted as open until it is dropped.
#[derive(Debug)]
pub(super) struct Open(Gauge);

impl ConnectionMetrics {
    /// Registers `PREFIX_connections` and `PREFIX_dropped_connections_total{reason}`.
    pub fn register(registry: &mut Registry, prefix: &str) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix(prefix);
        registry.register("connections", "Connections open", metrics.open.clone());
        let help = "Connections that the server hung up on, by reason";
        registry.register("dropped_connections", help, metrics.dropped.clone());
        for reason in REASONS {
            drop(metrics.dropped.get_or_create(&[("reason", reason)]));
        }
        metrics
    }

    /// Counts a connection as open until the value is dropped.
    pub(super) fn opened(&self) -> Open {
        self.open.inc();
        Open(self.open.clone())
    }

    /// Counts a connection that the server has ended.
    pub(super) fn dropped(&self, reason: &'static str) {
        self.dropped.get_or_create(&[("reason", reason)]).inc();
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
