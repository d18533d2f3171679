//! Spans, and the one that a thread works for.

use std::borrow::Cow;

use futures_util::future::Either;
use opentelemetry::trace::{
    FutureExt, Link, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, TraceId, Tracer,
    WithContext,
};
use opentelemetry::{Context, ContextGuard, KeyValue, Value};
use opentelemetry_sdk::trace::SdkTracer;

/// A span. It ends with [`Self::end`], or when its last clone is dropped.
#[derive(Clone, Debug)]
pub struct Span(Context);

/// Makes a thread work for a span until it is dropped.
pub type Entered = ContextGuard;

/// A future that works for a span, or for none.
pub type WithinSpan<F> = Either<WithContext<F>, F>;

impl Span {
    /// Begins a span. `context` has the tracer.
    pub(super) fn begin(
        context: &Context,
        sender: Option<SpanContext>,
        tracer: &SdkTracer,
        builder: SpanBuilder,
    ) -> Self {
        let span = match sender {
            Some(sender) => {
                let parent = context.with_remote_span_context(sender);
                tracer.build_with_context(builder, &parent)
            }
            None => tracer.build_with_context(builder, context),
        };
        Self(context.with_span(span))
    }

    /// Begins a span of a part of this one.
    pub fn child(&self, name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Self {
        let tracer: &SdkTracer = (self.0.get()).expect("every span is made with its tracer");
        let builder = SpanBuilder::from_name(name).with_kind(kind);
        Self(
            self.0
                .with_span(tracer.build_with_context(builder, &self.0)),
        )
    }

    /// The id of its trace, for the log and for answers.
    pub fn trace_id(&self) -> TraceId {
        self.0.span().span_context().trace_id()
    }

    /// What other spans need to link to it.
    pub fn context(&self) -> SpanContext {
        self.0.span().span_context().clone()
    }

    /// A span of the log, whose lines then have the trace's id.
    pub fn log_span(&self) -> tracing::Span {
        tracing::info_span!("trace", trace_id = %self.trace_id())
    }

    /// Gives it another name.
    pub fn rename(&self, name: impl Into<Cow<'static, str>>) {
        self.0.span().update_name(name);
    }

    /// Sets an attribute, which must not contain personal data.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        self.0.span().set_attribute(KeyValue::new(key, value));
    }

    /// Adds something that happened in this moment, with an attribute.
    pub fn event(&self, name: &'static str, key: &'static str, value: impl Into<Value>) {
        let attribute = KeyValue::new(key, value);
        self.0.span().add_event(name, vec![attribute]);
    }

    /// Says that it has failed.
    pub fn fail(&self, reason: impl Into<Cow<'static, str>>) {
        self.0.span().set_status(Status::error(reason));
    }

    /// Links it to another span.
    pub fn link_to(&self, other: SpanContext) {
        self.0.span().add_link(other, Vec::new());
    }

    /// Ends it. What is set afterwards is lost.
    pub fn end(&self) {
        self.0.span().end();
    }

    /// Makes this thread work for the span. Async code uses [`within`].
    #[must_use = "the thread works for the span until this is dropped"]
    pub fn enter(&self) -> Entered {
        self.0.clone().attach()
    }
}

pub(super) fn link(span: SpanContext) -> Link {
    Link::with_context(span)
}

/// Returns the span that this thread works for.
pub fn current() -> Option<Span> {
    Context::map_current(|context| context.has_active_span().then(|| Span(context.clone())))
}

/// Begins a span for a part of what this thread works for, if that is traced.
pub fn part(name: &'static str) -> Option<Span> {
    current().map(|span| span.child(name, SpanKind::Internal))
}

/// Does a part of what this thread works for, as a span without spans of its own.
///
/// # Errors
/// Returns the error of `work`. The span has then failed.
pub fn leaf<T, E>(name: &'static str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let Some(span) = part(name) else {
        return work();
    };
    let outcome = {
        let _nothing = Context::new().attach();
        work()
    };
    close(&span, outcome)
}

/// Does the same asynchronously. `work` begins no spans of its own.
///
/// # Errors
/// Returns the error of `work`. The span has then failed.
pub async fn leaf_async<T, E>(
    name: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let span = part(name);
    let outcome = work.await;
    match span {
        Some(span) => close(&span, outcome),
        None => outcome,
    }
}

fn close<T, E>(span: &Span, outcome: Result<T, E>) -> Result<T, E> {
    if outcome.is_err() {
        span.fail("");
    }
    span.end();
    outcome
}

/// Makes a future work for a span, whichever threads it runs on.
pub fn within<F: Future>(span: Option<&Span>, work: F) -> WithinSpan<F> {
    match span {
        Some(span) => Either::Left(work.with_context(span.0.clone())),
        None => Either::Right(work),
    }
}
