//! Every route of the server.
//!
//! Paths are matched before methods, and a rejection only means "not my path": each handler answers all methods of its
//! path, so 405 always has its `Allow` and 404 is never turned into 405 by a neighbour.

#[cfg(test)]
mod openapi;

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::Either;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use warp::http::Request;
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection};

use crate::app::App;
use crate::handlers::{cache, events, health, orders, web};
use crate::http::envelope::{Answering, Outcome, at_once, reply};
use crate::http::problem::ApiError;
use crate::http::request::{Call, OldProtocol, order_uid};

/// Each path and the methods that it knows, as its `Allow` says: what `openapi.json` describes and the tests ask.
pub const ROUTES: [(&str, &str); 18] = [
    ("/order/{order_uid}", READ),
    (
        "/api/v1/orders/{order_uid}",
        "GET, HEAD, PUT, DELETE, OPTIONS",
    ),
    (crate::handlers::listing::PATH, READ),
    ("/api/v1/cache/stats", READ),
    ("/api/v1/cache/warmup", "POST, OPTIONS"),
    ("/api/v1/cache", "DELETE, OPTIONS"),
    ("/api/v1/events", READ),
    ("/health", READ),
    ("/livez", READ),
    ("/readyz", READ),
    ("/metrics", READ),
    ("/openapi.json", READ),
    ("/", READ),
    ("/style.css", READ),
    ("/app.js", READ),
    ("/api.html", READ),
    ("/api.js", READ),
    ("/favicon.svg", READ),
];
const READ: &str = "GET, HEAD, OPTIONS";

/// All routes but `/order/`; `or` tries them in order, so what is asked most stands first.
fn routes(
    app: &Arc<App>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + use<> {
    let call = call(app);

    let order_resource = below("/api/v1/orders/")
        .and(call.clone())
        .and(warp::body::stream())
        .then(orders::order)
        .map(reply("order"));

    let rest_of_api = exactly(crate::handlers::listing::PATH)
        .and(call.clone())
        .then(orders::order_list)
        .map(reply("orders"))
        .or(exactly("/api/v1/cache/stats")
            .and(call.clone())
            .then(cache::stats)
            .map(reply("cache_stats")))
        .unify()
        .or(exactly("/api/v1/cache/warmup")
            .and(call.clone())
            .then(cache::warmup)
            .map(reply("cache_warmup")))
        .unify()
        .or(exactly("/api/v1/cache")
            .and(call.clone())
            .then(cache::whole)
            .map(reply("cache")))
        .unify()
        .or(exactly("/api/v1/events")
            .and(call.clone())
            .then(events::events)
            .map(reply("events")))
        .unify()
        .boxed();

    let operations = exactly("/health")
        .and(call.clone())
        .then(health::health)
        .map(reply("health"))
        .or(exactly("/livez")
            .and(call.clone())
            .then(health::livez)
            .map(reply("livez")))
        .unify()
        .or(exactly("/readyz")
            .and(call.clone())
            .then(health::readyz)
            .map(reply("readyz")))
        .unify()
        .or(exactly("/metrics")
            .and(call.clone())
            .then(health::metrics)
            .map(reply("metrics")))
        .unify()
        .boxed();

    let page = asset("/", &web::INDEX)
        .or(asset("/style.css", &web::STYLE))
        .unify()
        .or(asset("/app.js", &web::SCRIPT))
        .unify()
        .or(asset("/api.html", &web::REFERENCE))
        .unify()
        .or(asset("/api.js", &web::REFERENCE_SCRIPT))
        .unify()
        .or(asset("/favicon.svg", &web::ICON))
        .unify()
        .or(asset("/openapi.json", &web::OPENAPI))
        .unify()
        .and(call)
        .then(web::asset)
        .map(reply("page"))
        .boxed();

    order_resource
        .or(rest_of_api)
        .unify()
        .or(operations)
        .unify()
        .or(page)
        .unify()
        .or_else(|_| {
            ready(Ok::<_, Infallible>((reply("none")(Err(
                ApiError::NoSuchEndpoint,
            )),)))
        })
}

/// All routes: each request is given to the one that its path names.
pub fn router(
    app: &Arc<App>,
) -> impl Fn(Request<Incoming>) -> Answering<Outcome> + Send + Sync + use<> {
    let routes = TowerToHyperService::new(warp::service(routes(app)));
    let app = Arc::clone(app);
    move |request| {
        // The hot route before warp's filters: they are cloned for each request, as its header is, and give nothing at once.
        if let Some(segment) = segment_below("/order/", request.uri().path()) {
            let uid = order_uid(segment);
            let call = Call::new(Arc::clone(&app), request.into_parts().0);
            return name_route("order", orders::read_only_order(uid, call));
        }
        let replying = routes.call(request);
        Either::Right(Box::pin(replying.map(|reply| match reply {
            Ok(response) => Outcome::of_reply(response),
        })))
    }
}

fn name_route(
    route: &'static str,
    answering: Answering<Result<Response, ApiError>>,
) -> Answering<Outcome> {
    let outcome = move |result| Outcome { route, result };
    match answering {
        Either::Left(result) => at_once(outcome(result.into_inner())),
        Either::Right(waiting) => Either::Right(Box::pin(waiting.map(outcome))),
    }
}

/// Takes what every handler needs.
fn call(app: &Arc<App>) -> impl Filter<Extract = (Call,), Error = Infallible> + Clone + use<> {
    let app = Arc::clone(app);
    warp::method()
        .and(warp::header::headers_cloned())
        .and(warp::query::raw().or_else(|_| ready(Ok::<_, Infallible>((String::new(),)))))
        .and(warp::ext::optional::<OldProtocol>())
        .map(
            move |method, headers, query, old_protocol: Option<OldProtocol>| Call {
                app: Arc::clone(&app),
                method,
                headers,
                query,
                can_stream: old_protocol.is_none(),
            },
        )
}

/// Matches one path.
fn exactly(wanted: &'static str) -> impl Filter<Extract = (), Error = Rejection> + Clone {
    debug_assert!(
        ROUTES.iter().any(|(path, _)| *path == wanted),
        "{wanted} is missing in ROUTES"
    );
    warp::path::full()
        .and_then(move |path: FullPath| {
            ready(if path.as_str() == wanted {
                Ok(())
            } else {
                Err(warp::reject::not_found())
            })
        })
        .untuple_one()
}

/// Matches one segment, as sent, behind a prefix. An empty one too: it is an invalid id, not an unknown path.
fn below(prefix: &'static str) -> impl Filter<Extract = (String,), Error = Rejection> + Clone {
    debug_assert!(
        ROUTES
            .iter()
            .any(|(path, _)| path.strip_prefix(prefix) == Some("{order_uid}")),
        "{prefix} is missing in ROUTES"
    );
    warp::path::full().and_then(move |path: FullPath| {
        let segment = segment_below(prefix, path.as_str()).map(str::to_owned);
        ready(segment.ok_or_else(warp::reject::not_found))
    })
}

fn segment_below<'a>(prefix: &str, path: &'a str) -> Option<&'a str> {
    path.strip_prefix(prefix)
        .filter(|segment| !segment.contains('/'))
}

fn asset(
    path: &'static str,
    asset: &'static web::Asset,
) -> impl Filter<Extract = (&'static web::Asset,), Error = Rejection> + Clone {
    exactly(path).map(move || asset)
}
