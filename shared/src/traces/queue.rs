//! Bounds the spans that wait to be sent, and counts those that find no place.
//!
//! The library's processor is bounded as well, but it tells nobody how many spans it has dropped. So this bound comes first,
//! and is never wider.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{BatchSpanProcessor, Span, SpanData, SpanProcessor};
use parking_lot::Mutex;
use tracing::warn;

use super::metrics::{DROPPED, TraceMetrics};
use crate::throttle::Throttle;

/// The spans that wait.
#[derive(Debug)]
pub(super) struct Waiting {
    count: AtomicUsize,
    most: usize,
    pub(super) metrics: TraceMetrics,
    drops: Mutex<Drops>,
}

#[derive(Debug)]
struct Drops {
    reports: Throttle,
    unreported: u64,
}

impl Waiting {
    pub(super) fn new(most: usize, metrics: TraceMetrics) -> Self {
        Self {
            count: AtomicUsize::new(0),
            most,
            metrics,
            drops: Mutex::new(Drops {
                reports: Throttle::for_reports(),
                unreported: 0,
            }),
        }
    }

    /// Takes a place. Returns `false` if there is none.
    fn take_place(&self) -> bool {
        let taken = self.count.fetch_add(1, Ordering::Relaxed) < self.most;
        if !taken {
            self.leave(1);
            self.dropped();
        }
        taken
    }

    /// Frees places.
    pub(super) fn leave(&self, spans: usize) {
        self.count.fetch_sub(spans, Ordering::Relaxed);
    }

    /// Drops all that wait, and returns their number.
    pub(super) fn give_up(&self) -> usize {
        let unsent = self.count.load(Ordering::Relaxed);
        self.metrics.count(DROPPED, unsent as u64);
        unsent
    }

    fn dropped(&self) {
        self.metrics.count(DROPPED, 1);
        let mut drops = self.drops.lock();
        drops.unreported += 1;
        if drops.reports.is_due() {
            let dropped = std::mem::take(&mut drops.unreported);
            warn!(
                dropped,
                "spans are dropped, because more end than the collector takes: sample fewer with OTEL_TRACES_SAMPLER, or raise \
                 OTEL_BSP_MAX_QUEUE_SIZE"
            );
        }
    }
}

/// Passes spans on to the library's processor while there is a place for them.
#[derive(Debug)]
pub(super) struct Queue {
    inner: BatchSpanProcessor,
    waiting: Arc<Waiting>,
}

impl Queue {
    pub(super) fn new(inner: BatchSpanProcessor, waiting: Arc<Waiting>) -> Self {
        Self { inner, waiting }
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.waiting.take_place() {
            self.inner.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
