//! Traces: spans, and their way to an OpenTelemetry collector.
//!
//! Only what is sampled has a span. So whoever may be traced has an `Option<Span>`, and without a trace nothing is allocated.
//! Deeper code need not pass spans on: it asks for the one that its thread works for ([`current`], [`leaf`]). A future takes
//! its span along with [`within`].
//!
//! - `propagation`: the header of whoever sends a message. `sampling`: what has a span. `span`: spans.
//! - `queue`: the bound of what waits to be sent. `exporter`: sends it. [`metrics`]: what became of it.
//!
//! There is no global tracer, because tests run several programs in one process.

mod exporter;
pub mod metrics;
mod propagation;
mod queue;
mod sampling;
mod span;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanBuilder, TracerProvider};
pub use opentelemetry::trace::{SpanContext, SpanKind, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler as SdkSampler, SdkTracer, SdkTracerProvider,
};
use tracing::{info, warn};

use crate::config::{TraceSettings, name_of};
use exporter::Exporter;
use metrics::TraceMetrics;
use propagation::Traceparent;
use queue::{Queue, Waiting};
use sampling::Sampler;
pub use span::{Entered, Span, WithinSpan, current, leaf, leaf_async, part, within};

/// The header, of a request or of a message, that names the span of its sender (W3C Trace Context).
pub const TRACEPARENT: &str = "traceparent";
/// The header that belongs to it.
pub const TRACESTATE: &str = "tracestate";

/// The most links of a span. It is the default of the specification.
pub const MAX_LINKS: usize = 128;

/// Reads the files that the settings name.
///
/// # Errors
/// Returns an error of one line that names the variable.
pub fn check_files(settings: &TraceSettings) -> anyhow::Result<()> {
    settings
        .collector
        .as_ref()
        .map_or(Ok(()), |collector| exporter::tls(collector).map(drop))
}

/// Begins spans, and sends them to a collector. Clones share everything.
#[derive(Clone, Debug)]
pub struct Traces(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
    sampler: Sampler,
    waiting: Arc<Waiting>,
}

/// What a new span continues: the span of whoever has sent a message, or none.
#[derive(Clone, Debug)]
pub struct Origin(Option<SpanContext>);

impl Origin {
    /// Nothing: the span begins a trace.
    pub const NONE: Self = Self(None);

    /// The span of whoever has sent a message.
    pub fn sender(span: SpanContext) -> Self {
        Self(Some(span))
    }
}

/// A span that is about to begin.
#[derive(Debug)]
pub struct NewSpan {
    /// Its name. It must not contain ids, because collectors group spans by their names.
    pub name: String,
    /// Its role.
    pub kind: SpanKind,
    /// When it began.
    pub started_at: SystemTime,
    /// The spans to which it is linked, at most [`MAX_LINKS`].
    pub links: Vec<SpanContext>,
}

impl Traces {
    /// Begins to send spans, from the present runtime. Returns `None` if the settings name no collector.
    ///
    /// # Errors
    /// Returns an error if the certificates of CAs cannot be read.
    pub fn start(settings: &TraceSettings, metrics: &TraceMetrics) -> anyhow::Result<Option<Self>> {
        let Some(collector) = &settings.collector else {
            return Ok(None);
        };
        let waiting = Arc::new(Waiting::new(settings.max_waiting, metrics.clone()));
        let exporter = Exporter::new(collector, Arc::clone(&waiting))?;
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(settings.max_waiting)
            .with_max_export_batch_size(settings.max_together)
            .with_scheduled_delay(settings.delay)
            .build();
        let processor = BatchSpanProcessor::builder(exporter)
            .with_batch_config(config)
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Queue::new(processor, Arc::clone(&waiting)))
            // `Sampler` decides before a span is made.
            .with_sampler(SdkSampler::AlwaysOn)
            .with_max_links_per_span(u32::try_from(MAX_LINKS).unwrap_or(u32::MAX))
            .with_resource(resource(settings))
            .build();
        info!(
            url = %collector.url,
            sampler = name_of(settings.sampler),
            ratio = settings.ratio,
            "spans are sent to a collector"
        );
        Ok(Some(Self(Arc::new(Inner {
            tracer: provider.tracer("orders"),
            provider,
            sampler: Sampler::new(settings.sampler, settings.ratio),
            waiting,
        }))))
    }

    /// Decides about a span for a message with these headers. Returns `None` if it has none.
    ///
    /// `tracestate` is called only if there is a span.
    pub fn origin<'a>(
        &self,
        traceparent: Option<&[u8]>,
        tracestate: impl FnOnce() -> Option<&'a [u8]>,
    ) -> Option<Origin> {
        match traceparent.and_then(Traceparent::parse) {
            Some(sender) => self.0.sampler.follows(&sender).then(|| {
                let span = sender.with_state(tracestate());
                Origin::sender(span)
            }),
            None => self.samples_new().then_some(Origin::NONE),
        }
    }

    /// Decides about a span for a message of many. Unlike [`Self::origin`] it returns `None` if no sender is named: the span of
    /// all of them together is enough.
    pub fn sender<'a>(
        &self,
        traceparent: Option<&[u8]>,
        tracestate: impl FnOnce() -> Option<&'a [u8]>,
    ) -> Option<SpanContext> {
        let sender = traceparent.and_then(Traceparent::parse)?;
        (self.0.sampler.follows(&sender)).then(|| sender.with_state(tracestate()))
    }

    /// Decides about a span for something that has no sender.
    pub fn samples_new(&self) -> bool {
        self.0.sampler.begins()
    }

    /// Begins a span.
    pub fn begin(&self, origin: Origin, new: NewSpan) -> Span {
        let tracer = &self.0.tracer;
        let context = Context::new().with_value(tracer.clone());
        let builder = SpanBuilder::from_name(new.name)
            .with_kind(new.kind)
            .with_start_time(new.started_at)
            .with_links(new.links.into_iter().map(span::link).collect());
        Span::begin(&context, origin.0, tracer, builder)
    }

    /// Sends the spans that wait, for at most `time`. Spans that end later are lost.
    pub async fn finish(&self, time: Duration) {
        let inner = Arc::clone(&self.0);
        let ended = tokio::task::spawn_blocking(move || inner.provider.shutdown_with_timeout(time));
        if !matches!(ended.await, Ok(Ok(()))) {
            let unsent = self.0.waiting.give_up();
            warn!(
                unsent,
                "not all spans were sent to the collector before the process had to stop"
            );
        }
    }
}

/// Describes the process.
fn resource(settings: &TraceSettings) -> Resource {
    let attributes = settings.attributes.iter();
    let attributes = attributes.map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
    // Not the builder with detectors: those read the environment, past the settings.
    Resource::builder_empty()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attributes(attributes)
        .with_service_name(settings.service_name.clone())
        .build()
}
