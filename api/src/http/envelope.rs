//! What every answer has in common: its request's id, its problem document, its log line, its metrics.

use std::any::Any;
use std::convert::Infallible;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::{Either, Ready, ready};
use hyper::body::Incoming;
use tracing::{Instrument, Span, debug, error, info_span};
use uuid::Uuid;
use uuid::fmt::Simple;
use warp::http::header::X_CONTENT_TYPE_OPTIONS;
use warp::http::{HeaderName, HeaderValue, Method, Request, StatusCode, Version};
use warp::reply::Response;

use crate::app::App;
use crate::http::problem::ApiError;
use crate::http::rate_limit::Quota;
use crate::http::request::OldProtocol;

/// Names a request: in its answer, in the log.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID_BYTES: usize = 128;

/// What comes at once, out of memory, or has to be waited for; the latter in a box, so that the former moves little.
pub type Answering<T> = Either<Ready<T>, Pin<Box<dyn Future<Output = T> + Send>>>;

/// What comes at once.
pub fn at_once<T>(answer: T) -> Answering<T> {
    Either::Left(ready(answer))
}

/// What a route made of a request. A problem is written later, by [`answer`], which knows the request's id.
#[derive(Debug)]
pub struct Outcome {
    /// The name of the route, for metrics.
    pub route: &'static str,
    /// Its answer.
    pub result: Result<Response, ApiError>,
}

/// Carries [`Outcome::route`] through warp; the problem goes with it, in the place of the answer.
#[derive(Clone, Copy, Debug)]
struct RouteName(&'static str);

/// Makes what a handler returns into what warp's filters may give.
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

impl Outcome {
    /// Takes it out of what [`reply`] made.
    pub fn of_reply(mut response: Response) -> Self {
        let extensions = response.extensions_mut();
        let route = extensions.remove::<RouteName>();
        let problem = extensions.remove::<ApiError>();
        Self {
            route: route.map_or("none", |name| name.0),
            result: problem.map_or(Ok(response), Err),
        }
    }
}

/// Answers a request. What the routes have at once costs neither a future nor a span, for nothing is logged on the way.
pub fn answer(
    app: &Arc<App>,
    routes: &(impl Fn(Request<Incoming>) -> Answering<Outcome> + ?Sized),
    peer: IpAddr,
    mut request: Request<Incoming>,
) -> Answering<Result<Response, Infallible>> {
    let envelope = Envelope::open(app, peer, &request);
    if request.version() < Version::HTTP_11 {
        request.extensions_mut().insert(OldProtocol);
    }
    let answering = match envelope.own_answer(app, &request) {
        Some(outcome) => at_once(outcome),
        // The state that a panic may leave half-changed is behind locks that hold no invariants across calls.
        None => catch_unwind(AssertUnwindSafe(|| routes(request)))
            .unwrap_or_else(|panic| at_once(envelope.panicked(&*panic))),
    };
    let waiting = match answering {
        Either::Left(outcome) => return at_once(Ok(envelope.close(app, outcome.into_inner()))),
        Either::Right(waiting) => waiting,
    };
    let app = Arc::clone(app);
    let waiting = waiting.instrument(envelope.span());
    Either::Right(Box::pin(async move {
        let in_flight = app.metrics.request_started();
        let outcome = AssertUnwindSafe(waiting).catch_unwind().await;
        let outcome = outcome.unwrap_or_else(|panic| envelope.panicked(&*panic));
        drop(in_flight);
        Ok(envelope.close(&app, outcome))
    }))
}

/// What is kept of a request for its answer.
struct Envelope {
    started: Instant,
    request_id: HeaderValue,
    method: Method,
    origin: Option<HeaderValue>,
    quota: Option<Quota>,
}

impl Envelope {
    fn open(app: &App, peer: IpAddr, request: &Request<Incoming>) -> Self {
        let limiter = app.rate_limiter.as_ref();
        Self {
            started: Instant::now(),
            request_id: request_id(request),
            method: request.method().clone(),
            origin: app.cors.allowed_origin(request.headers()),
            quota: limiter.and_then(|limiter| limiter.take(peer, request.uri().path())),
        }
    }

    /// What no route is asked for.
    fn own_answer(&self, app: &App, request: &Request<Incoming>) -> Option<Outcome> {
        if let Some(Err(refused)) = self.quota.as_ref().map(Quota::check) {
            return Some(Outcome {
                route: "rate_limit",
                result: Err(refused),
            });
        }
        app.cors.preflight(request).map(|response| Outcome {
            route: "preflight",
            result: Ok(response),
        })
    }

    fn close(self, app: &App, outcome: Outcome) -> Response {
        let route = outcome.route;
        let mut response = outcome.result.unwrap_or_else(|problem| {
            self.log_problem(&problem, route);
            problem.response(self.id_text())
        });
        let duration = self.started.elapsed();
        app.metrics
            .request_ended(&self.method, route, response.status(), duration);
        let headers = response.headers_mut();
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(X_REQUEST_ID, self.request_id);
        app.cors.set_headers(self.origin, headers);
        if let Some(quota) = &self.quota {
            quota.set_headers(headers);
        }
        response
    }

    fn id_text(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }

    fn span(&self) -> Span {
        info_span!("request", request.id = self.id_text())
    }

    fn panicked(&self, panic: &(dyn Any + Send)) -> Outcome {
        self.span()
            .in_scope(|| error!("handler panicked: {}", panic_text(panic)));
        Outcome {
            route: "none",
            result: Err(ApiError::Internal),
        }
    }

    fn log_problem(&self, problem: &ApiError, route: &'static str) {
        let (status, code, _) = problem.kind();
        let method = self.method.as_str();
        let duration_ms = self.started.elapsed().as_millis();
        let status_code = status.as_u16();
        self.span().in_scope(|| match status {
            StatusCode::INTERNAL_SERVER_ERROR => {
                error!(
                    method,
                    route, status_code, code, duration_ms, "request failed"
                );
            }
            // The client's fault, or the database's, which has been logged with its reason: at a higher level any scanner,
            // and any outage, could fill the disk.
            _ => debug!(
                method,
                route, status_code, code, duration_ms, "request refused"
            ),
        });
    }
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
        None => made_up_id(),
    }
}

/// No secret: it need only not come twice, and random numbers of the system's cost a call of it.
fn made_up_id() -> HeaderValue {
    let mut text = [0; Simple::LENGTH];
    let text = Uuid::from_u128(fastrand::u128(..))
        .simple()
        .encode_lower(&mut text);
    HeaderValue::from_str(text).expect("hexadecimal digits may stand in a header")
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}
