//! What became of spans.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// What became of a span, as a label: its name and its value.
type Outcome = [(&'static str, &'static str); 1];

/// All outcomes. Every one is counted from the start, because an alert cannot see the step from no value to the first one.
const OUTCOMES: [&str; 4] = [SENT, FAILED, REJECTED, DROPPED];

/// The collector has taken it.
pub(super) const SENT: &str = "sent";
/// The collector could not be reached, or has answered with an error.
pub(super) const FAILED: &str = "failed";
/// The collector has taken others that were sent with it, but not this one.
pub(super) const REJECTED: &str = "rejected";
/// Too many others waited to be sent, or the process had to stop.
pub(super) const DROPPED: &str = "dropped";

/// The metrics of spans.
#[derive(Clone, Debug, Default)]
pub struct TraceMetrics {
    spans: Family<Outcome, Counter>,
}

impl TraceMetrics {
    /// Registers `trace_spans_total{outcome}`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let help = "Spans of traces, by what became of them";
        registry.register("trace_spans", help, metrics.spans.clone());
        for outcome in OUTCOMES {
            metrics.count(outcome, 0);
        }
        metrics
    }

    pub(super) fn count(&self, outcome: &'static str, spans: u64) {
        let counter = self.spans.get_or_create(&[("outcome", outcome)]);
        counter.inc_by(spans);
    }
}
