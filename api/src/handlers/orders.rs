//! Reads one order.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use futures_util::future::Either;
use warp::http::header::{AGE, CACHE_CONTROL, CONTENT_TYPE, ETAG, X_CONTENT_TYPE_OPTIONS};
use warp::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use warp::reply::Response;

use super::{Answer, Call};
use crate::cache::core::Demand;
use crate::cache::loader::{Fetched, Share, Source};
use crate::http::conditional;
use crate::http::conditional::Reading;
use crate::http::empty;
use crate::http::envelope::{X_REQUEST_ID, at_once};
use crate::http::problem::{ApiError, CACHE_STATUS};

/// Tells a browser's developer tools what took the time (W3C Server Timing): `cache`, or `db` with its milliseconds.
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// The headers of a hit. They are cloned, because inserting each one would hash its name; then the values that differ are
/// replaced. The envelope's headers are included, so that the map need not grow. The headers that other answers lack come
/// last, because removing a header moves the last one into its place.
static HIT_HEADERS: LazyLock<HeaderMap> = LazyLock::new(|| {
    HeaderMap::from_iter([
        (ETAG, HeaderValue::from_static("")),
        (CACHE_CONTROL, HeaderValue::from_static("private, no-cache")),
        (CACHE_STATUS, HeaderValue::from_static("orders; hit")),
        (SERVER_TIMING, HeaderValue::from_static("cache")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (X_REQUEST_ID, HeaderValue::from_static("")),
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (AGE, HeaderValue::from_static("0")),
    ])
});
/// Reads an order. A cache hit is answered at once.
pub fn get(call: Call) -> Answer {
    let fetching = call.order_uid().and_then(|uid| {
        call.head.parameters(&[])?;
        call.head.require_accepts_json()?;
        call.app.require_schema()?;
        Ok(call.app.cache.get(uid.as_str(), demand(&call.head.headers)))
    });
    match fetching {
        Err(refused) => at_once(Err(refused)),
        Ok(Either::Left(cached)) => at_once(order_answer(&call, cached, Duration::ZERO)),
        Ok(Either::Right(loading)) => {
            let started = Instant::now();
            Either::Right(Box::pin(async move {
                let loaded = call.app.in_time(loading).await?;
                order_answer(&call, loaded, started.elapsed())
            }))
        }
    }
}

fn order_answer(
    Call { app, head, .. }: &Call,
    fetched: Fetched,
    waited: Duration,
) -> Result<Response, ApiError> {
    let Fetched { order, source } = fetched;
    let cache_status = match source {
        Source::Cache { .. } => "orders; hit",
        Source::Database(Demand::Proven, Share::Stored) => "orders; fwd=miss; stored",
        Source::Database(Demand::Proven, Share::Discarded) => "orders; fwd=miss",
        Source::Database(Demand::Proven, Share::Collapsed) => "orders; fwd=miss; collapsed",
        Source::Database(Demand::Database, Share::Stored) => "orders; fwd=request; stored",
        Source::Database(Demand::Database, Share::Discarded) => "orders; fwd=request",
        Source::Database(Demand::Database, Share::Collapsed) => "orders; fwd=request; collapsed",
        Source::Blind => "orders; fwd=bypass; detail=blind",
    };
    let order = order.ok_or(ApiError::OrderNotFound {
        cache_status: Some(cache_status),
    })?;
    let revision = order.revision;
    let (etag, body) = order.into_parts();
    let mut response = match conditional::reading(&head.headers, revision)? {
        Reading::Send => {
            let body = app.budget.count(head.sender.client, body)?;
            Response::new(body.into())
        }
        Reading::NotModified => empty(StatusCode::NOT_MODIFIED),
        Reading::Mismatch => {
            let current = Some(revision);
            return Err(ApiError::VersionMismatch { current });
        }
    };
    let is_empty = response.status() == StatusCode::NOT_MODIFIED;
    let headers = response.headers_mut();
    *headers = HIT_HEADERS.clone();
    headers.insert(ETAG, etag);
    if is_empty {
        headers.remove(CONTENT_TYPE);
    }
    if let Source::Cache { proof_age } = source {
        // Usually below one second, because there is a proof every second.
        if proof_age.as_secs() > 0 {
            headers.insert(AGE, proof_age.as_secs().into());
        }
    } else {
        headers.remove(AGE);
        headers.insert(CACHE_STATUS, HeaderValue::from_static(cache_status));
        let duration_ms = waited.as_secs_f64() * 1000.0;
        let timing = HeaderValue::try_from(format!("db;dur={duration_ms:.3}"))
            .expect("a number is valid in a header");
        headers.insert(SERVER_TIMING, timing);
    }
    Ok(response)
}

/// Returns what the client demands: `Cache-Control: no-cache` demands the database (RFC 9111, section 5.2.1.4).
pub(super) fn demand(headers: &HeaderMap) -> Demand {
    let mut directives = headers
        .get_all(CACHE_CONTROL)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    if directives.any(|directive| directive.trim().eq_ignore_ascii_case("no-cache")) {
        Demand::Database
    } else {
        Demand::Proven
    }
}
