//! Programs that trace a share of their work and send the spans to a collector.

use anyhow::ensure;
use shared::testing::{Manner, TestCollector};

/// What makes a program send traces, and what takes them.
pub(super) struct Traces {
    share: f64,
    collector: TestCollector,
}

impl Traces {
    /// Starts a collector. It runs on the same machine, as an agent of OpenTelemetry usually does.
    pub(super) fn start(share: f64) -> Self {
        Self {
            share,
            collector: TestCollector::start(Manner::Takes),
        }
    }

    /// Returns the variables of a program that traces this share of what nobody else has decided on.
    pub(super) fn variables(&self) -> Vec<(String, String)> {
        [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", self.collector.endpoint()),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio".to_owned()),
            ("OTEL_TRACES_SAMPLER_ARG", self.share.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// Checks that spans have arrived. Otherwise no price was measured.
    pub(super) fn ensure_received(&self) -> anyhow::Result<()> {
        let count = self.collector.spans().len();
        ensure!(count > 0, "the collector has received no span");
        println!("the collector has received {count} spans");
        Ok(())
    }
}

/// Reads a share, 0..=1.
pub(super) fn parse_share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "it is no number".to_owned())?;
    if (0.0..=1.0).contains(&share) {
        Ok(share)
    } else {
        Err("it must be between 0 and 1".to_owned())
    }
}
