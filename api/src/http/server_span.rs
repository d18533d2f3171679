//! The span of a request, with the attributes of OpenTelemetry's conventions for HTTP servers. It has no path, no query and no
//! address, because these name orders and people.

use std::time::SystemTime;

use shared::traces::{NewSpan, Origin, Span, SpanKind, TRACEPARENT, TRACESTATE, Traces};
use warp::http::{HeaderMap, HeaderName, HeaderValue, Method};
use warp::reply::Response;

use super::problem::CACHE_STATUS;
use crate::metrics::known_method;

const TRACEPARENT_HEADER: HeaderName = HeaderName::from_static(TRACEPARENT);

/// The convention's name of all methods that a client has made up.
const OTHER: &str = "_OTHER";

/// What the span of a request tells when it ends.
#[derive(Debug)]
pub struct Answered<'a> {
    /// The request's method.
    pub method: &'a Method,
    /// The path of its route; `None` if no route was found.
    pub path: Option<&'static str>,
    /// Its answer.
    pub response: &'a Response,
}

/// Begins the span of a request with these headers; `None` if it is not sampled.
pub fn begin(traces: &Traces, headers: &HeaderMap) -> Option<Span> {
    let sender = headers.get(TRACEPARENT_HEADER).map(HeaderValue::as_bytes);
    let state = || headers.get(TRACESTATE).map(HeaderValue::as_bytes);
    let origin = traces.origin(sender, state)?;
    Some(begin_sampled(traces, origin))
}

/// Not inlined, so that an unsampled hit does not carry its code.
#[cold]
fn begin_sampled(traces: &Traces, origin: Origin) -> Span {
    let new = NewSpan {
        // Until the route is known.
        name: "HTTP".to_owned(),
        kind: SpanKind::Server,
        started_at: SystemTime::now(),
        links: Vec::new(),
    };
    traces.begin(origin, new)
}

/// Ends the span of a request.
pub fn end(span: &Span, answered: &Answered<'_>) {
    let known = known_method(answered.method);
    let method = known.unwrap_or(OTHER);
    let status = answered.response.status();
    let verb = known.unwrap_or("HTTP");
    match answered.path {
        Some(path) => {
            span.rename([verb, path].join(" "));
            span.set("http.route", path);
        }
        None => span.rename(verb),
    }
    span.set("http.request.method", method);
    span.set("url.scheme", "http");
    span.set("http.response.status_code", i64::from(status.as_u16()));
    let cache_status = answered.response.headers().get(CACHE_STATUS);
    if let Some(text) = cache_status.and_then(|value| value.to_str().ok()) {
        span.set("orders.cache_status", text.to_owned());
    }
    // For a server, what the client did wrong is no failure.
    if status.is_server_error() {
        span.set("error.type", status.as_str().to_owned());
        span.fail("");
    }
    span.end();
}
