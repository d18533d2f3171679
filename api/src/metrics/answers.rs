//! The metrics of the memory of answers.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// The metrics of the memory of answers.
#[derive(Debug, Default)]
pub struct AnswerMetrics {
    /// The memory that is reserved for large answers under way, in bytes.
    pub used_bytes: Gauge,
    /// The most of it, in bytes.
    pub limit_bytes: Gauge,
}

impl AnswerMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        for (name, help, gauge) in [
            (
                "answer_memory",
                "Memory of large answers under way",
                &metrics.used_bytes,
            ),
            (
                "answer_memory_limit",
                "Most memory of them",
                &metrics.limit_bytes,
            ),
        ] {
            registry.register_with_unit(name, help, Unit::Bytes, gauge.clone());
        }
        metrics
    }
}
