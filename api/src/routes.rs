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
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use shared::order::OrderUid;
use warp::http::header::ALLOW;
use warp::http::{HeaderValue, Method, Request, StatusCode, Version};
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection};

use crate::app::App;
use crate::handlers::{Answer, Call, cache, events, health, listing, orders, web};
use crate::http::empty;
use crate::http::envelope::{Answering, Outcome, at_once};
use crate::http::problem::ApiError;
use crate::http::request::{Body, Head, order_uid};

/// The last segment of the paths that name an order.
const ORDER_UID: &str = "{order_uid}";

/// All routes. The most frequent one stands first, because the table is searched from the top.
#[rustfmt::skip] // One line per route.
pub static ROUTES: [Route; 18] = [
    of_order("/order/{order_uid}", "order", &[read(orders::get)]),
    of_order("/api/v1/orders/{order_uid}", "order", &[
        read(orders::get),
        write("PUT", |uid, call| later(orders::put(uid, call))),
        write("DELETE", |uid, call| later(orders::delete(uid, call))),
    ]),
    plain(listing::PATH, "orders", &[read(|call| later(orders::list(call)))]),
    plain("/api/v1/cache/stats", "cache_stats", &[read(|call| later(cache::stats(call)))]),
    plain("/api/v1/cache/warmup", "cache_warmup", &[write("POST", |call| later(cache::warm_up(call)))]),
    plain("/api/v1/cache", "cache", &[write("DELETE", |call| later(cache::clear(call)))]),
    plain("/api/v1/events", "events", &[read(|call| later(events::follow(call)))]),
    plain("/health", "health", &[read(|call| later(health::health(call)))]),
    plain("/livez", "livez", &[read(|call| later(health::livez(call)))]),
    plain("/readyz", "readyz", &[read(|call| later(health::readyz(call)))]),
    plain("/metrics", "metrics", &[read(|call| later(health::metrics(call)))]),
    plain("/openapi.json", "page", &[read(|call| later(web::asset(&web::OPENAPI, call)))]),
    plain("/", "page", &[read(|call| later(web::asset(&web::INDEX, call)))]),
    plain("/style.css", "page", &[read(|call| later(web::asset(&web::STYLE, call)))]),
    plain("/app.js", "page", &[read(|call| later(web::asset(&web::SCRIPT, call)))]),
    plain("/api.html", "page", &[read(|call| later(web::asset(&web::REFERENCE, call)))]),
    plain("/api.js", "page", &[read(|call| later(web::asset(&web::REFERENCE_SCRIPT, call)))]),
    plain("/favicon.svg", "page", &[read(|call| later(web::asset(&web::ICON, call)))]),
];

/// A path and what answers its methods.
#[derive(Debug)]
pub struct Route {
    /// The path as `openapi.json` writes it.
    pub path: &'static str,
    /// The name of the route in metrics and logs.
    name: &'static str,
    methods: Methods,
}

/// What answers each method of a path.
#[derive(Debug)]
enum Methods {
    Plain(Endpoints<fn(Call) -> Answer>),
    /// The path ends in an order id, which is checked before the method.
    OfOrder(Endpoints<fn(OrderUid, Call) -> Answer>),
}

type Endpoints<H> = &'static [Endpoint<H>];

/// One method of a path. GET includes HEAD, and every path answers OPTIONS.
#[derive(Debug)]
struct Endpoint<H> {
    method: &'static str,
    access: Access,
    handler: H,
}

/// Who may call an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Everyone,
    /// Whoever [`crate::http::authority`] lets write.
    Writers,
}

const fn plain(
    path: &'static str,
    name: &'static str,
    endpoints: Endpoints<fn(Call) -> Answer>,
) -> Route {
    let methods = Methods::Plain(endpoints);
    Route {
        path,
        name,
        methods,
    }
}

const fn of_order(
    path: &'static str,
    name: &'static str,
    endpoints: Endpoints<fn(OrderUid, Call) -> Answer>,
) -> Route {
    let methods = Methods::OfOrder(endpoints);
    Route {
        path,
        name,
        methods,
    }
}

const fn read<H>(handler: H) -> Endpoint<H> {
    Endpoint {
        method: "GET",
        access: Access::Everyone,
        handler,
    }
}

const fn write<H>(method: &'static str, handler: H) -> Endpoint<H> {
    Endpoint {
        method,
        access: Access::Writers,
        handler,
    }
}

/// Boxes what a handler has to wait for.
fn later(answer: impl Future<Output = Result<Response, ApiError>> + Send + 'static) -> Answer {
    Either::Right(Box::pin(answer))
}

impl Route {
    /// Finds the route of a path, and the segment that should be an order id; a plain path has none.
    fn find(path: &str) -> Option<(&'static Self, &str)> {
        ROUTES.iter().find_map(|route| {
            let segment = match route.path.strip_suffix(ORDER_UID) {
                Some(prefix) => path
                    .strip_prefix(prefix)
                    .filter(|segment| !segment.contains('/')),
                None => (path == route.path).then_some(""),
            };
            segment.map(|segment| (route, segment))
        })
    }

    /// The value of `Allow`.
    pub fn allow(&self) -> String {
        match self.methods {
            Methods::Plain(endpoints) => allow(endpoints),
            Methods::OfOrder(endpoints) => allow(endpoints),
        }
    }

    fn answer(&self, segment: &str, call: Call) -> Answer {
        let answer = match self.methods {
            Methods::Plain(endpoints) => {
                choose(endpoints, &call).map(|chosen| chosen.map(|handler| handler(call)))
            }
            Methods::OfOrder(endpoints) => order_uid(segment).and_then(|uid| {
                let chosen = choose(endpoints, &call)?;
                Ok(chosen.map(|handler| handler(uid, call)))
            }),
        };
        match answer {
            Ok(Some(answer)) => answer,
            Ok(None) => at_once(Ok(options(&self.allow()))),
            Err(refused) => at_once(Err(refused)),
        }
    }
}

/// Chooses the handler of the request's method; `None` for OPTIONS, which needs none.
fn choose<H: Copy>(endpoints: Endpoints<H>, call: &Call) -> Result<Option<H>, ApiError> {
    let method = match call.head.method.as_str() {
        "OPTIONS" => return Ok(None),
        "HEAD" => "GET",
        method => method,
    };
    let endpoint = endpoints.iter().find(|endpoint| endpoint.method == method);
    let endpoint = endpoint.ok_or_else(|| ApiError::MethodNotAllowed {
        allow: allow(endpoints),
    })?;
    if endpoint.access == Access::Writers {
        call.app.authority.check(&call.head.headers)?;
    }
    Ok(Some(endpoint.handler))
}

fn allow<H>(endpoints: Endpoints<H>) -> String {
    let mut methods = Vec::new();
    for endpoint in endpoints {
        methods.push(endpoint.method);
        if endpoint.method == "GET" {
            methods.push("HEAD");
        }
    }
    methods.push("OPTIONS");
    methods.join(", ")
}

fn options(allow: &str) -> Response {
    let mut response = empty(StatusCode::NO_CONTENT);
    let allow = HeaderValue::from_str(allow).expect("methods are valid in a header");
    response.headers_mut().insert(ALLOW, allow);
    response
}

/// Answers a request by the table.
fn dispatch(app: &Arc<App>, path: &str, head: Head, body: Body) -> Answering<Outcome> {
    let Some((route, segment)) = Route::find(path) else {
        let result = Err(ApiError::NoSuchEndpoint);
        return at_once(Outcome {
            route: "none",
            result,
        });
    };
    let app = Arc::clone(app);
    let outcome = |result| Outcome {
        route: route.name,
        result,
    };
    match route.answer(segment, Call { app, head, body }) {
        Either::Left(result) => at_once(outcome(result.into_inner())),
        Either::Right(waiting) => Either::Right(Box::pin(waiting.map(outcome))),
    }
}

/// Returns what answers all requests: [`dispatch`], which warp calls.
///
/// Only requests that read an order call it without warp: they are by far the most frequent and need no body, and warp
/// would copy their headers and could not answer a cache hit at once.
pub fn router(
    app: &Arc<App>,
) -> impl Fn(Request<Incoming>) -> Answering<Outcome> + Send + Sync + use<> {
    let served = TowerToHyperService::new(warp::service(filter(app)));
    let app = Arc::clone(app);
    move |mut request| {
        let can_stream = request.version() >= Version::HTTP_11;
        if is_order_read(&request) {
            let (parts, _) = request.into_parts();
            let head = Head {
                method: parts.method,
                headers: parts.headers,
                query: parts.uri.query().unwrap_or_default().to_owned(),
                can_stream,
            };
            return dispatch(&app, parts.uri.path(), head, Box::pin(stream::empty()));
        }
        request.extensions_mut().insert(CanStream(can_stream));
        let served = served.call(request);
        Either::Right(Box::pin(served.map(|Ok(reply)| Outcome::of_reply(reply))))
    }
}

fn is_order_read(request: &Request<Incoming>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
        && Route::find(request.uri().path())
            .is_some_and(|(route, _)| matches!(route.methods, Methods::OfOrder(_)))
}

/// [`Head::can_stream`] of a request on its way through warp, which does not tell the version.
#[derive(Clone, Copy)]
struct CanStream(bool);

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
        .and(warp::ext::get::<CanStream>())
        .and(warp::body::stream().map(boxed))
        .then(
            move |path: FullPath, method, headers, query, CanStream(can_stream), body| {
                let head = Head {
                    method,
                    headers,
                    query,
                    can_stream,
                };
                dispatch(&app, path.as_str(), head, body)
            },
        )
}

fn boxed<B: Buf>(body: impl Stream<Item = Result<B, warp::Error>> + Send + Sync + 'static) -> Body {
    Box::pin(body.map_ok(|mut part| part.copy_to_bytes(part.remaining())))
}
