//! What operators count of exports.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// How an export ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExportOutcome {
    /// The client was sent everything.
    Completed,
    /// The client hung up.
    ClientLeft,
    /// The client took nothing for too long.
    Stalled,
    /// It took longer than an export may.
    TooLong,
    /// The database failed.
    Failed,
    /// The process stops.
    Shutdown,
}

impl EncodeLabelValue for ExportOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        let text = match self {
            Self::Completed => "completed",
            Self::ClientLeft => "client_left",
            Self::Stalled => "stalled",
            Self::TooLong => "too_long",
            Self::Failed => "failed",
            Self::Shutdown => "shutdown",
        };
        text.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    outcome: ExportOutcome,
}

/// The metrics of exports.
#[derive(Debug, Default)]
pub struct ExportMetrics {
    ended: Family<Labels, Counter>,
    orders: Counter,
    running: Gauge,
}

impl ExportMetrics {
    /// Registers every metric.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("exports", "Exports ended", metrics.ended.clone());
        let help = "Orders read for exports";
        registry.register("exported_orders", help, metrics.orders.clone());
        let help = "Exports under way";
        registry.register("exports_in_progress", help, metrics.running.clone());
        metrics
    }

    /// An export begins.
    pub fn started(&self) -> RunningExport<'_> {
        self.running.inc();
        RunningExport(self)
    }
}

/// Counts an export as under way until it is dropped.
#[derive(Debug)]
pub struct RunningExport<'a>(&'a ExportMetrics);

impl RunningExport<'_> {
    /// Orders were read.
    pub fn count_orders(&self, count: u64) {
        self.0.orders.inc_by(count);
    }

    /// The export ends.
    pub fn end(self, outcome: ExportOutcome) {
        self.0.ended.get_or_create(&Labels { outcome }).inc();
    }
}

impl Drop for RunningExport<'_> {
    fn drop(&mut self) {
        self.0.running.dec();
    }
}
