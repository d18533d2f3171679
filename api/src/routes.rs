//! The table of all routes, and the function that dispatches by it.
//!
//! Each request is checked in this order: path, order id in the path, method, authorization. Only then does its handler
//! run, which makes the remaining checks.

#[cfg(test)]
mod openapi;

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;

use bytes::Buf;
use futures_util::future::Either;
use futures_util::{FutureExt, Stream, TryStreamExt, stream};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use warp::http::header::ALLOW;
use warp::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version};
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection};

use crate::app::App;
use crate::config::tokens::{Scope, Token};
use crate::handlers::{Answer, Call, cache, events, health, listing, orders, web, writing};
use crate::http::authority::{Access, Grant};
use crate::http::envelope::{Answering, Outcome, Routes, at_once};
use crate::http::problem::{ACCEPT_PATCH, ApiError};
use crate::http::request::{Body, Head, Sender, order_uid};
use crate::http::{MERGE_PATCH, OPS_PATHS, empty};

/// The target that means the whole server.
const SERVER: &str = "*";
/// The last segment of the paths that name an order.
const ORDER_UID: &str = "{order_uid}";

/// The last segment of the path that names a file of the page.
const FILE: &str = "{file}";

/// All routes. The most frequent one comes first, because the table is searched from the top.
#[rustfmt::skip] // One line per route.
pub static ROUTES: [Route; 20] = [
    Route { path: "/order/{order_uid}", name: "order", endpoints: &[get(READ, orders::get)] },
    // Before the path of one order, which would take "search" for an order's id.
    Route { path: listing::SEARCH_PATH, name: "search", endpoints: &[post(READ, |call| later(listing::search(call)))] },
    Route { path: "/api/v1/orders/{order_uid}", name: "order", endpoints: &[
        get(READ, orders::get),
        put(WRITE, |call| later(writing::put(call))),
        patch(WRITE, |call| later(writing::patch(call))),
        delete(WRITE, |call| later(writing::delete(call))),
    ] },
    Route { path: listing::PATH, name: "orders", endpoints: &[
        get(READ, |call| later(listing::list(call))),
        post(WRITE, |call| later(writing::post(call))),
    ] },
    Route { path: "/api/v1/cache/stats", name: "cache_stats", endpoints: &[get(READ, |call| later(cache::stats(call)))] },
    Route { path: "/api/v1/cache/warmup", name: "cache_warmup", endpoints: &[post(OPERATE, |call| later(cache::warm_up(call)))] },
    Route { path: "/api/v1/cache", name: "cache", endpoints: &[delete(OPERATE, |call| later(cache::clear(call)))] },
    Route { path: "/api/v1/events", name: "events", endpoints: &[get(READ, |call| later(events::follow(call)))] },
    Route { path: "/health", name: "health", endpoints: &[get(OPEN, |call| later(health::health(call)))] },
    Route { path: "/livez", name: "livez", endpoints: &[get(OPEN, |call| later(health::livez(call)))] },
    Route { path: "/readyz", name: "readyz", endpoints: &[get(OPEN, |call| later(health::readyz(call)))] },
    Route { path: "/metrics", name: "metrics", endpoints: &[get(SEE_METRICS, |call| later(health::metrics(call)))] },
    Route { path: "/openapi.json", name: "page", endpoints: &[get(OPEN, |call| later(web::asset(&web::OPENAPI, call)))] },
    Route { path: "/", name: "page", endpoints: &[get(OPEN, |call| later(web::asset(&web::INDEX, call)))] },
    Route { path: "/style.css", name: "page", endpoints: &[get(OPEN, |call| later(web::asset(&web::STYLE, call)))] },
    Route { path: "/app.js", name: "page", endpoints: &[get(OPEN, |call| later(web::asset(&web::SCRIPT, call)))] },
    Route { path: "/scripts/{file}", name: "page", endpoints: &[get(OPEN, |call| later(web::script(call)))] },
    Route { path: "/api.html", name: "page", endpoints: &[get(OPEN, |call| later(web::asset(&web::REFERENCE, call)))] },
    Route { path: "/api.js", name: "page", endpoints: &[get(OPEN, |call| later(web::asset(&web::REFERENCE_SCRIPT, call)))] },
    Route { path: "/favicon.svg", name: "page", endpoints: &[get(OPEN, |call| later(web::asset(&web::ICON, call)))] },
];

/// A path and what answers its methods.
#[derive(Debug)]
pub struct Route {
    /// The path as `openapi.json` writes it.
    pub path: &'static str,
    /// The name of the route in metrics and logs.
    name: &'static str,
    endpoints: &'static [Endpoint],
}

/// One method of a path. GET includes HEAD, and every path answers OPTIONS.
#[derive(Debug)]
struct Endpoint {
    method: &'static str,
    /// What it needs; `None` if it is open to everyone.
    access: Option<Access>,
    handler: fn(Call) -> Answer,
}

const OPEN: Option<Access> = None;
const READ: Option<Access> = Some(Access::READ);
const WRITE: Option<Access> = needs(Scope::Write, true);
const OPERATE: Option<Access> = needs(Scope::Operate, true);
const SEE_METRICS: Option<Access> = needs(Scope::Operate, false);

const fn needs(scope: Scope, is_write: bool) -> Option<Access> {
    Some(Access { scope, is_write })
}

const fn get(access: Option<Access>, handler: fn(Call) -> Answer) -> Endpoint {
    endpoint("GET", access, handler)
}

const fn post(access: Option<Access>, handler: fn(Call) -> Answer) -> Endpoint {
    endpoint("POST", access, handler)
}

const fn put(access: Option<Access>, handler: fn(Call) -> Answer) -> Endpoint {
    endpoint("PUT", access, handler)
}

const fn patch(access: Option<Access>, handler: fn(Call) -> Answer) -> Endpoint {
    endpoint("PATCH", access, handler)
}

const fn delete(access: Option<Access>, handler: fn(Call) -> Answer) -> Endpoint {
    endpoint("DELETE", access, handler)
}

const fn endpoint(
    method: &'static str,
    access: Option<Access>,
    handler: fn(Call) -> Answer,
) -> Endpoint {
    Endpoint {
        method,
        access,
        handler,
    }
}

/// Boxes what a handler has to wait for.
fn later(answer: impl Future<Output = Result<Response, ApiError>> + Send + 'static) -> Answer {
    Either::Right(Box::pin(answer))
}

impl Route {
    /// Finds the route of a path, and the segment that should be an order id or a file; a plain path has none.
    fn find(path: &str) -> Option<(&'static Self, &str)> {
        ROUTES.iter().find_map(|route| {
            let prefix = route.path.strip_suffix(ORDER_UID);
            let segment = match prefix.or_else(|| route.path.strip_suffix(FILE)) {
                Some(prefix) => path
                    .strip_prefix(prefix)
                    .filter(|segment| !segment.contains('/')),
                None => (path == route.path).then_some(""),
            };
            segment.map(|segment| (route, segment))
        })
    }

    /// Returns the value of `Allow`.
    pub fn allow(&self) -> String {
        allow(self.endpoints.iter())
    }

    fn is_of_order(&self) -> bool {
        self.path.ends_with(ORDER_UID)
    }

    /// Answers a request of this route, and adds the route's name.
    fn dispatch(
        &self,
        app: &Arc<App>,
        door: Door,
        segment: &str,
        head: Head,
        body: Body,
    ) -> Answering<Outcome> {
        let call = Call {
            app: Arc::clone(app),
            order_uid: None,
            file: None,
            grant: Grant::Open,
            head,
            body,
        };
        let mut token = None;
        let answer = self.answer(door, segment, call, &mut token);
        let (route, path) = (self.name, Some(self.path));
        let outcome = move |result| Outcome {
            route,
            path,
            token,
            result,
        };
        match answer.unwrap_or_else(|refused| at_once(Err(refused))) {
            Either::Left(result) => at_once(outcome(result.into_inner())),
            Either::Right(waiting) => Either::Right(Box::pin(waiting.map(outcome))),
        }
    }

    /// Puts the request's token into `token`, for the log.
    fn answer(
        &self,
        door: Door,
        segment: &str,
        mut call: Call,
        token: &mut Option<Arc<Token>>,
    ) -> Result<Answer, ApiError> {
        if self.is_of_order() {
            call.order_uid = Some(order_uid(segment)?);
        } else if !segment.is_empty() {
            call.file = Some(segment.to_owned());
        }
        let method = match call.head.method.as_str() {
            "OPTIONS" => return Ok(at_once(Ok(self.options()))),
            "HEAD" => "GET",
            method => method,
        };
        let endpoint = self.endpoints.iter().find(|each| each.method == method);
        let endpoint = endpoint.ok_or_else(|| ApiError::MethodNotAllowed {
            allow: self.allow(),
        })?;
        if let Some(access) = endpoint.access.filter(|_| door == Door::Clients) {
            call.grant = call.app.authority.check(access, &call.head, token)?;
        }
        Ok((endpoint.handler)(call))
    }

    fn options(&self) -> Response {
        let mut response = options(self.allow());
        if self.endpoints.iter().any(|each| each.method == "PATCH") {
            let media_type = HeaderValue::from_static(MERGE_PATCH);
            response.headers_mut().insert(ACCEPT_PATCH, media_type);
        }
        response
    }
}

/// The port by which a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    /// The port for all clients.
    Clients,
    /// The port for operators. Whoever reaches it may see the process's health and metrics.
    Operators,
}

/// Returns the methods of endpoints, each once, as `Allow` lists them.
fn allow(endpoints: impl Iterator<Item = &'static Endpoint>) -> String {
    let mut methods = Vec::new();
    for endpoint in endpoints {
        let method = match endpoint.method {
            "GET" => "GET, HEAD",
            method => method,
        };
        if !methods.contains(&method) {
            methods.push(method);
        }
    }
    methods.push("OPTIONS");
    methods.join(", ")
}

fn options(allow: String) -> Response {
    let mut response = empty(StatusCode::NO_CONTENT);
    let allow = HeaderValue::try_from(allow).expect("methods are valid in a header");
    response.headers_mut().insert(ALLOW, allow);
    response
}

/// Answers `OPTIONS *`, which asks what a server as a whole can do (RFC 9110, section 9.3.7). No other request has this
/// target.
fn options_of_server(is_served: impl Fn(&Route) -> bool) -> Answering<Outcome> {
    let served = ROUTES.iter().filter(|route| is_served(route));
    let allow = allow(served.flat_map(|route| route.endpoints));
    at_once(Outcome::new("none", Ok(options(allow))))
}

/// Answers a request by the table.
fn dispatch(app: &Arc<App>, path: &str, head: Head, body: Body) -> Answering<Outcome> {
    match Route::find(path) {
        Some((route, segment)) => route.dispatch(app, Door::Clients, segment, head, body),
        None => at_once(Outcome::new("none", Err(ApiError::NoSuchEndpoint))),
    }
}

/// Returns what answers all requests: `dispatch`, which warp calls.
///
/// Only requests that read an order go to their route without warp. They are by far the most frequent and need no body. Warp
/// would copy their headers and could not answer a cache hit at once.
pub fn router(app: &Arc<App>) -> Routes {
    let served = TowerToHyperService::new(warp::service(filter(app)));
    let app = Arc::clone(app);
    Box::new(move |sender, request| {
        let (mut parts, body) = request.into_parts();
        if matches!(parts.method, Method::GET | Method::HEAD)
            && let Some((route, segment)) = Route::find(parts.uri.path())
            && route.is_of_order()
        {
            let (method, headers, version) = (parts.method, parts.headers, parts.version);
            let head = head_of(method, headers, &parts.uri, version, sender);
            return route.dispatch(&app, Door::Clients, segment, head, no_body());
        }
        if parts.uri.path() == SERVER {
            return options_of_server(|_| true);
        }
        parts.extensions.insert(Arrival {
            version: parts.version,
            sender,
        });
        let request = Request::from_parts(parts, body);
        let served = served.call(request);
        Either::Right(Box::pin(served.map(|Ok(reply)| Outcome::of_reply(reply))))
    })
}

/// Returns what answers the requests of the operators' port: the routes that watch the process, and no others.
pub fn ops_router(app: &Arc<App>) -> Routes {
    let app = Arc::clone(app);
    Box::new(move |sender, request| {
        let (parts, _) = request.into_parts();
        match Route::find(parts.uri.path()) {
            Some((route, segment)) if OPS_PATHS.contains(&route.path) => {
                let (method, headers, version) = (parts.method, parts.headers, parts.version);
                let head = head_of(method, headers, &parts.uri, version, sender);
                route.dispatch(&app, Door::Operators, segment, head, no_body())
            }
            _ if parts.uri.path() == SERVER => {
                options_of_server(|route| OPS_PATHS.contains(&route.path))
            }
            _ => at_once(Outcome::new("none", Err(ApiError::NoSuchEndpoint))),
        }
    })
}

fn head_of(
    method: Method,
    headers: HeaderMap,
    uri: &Uri,
    version: Version,
    sender: Sender,
) -> Head {
    Head {
        method,
        headers,
        query: uri.query().unwrap_or_default().to_owned(),
        version,
        sender,
    }
}

fn no_body() -> Body {
    Box::pin(stream::empty())
}

/// What warp does not tell of a request, on its way through warp.
#[derive(Clone, Copy)]
struct Arrival {
    version: Version,
    sender: Sender,
}

fn filter(
    app: &Arc<App>,
) -> impl Filter<Extract = (Outcome,), Error = Rejection> + Clone + Send + Sync + use<> {
    let app = Arc::clone(app);
    let query = warp::query::raw().or_else(|_| ready(Ok::<_, Infallible>((String::new(),))));
    warp::any()
        .and(warp::path::full())
        .and(warp::method())
        .and(warp::header::headers_cloned())
        .and(query)
        .and(warp::ext::get::<Arrival>())
        .and(warp::body::stream().map(boxed))
        .then(
            move |path: FullPath, method, headers, query, arrival: Arrival, body| {
                let Arrival { version, sender } = arrival;
                let head = Head {
                    method,
                    headers,
                    query,
                    version,
                    sender,
                };
                dispatch(&app, path.as_str(), head, body)
            },
        )
}

fn boxed<B: Buf>(body: impl Stream<Item = Result<B, warp::Error>> + Send + Sync + 'static) -> Body {
    Box::pin(body.map_ok(|mut part| part.copy_to_bytes(part.remaining())))
}
