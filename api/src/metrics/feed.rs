//! The metrics of the live feed.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Present, register};

/// The metrics of the live feed.
#[derive(Debug)]
pub struct FeedMetrics {
    clients: Gauge,
    dropped: Counter,
}

impl FeedMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let help = "Clients cut off because they were too slow for the events";
        Self {
            clients: register(registry, "sse_clients", "Clients that follow the events"),
            dropped: register(registry, "sse_dropped", help),
        }
    }

    /// Counts a client as following until the value is dropped.
    pub fn client_joined(&self) -> Present<Gauge> {
        Present::count(self.clients.clone())
    }

    /// Counts a client that was cut off because it was too slow.
    pub fn client_dropped(&self) {
        self.dropped.inc();
    }
}
