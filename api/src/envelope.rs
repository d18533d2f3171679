//! What every answer has in common: its request's id, its problem document, its log line, its metrics.

use std::any::Any;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::service::Service;
use tracing::{Instrument, Span, debug, error, info_span};
use warp::http::header::X_CONTENT_TYPE_OPTIONS;
use warp::http::{HeaderName, HeaderValue, Request, StatusCode, Version};
use warp::reply::Response;

use crate::app::App;
use crate::problem::ApiError;
use crate::rate_limit::Quota;
use crate::request::OldProtocol;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID_BYTES: usize = 128;

/// The name of the route that answered, for metrics.
#[derive(Clone, Copy, Debug)]
struct RouteName(&'static str);

/// Makes what a handler returns into an answer; a problem is written later, by [`answer`], which knows the request's id.
pub fn reply(route: &'static str) -> impl Fn(Result<Response, ApiError>) -> Response + Clone {
    move |outcome| {
        let mut response = outcome.unwrap_or_else(|error| {
            let mut response = Response::new(Default::default());
            response.extensions_mut().insert(error);
            response
        });
        response.extensions_mut().insert(RouteName(route));
        response
    }
}

/// Answers a request.
pub async fn answer<S>(
    app: &App,
    service: &S,
    peer: IpAddr,
    mut request: Request<Incoming>,
) -> Response
where
    S: Service<Request<Incoming>, Response = Response, Error = std::convert::Infallible>,
{
    let started = Instant::now();
    let request_id = request_id(&request);
    let method = request.method().clone();
    let id_text = request_id.to_str().unwrap_or_default();
    let span = info_span!("request", request.id = id_text);
    let in_flight = app.metrics.request_started();
    if request.version() < Version::HTTP_11 {
        request.extensions_mut().insert(OldProtocol);
    }

    let origin = app.cors.allowed_origin(request.headers());
    let limiter = app.rate_limiter.as_ref();
    let quota = limiter.and_then(|limiter| limiter.take(peer, request.uri().path()));

    // The state that a panic may leave half-changed is behind locks that hold no invariants across calls.
    let answered = async {
        if let Some(Err(refused)) = quota.as_ref().map(Quota::check) {
            return Ok(reply("rate_limit")(Err(refused)));
        }
        match app.cors.preflight(&request) {
            Some(response) => Ok(reply("preflight")(Ok(response))),
            None => service.call(request).await,
        }
    };
    let answered = AssertUnwindSafe(answered)
        .catch_unwind()
        .instrument(span.clone())
        .await;
    let mut response = match answered {
        Ok(Ok(response)) => response,
        Err(panic) => {
            span.in_scope(|| error!("handler panicked: {}", panic_text(&*panic)));
            reply("none")(Err(ApiError::Internal))
        }
    };

    let route = response
        .extensions_mut()
        .remove::<RouteName>()
        .map_or("none", |name| name.0);
    if let Some(problem) = response.extensions_mut().remove::<ApiError>() {
        response = problem.response(id_text);
        log_problem(&span, &problem, route, method.as_str(), started);
    }
    drop(in_flight);
    app.metrics
        .request_ended(&method, route, response.status(), started.elapsed());
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_REQUEST_ID, request_id);
    app.cors.set_headers(origin, headers);
    if let Some(quota) = quota {
        quota.set_headers(headers);
    }
    response
}

fn log_problem(
    span: &Span,
    problem: &ApiError,
    route: &'static str,
    method: &str,
    started: Instant,
) {
    let (status, code, _) = problem.kind();
    let duration_ms = started.elapsed().as_millis();
    let status_code = status.as_u16();
    span.in_scope(|| match status {
        StatusCode::INTERNAL_SERVER_ERROR => {
            error!(
                method,
                route, status_code, code, duration_ms, "request failed"
            );
        }
        // The client's fault, or the database's, which has been logged with its reason: at a higher level any scanner, and
        // any outage, could fill the disk.
        _ => debug!(
            method,
            route, status_code, code, duration_ms, "request refused"
        ),
    });
}

fn request_id(request: &Request<Incoming>) -> HeaderValue {
    let is_id = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=MAX_REQUEST_ID_BYTES).contains(&bytes.len())
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    match request.headers().get(X_REQUEST_ID).filter(is_id) {
        Some(id) => id.clone(),
        // No secret: it need only not come twice, and random numbers of the system's cost a call of it.
        None => HeaderValue::try_from(format!("{:032x}", fastrand::u128(..)))
            .expect("hexadecimal digits may stand in a header"),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}
