//! The metrics of exports.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Label, Present, register};

/// How an export ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportOutcome {
    /// The client was sent everything.
    Completed,
    /// The client closed its connection.
    ClientLeft,
    /// The client read nothing for too long.
    Stalled,
    /// The export took longer than it may.
    TooLong,
    /// The database gave no answer, or an order could not be read.
    Failed,
    /// The client's token was withdrawn.
    Withdrawn,
    /// The process is stopping.
    Shutdown,
}

impl ExportOutcome {
    const ALL: [Self; 7] = [
        Self::Completed,
        Self::ClientLeft,
        Self::Stalled,
        Self::TooLong,
        Self::Failed,
        Self::Withdrawn,
        Self::Shutdown,
    ];

    /// Its name in metrics and traces.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::ClientLeft => "client_left",
            Self::Stalled => "stalled",
            Self::TooLong => "too_long",
            Self::Failed => "failed",
            Self::Withdrawn => "withdrawn",
            Self::Shutdown => "shutdown",
        }
    }
}

/// The metrics of exports; clones share them.
#[derive(Clone, Debug)]
pub struct ExportMetrics {
    ended: Family<Label, Counter>,
    orders: Counter,
    running: Gauge,
}

impl ExportMetrics {
    /// Every outcome is counted from the start, because an alert cannot see the step from no value to the first one.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let ended: Family<Label, Counter> = register(registry, "exports", "Exports ended");
        for outcome in ExportOutcome::ALL {
            drop(ended.get_or_create(&[("outcome", outcome.as_str())]));
        }
        Self {
            ended,
            orders: register(registry, "exported_orders", "Orders read for exports"),
            running: register(registry, "exports_in_progress", "Exports under way"),
        }
    }

    /// Counts an export as under way until the value is dropped.
    pub fn started(&self) -> Present<Gauge> {
        Present::count(self.running.clone())
    }

    /// Counts orders that were read.
    pub fn count_orders(&self, count: u64) {
        self.orders.inc_by(count);
    }

    /// Counts an export that has ended.
    pub fn ended(&self, outcome: ExportOutcome) {
        let label = [("outcome", outcome.as_str())];
        self.ended.get_or_create(&label).inc();
    }
}
