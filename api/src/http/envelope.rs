//! What all answers have in common: the request's id, problem documents, the log line and the metrics.

use std::any::Any;
use std::convert::Infallible;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::{Either, Ready, ready};
use shared::server::{RequestBody, Unreadable};
use shared::traces::{self, Traces};
use tracing::field::display;
use tracing::{Instrument, Span, debug, error, info_span};
use uuid::Uuid;
use uuid::fmt::Simple;
use warp::Reply;
use warp::http::header::{CONNECTION, X_CONTENT_TYPE_OPTIONS};
use warp::http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use warp::reply::Response;

use super::access_log::{Access, AccessLogger};
use super::checks;
use super::cors::Cors;
use super::empty;
use super::forwarded::TrustedProxies;
use super::problem::ApiError;
use super::rate_limit::{Quota, RateLimiter};
use super::request::Sender;
use super::server_span::{self, Answered};
use crate::config::Config;
use crate::config::tokens::Token;
use crate::metrics::Metrics;
use crate::stopping::Stopping;

/// The header with the id of a request. The id is also in the log.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID_BYTES: usize = 128;

/// A value that is either there at once or has to be waited for. The future is boxed, so that a value that is there at once
/// stays small to move.
pub type Answering<T> = Either<Ready<T>, Pin<Box<dyn Future<Output = T> + Send>>>;

/// Wraps a value that is there at once.
pub fn at_once<T>(answer: T) -> Answering<T> {
    Either::Left(ready(answer))
}

/// What a route made of a request. [`Envelope::answer`] writes the problem document, because it knows the request's id.
#[derive(Debug)]
pub struct Outcome {
    /// The name of the route, for metrics and the log.
    pub route: &'static str,
    /// The path of the route as `openapi.json` writes it, for traces; `None` if no route was found.
    pub path: Option<&'static str>,
    /// The token of the request, for the log.
    pub token: Option<Arc<Token>>,
    /// The answer, or why there is none.
    pub result: Result<Response, ApiError>,
}

/// The part of an [`Outcome`] that its answer cannot hold, on its way through warp.
#[derive(Clone)]
struct Carried {
    route: &'static str,
    path: Option<&'static str>,
    token: Option<Arc<Token>>,
    problem: Option<ApiError>,
}

impl Reply for Outcome {
    fn into_response(self) -> Response {
        let (mut response, problem) = match self.result {
            Ok(response) => (response, None),
            Err(problem) => (empty(problem.status()), Some(problem)),
        };
        let carried = Carried {
            route: self.route,
            path: self.path,
            token: self.token,
            problem,
        };
        response.extensions_mut().insert(carried);
        response
    }
}

impl Outcome {
    /// Puts the outcome of a request together that needed no token.
    pub fn new(route: &'static str, result: Result<Response, ApiError>) -> Self {
        Self {
            route,
            path: None,
            token: None,
            result,
        }
    }

    /// Takes an outcome out of the response that warp made of it.
    pub fn of_reply(mut response: Response) -> Self {
        match response.extensions_mut().remove() {
            Some(Carried {
                route,
                path,
                token,
                problem,
            }) => Self {
                route,
                path,
                token,
                result: problem.map_or(Ok(response), Err),
            },
            // Not reached: the one filter rejects no request.
            None => Self::new("none", Err(ApiError::Internal)),
        }
    }
}

/// Answers all requests that the envelope passes on.
pub type Routes = Box<dyn Fn(Sender, Request<RequestBody>) -> Answering<Outcome> + Send + Sync>;

/// Encloses the routes in what all answers have in common.
pub struct Envelope {
    cors: Cors,
    proxies: TrustedProxies,
    rate_limiter: Option<RateLimiter>,
    access_log: AccessLogger,
    traces: Option<Traces>,
    metrics: Arc<Metrics>,
    stopping: Stopping,
    routes: Routes,
}

impl Envelope {
    /// Encloses `routes`.
    pub fn new(config: &Config, metrics: Arc<Metrics>, stopping: Stopping, routes: Routes) -> Self {
        Self {
            cors: Cors::new(config.cors_allowed_origins.clone()),
            proxies: TrustedProxies::new(config.trusted_proxies.clone()),
            access_log: AccessLogger::new(config.access_log),
            rate_limiter: config.rate_limit_per_minute.map(RateLimiter::new),
            traces: None,
            metrics,
            stopping,
            routes,
        }
    }

    /// Lets requests have spans.
    pub fn with_traces(self, traces: Option<Traces>) -> Self {
        Self { traces, ..self }
    }

    /// Answers a request. An answer that the routes have at once costs neither a future nor a span of the log, because nothing
    /// is logged on the way. A request that is not sampled costs the look-up of one header, and only if there are traces.
    pub fn answer(
        self: &Arc<Self>,
        peer: IpAddr,
        mut request: Request<RequestBody>,
    ) -> Answering<Result<Response, Infallible>> {
        let checked = checks::check(&mut request);
        let exchange = self.open(peer, &request);
        let answering = match self.own_answer(&exchange, &request, checked) {
            Some(outcome) => at_once(outcome),
            // A panic may leave state half changed, but only behind locks, and no lock guards an invariant across calls.
            None => {
                // The cache is asked here, and may begin a load.
                let _entered = exchange.trace.as_ref().map(traces::Span::enter);
                catch_unwind(AssertUnwindSafe(|| (self.routes)(exchange.sender, request)))
                    .unwrap_or_else(|panic| at_once(exchange.panicked(&*panic)))
            }
        };
        let waiting = match answering {
            Either::Left(outcome) => {
                return at_once(Ok(self.close(exchange, outcome.into_inner())));
            }
            Either::Right(waiting) => waiting,
        };
        let envelope = Arc::clone(self);
        let waiting = waiting.instrument(exchange.span());
        let waiting = traces::within(exchange.trace.as_ref(), waiting);
        Either::Right(Box::pin(async move {
            let in_flight = envelope.metrics.request_started();
            let outcome = AssertUnwindSafe(waiting).catch_unwind().await;
            let outcome = outcome.unwrap_or_else(|panic| exchange.panicked(&*panic));
            drop(in_flight);
            Ok(envelope.close(exchange, outcome))
        }))
    }

    /// Answers a request that nobody can read. The log and the metrics do not know its method.
    pub fn refuse(&self, peer: IpAddr, unreadable: Unreadable) -> Response {
        let exchange = Exchange {
            started: Instant::now(),
            sender: self.proxies.sender(peer, &HeaderMap::new()),
            own_id: generated_id(),
            given_id: None,
            method: Method::from_bytes(b"-").expect("a dash is a valid token"),
            origin: None,
            quota: None,
            trace: None,
        };
        self.close(exchange, Outcome::new("none", Err(unreadable.into())))
    }

    fn open(&self, peer: IpAddr, request: &Request<RequestBody>) -> Exchange {
        let limiter = self.rate_limiter.as_ref();
        let traces = self.traces.as_ref();
        let sender = self.proxies.sender(peer, request.headers());
        Exchange {
            started: Instant::now(),
            sender,
            own_id: generated_id(),
            given_id: given_id(request.headers()),
            method: request.method().clone(),
            origin: self.cors.allowed_origin(request.headers()),
            quota: limiter.and_then(|limiter| limiter.take(sender.client, request.uri().path())),
            trace: traces.and_then(|traces| server_span::begin(traces, request.headers())),
        }
    }

    /// Answers what needs no route.
    fn own_answer(
        &self,
        exchange: &Exchange,
        request: &Request<RequestBody>,
        checked: Result<(), ApiError>,
    ) -> Option<Outcome> {
        if let Some(Err(refused)) = exchange.quota.as_ref().map(Quota::check) {
            return Some(Outcome::new("rate_limit", Err(refused)));
        }
        if let Err(refused) = checked {
            return Some(Outcome::new("none", Err(refused)));
        }
        let preflight = self.cors.preflight(request)?;
        Some(Outcome::new("preflight", Ok(preflight)))
    }

    fn close(&self, exchange: Exchange, outcome: Outcome) -> Response {
        let (route, path) = (outcome.route, outcome.path);
        let mut response = outcome.result.unwrap_or_else(|problem| {
            exchange.log_problem(&problem, route);
            let trace = exchange.trace.as_ref();
            problem.response(exchange.id_text(), trace.map(traces::Span::trace_id))
        });
        let (status, duration) = (response.status(), exchange.started.elapsed());
        self.metrics
            .request_ended(&exchange.method, route, status, duration);
        if self.access_log.wants(status) {
            let access = Access {
                sender: exchange.sender,
                token: outcome.token.as_ref(),
                method: exchange.method.as_str(),
                route,
                status,
                duration,
            };
            exchange.span().in_scope(|| self.access_log.log(&access));
        }
        if let Some(span) = &exchange.trace {
            let answered = Answered {
                method: &exchange.method,
                path,
                response: &response,
            };
            server_span::end(span, &answered);
        }
        let headers = response.headers_mut();
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(X_REQUEST_ID, exchange.request_id().clone());
        self.cors.set_headers(exchange.origin, headers);
        if let Some(quota) = &exchange.quota {
            quota.set_headers(headers);
        }
        // A balancer that keeps its connections should not send another request on this one.
        if self.stopping.has_begun() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// What is kept of a request for its answer.
struct Exchange {
    started: Instant,
    sender: Sender,
    /// The id that we have given the request.
    own_id: HeaderValue,
    /// The id that the client has given it.
    given_id: Option<HeaderValue>,
    method: Method,
    origin: Option<HeaderValue>,
    quota: Option<Quota>,
    /// The span of the request, if it is traced.
    trace: Option<traces::Span>,
}

impl Exchange {
    /// The id of the request, as its answer names it.
    fn request_id(&self) -> &HeaderValue {
        self.given_id.as_ref().unwrap_or(&self.own_id)
    }

    fn id_text(&self) -> &str {
        self.request_id().to_str().unwrap_or_default()
    }

    /// The span of the request in the log.
    fn span(&self) -> Span {
        let trace_id = self.trace.as_ref().map(traces::Span::trace_id).map(display);
        match self.given_id {
            // Clients may give two requests one id. With our own id the log can tell them apart.
            Some(_) => info_span!(
                "request",
                request.id = self.id_text(),
                request.own_id = self.own_id.to_str().unwrap_or_default(),
                trace_id
            ),
            None => info_span!("request", request.id = self.id_text(), trace_id),
        }
    }

    fn panicked(&self, panic: &(dyn Any + Send)) -> Outcome {
        self.span()
            .in_scope(|| error!("handler panicked: {}", panic_text(panic)));
        Outcome::new("none", Err(ApiError::Internal))
    }

    fn log_problem(&self, problem: &ApiError, route: &'static str) {
        let (status_code, code, _) = problem.kind();
        if let Some(span) = &self.trace {
            span.set("orders.problem.code", code);
        }
        let method = self.method.as_str();
        let duration_ms = self.started.elapsed().as_millis();
        self.span().in_scope(|| match problem {
            ApiError::Internal => {
                error!(
                    method,
                    route, status_code, code, duration_ms, "request failed"
                );
            }
            // Either the client's fault, or the database's, which is already in the log. At a higher level any scanner and
            // any outage could fill the disk.
            _ => debug!(
                method,
                route, status_code, code, duration_ms, "request refused"
            ),
        });
    }
}

/// Returns the id that the client has given the request, if it can be one.
fn given_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let is_id = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=MAX_REQUEST_ID_BYTES).contains(&bytes.len())
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    headers.get(X_REQUEST_ID).filter(is_id).cloned()
}

/// Generates an id. It must be unique but need not be secret, so the operating system is not asked for random numbers.
fn generated_id() -> HeaderValue {
    let mut text = [0; Simple::LENGTH];
    let text = Uuid::from_u128(fastrand::u128(..))
        .simple()
        .encode_lower(&mut text);
    HeaderValue::from_str(text).expect("hexadecimal digits are valid in a header")
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}
