//! What operators count of the live feed.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The metrics of the live feed.
#[derive(Debug, Default)]
pub struct FeedMetrics {
    clients: Gauge,
    dropped: Counter,
}

impl FeedMetrics {
    /// Registers every metric.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let help = "Clients that follow the events";
        registry.register("sse_clients", help, metrics.clients.clone());
        let help = "Clients cut off because they were too slow for the events";
        registry.register("sse_dropped", help, metrics.dropped.clone());
        metrics
    }

    /// A client begins to follow.
    pub fn client_joined(&self) -> FollowingClient {
        self.clients.inc();
        FollowingClient(self.clients.clone())
    }

    /// A client was too slow.
    pub fn client_dropped(&self) {
        self.dropped.inc();
    }
}

/// Counts a client as following until it is dropped.
#[derive(Debug)]
pub struct FollowingClient(Gauge);

impl Drop for FollowingClient {
    fn drop(&mut self) {
        self.0.dec();
    }
}
