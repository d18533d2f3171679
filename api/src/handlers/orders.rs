//! Reads one order, and replaces or deletes an order.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::future::Either;
use shared::order::{MAX_ORDER_BYTES, OrderError, OrderUid};
use tracing::{Instrument, info};
use warp::http::header::{
    AGE, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, EXPECT,
    X_CONTENT_TYPE_OPTIONS,
};
use warp::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use warp::reply::Response;

use super::{Answer, Call};
use crate::app::App;
use crate::cache::ReadyOrder;
use crate::cache::core::Demand;
use crate::cache::loader::{Fetched, Share, Source};
use crate::http::authority::Grant;
use crate::http::conditional;
use crate::http::conditional::Reading;
use crate::http::empty;
use crate::http::envelope::{X_REQUEST_ID, at_once};
use crate::http::problem::{ApiError, CACHE_STATUS};
use crate::http::request::{Body, Head};
use crate::repository::{Revision, WriteError};

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
/// How much of an oversized body is read and discarded, so that the client gets to read the answer.
const MAX_DRAINED_BYTES: usize = 8 * 1024 * 1024;

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
        Ok(Either::Left(cached)) => at_once(order_answer(&call.head, cached, Duration::ZERO)),
        Ok(Either::Right(loading)) => {
            let started = Instant::now();
            Either::Right(Box::pin(async move {
                let loaded = call.app.in_time(loading).await?;
                order_answer(&call.head, loaded, started.elapsed())
            }))
        }
    }
}

fn order_answer(head: &Head, fetched: Fetched, waited: Duration) -> Result<Response, ApiError> {
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
    let mut response = match conditional::reading(&head.headers, revision) {
        Reading::Send => Response::new(body.into()),
        Reading::NotModified => empty(StatusCode::NOT_MODIFIED),
        Reading::Mismatch => return Err(ApiError::VersionMismatch { current: revision }),
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

/// Replaces an order.
pub async fn put(call: Call) -> Result<Response, ApiError> {
    let uid = call.order_uid()?.clone();
    let Call {
        app,
        grant,
        head,
        body,
        ..
    } = call;
    head.parameters(&[])?;
    head.require_accepts_json()?;
    require_json_body(&head)?;
    refuse_announced_oversize(&head)?;
    let body = read_body(&app, body).await?;
    let order = app.decoder.decode(&body).map_err(|error| match error {
        OrderError::TooLarge { .. } => ApiError::BodyTooLarge,
        OrderError::NotJson(detail) => ApiError::MalformedJson(detail),
        OrderError::Invalid(faults) => ApiError::InvalidOrder(faults),
    })?;
    if order.order_uid != uid {
        return Err(ApiError::UidMismatch);
    }
    let precondition = conditional::precondition(&head.headers);
    let (repository, replacement) = (app.repository.clone(), Arc::new(order));
    let order = Arc::clone(&replacement);
    let author = Author {
        operation: "put",
        grant,
    };
    let revision = write(&app, author, uid, async move {
        repository.replace_order(&replacement, &precondition).await
    })
    .await?;
    let (etag, body) = ReadyOrder::new(&order, revision).into_parts();
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ETAG, etag);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    Ok(response)
}

/// Deletes an order.
pub async fn delete(call: Call) -> Result<Response, ApiError> {
    let uid = call.order_uid()?.clone();
    let Call {
        app, grant, head, ..
    } = call;
    head.parameters(&[])?;
    let precondition = conditional::precondition(&head.headers);
    let (repository, deleted) = (app.repository.clone(), uid.clone());
    let author = Author {
        operation: "delete",
        grant,
    };
    write(&app, author, uid, async move {
        repository
            .delete_order(deleted.as_str(), &precondition)
            .await
    })
    .await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Who does what to an order, for the log.
struct Author {
    operation: &'static str,
    grant: Grant,
}

/// Runs a write to its end, even if the client disconnects. Evicts the order from the cache and writes a log line before the
/// client is answered. Returns the revision that was written or deleted.
async fn write(
    app: &Arc<App>,
    author: Author,
    uid: OrderUid,
    writing: impl Future<Output = Result<Revision, WriteError>> + Send + 'static,
) -> Result<Revision, ApiError> {
    app.require_schema()?;
    let cache = Arc::clone(&app.cache);
    let task = async move {
        let outcome = writing.await.map_err(ApiError::from);
        // Also after a failure: a COMMIT may have succeeded although its answer was lost.
        cache.core.invalidate(uid.as_str());
        log_write(&author, &uid, &outcome);
        outcome
    };
    let task = tokio::spawn(task.in_current_span());
    let ended = async { task.await.unwrap_or(Err(ApiError::Internal)) };
    app.in_time(ended).await
}

/// Writes the log line that every write leaves, including those that the database refused: operation, order id, outcome, and
/// the version that was written, deleted or conflicting. The span has the request's id. Of the client the line contains only
/// the name of its token, and nothing else of the order.
fn log_write(author: &Author, uid: &OrderUid, outcome: &Result<Revision, ApiError>) {
    let (outcome, version) = match outcome {
        Ok(written) => ("done", Some(written.version)),
        Err(ApiError::VersionMismatch { current }) => ("version_mismatch", Some(current.version)),
        Err(error) => (error.kind().1, None),
    };
    info!(
        operation = author.operation,
        token = author.grant.token_name(),
        order.id = uid.as_str(),
        outcome,
        version,
        "write"
    );
}

/// Checks that the body is declared as plain JSON in UTF-8. The crate `mime` would refuse valid headers, such as
/// `application/json ; charset=utf-8`.
fn require_json_body(head: &Head) -> Result<(), ApiError> {
    let media_type = head.header(&CONTENT_TYPE).unwrap_or_default();
    let (essence, parameters) = media_type.split_once(';').unwrap_or((media_type, ""));
    let parameters = parameters.trim().to_ascii_lowercase();
    let charset = parameters.strip_prefix("charset=");
    let is_utf8 = charset.is_none_or(|charset| charset.trim_matches('"') == "utf-8");
    let is_json = essence.trim().eq_ignore_ascii_case("application/json");
    let mut encodings = head.headers.get_all(CONTENT_ENCODING).iter();
    let is_plain = encodings.all(|each| each.as_bytes().eq_ignore_ascii_case(b"identity"));
    if is_json && is_utf8 && is_plain {
        Ok(())
    } else {
        Err(ApiError::UnsupportedMediaType)
    }
}

/// A client that asks before it sends (`Expect: 100-continue`) need not send a body that will be refused anyway.
fn refuse_announced_oversize(head: &Head) -> Result<(), ApiError> {
    let announced = head
        .header(&CONTENT_LENGTH)
        .and_then(|value| value.parse().ok());
    let is_too_large = announced.is_some_and(|size_bytes: usize| size_bytes > MAX_ORDER_BYTES);
    if is_too_large && head.headers.contains_key(EXPECT) {
        return Err(ApiError::BodyTooLarge);
    }
    Ok(())
}

async fn read_body(app: &App, body: Body) -> Result<Bytes, ApiError> {
    let collecting = tokio::time::timeout(app.body_deadline, collect_body(body));
    collecting.await.unwrap_or(Err(ApiError::RequestTimeout))
}

/// Counts the bytes that arrive instead of trusting Content-Length, which a chunked body does not have.
async fn collect_body(mut body: Body) -> Result<Bytes, ApiError> {
    let mut collected = Vec::new();
    let mut size_bytes = 0;
    // An error here means that the client hung up or broke the framing, so nobody is left to read details.
    while let Some(chunk) = body
        .try_next()
        .await
        .map_err(|_| ApiError::MalformedJson("the body is incomplete".into()))?
    {
        size_bytes += chunk.len();
        if size_bytes > MAX_DRAINED_BYTES {
            break;
        }
        if size_bytes <= MAX_ORDER_BYTES {
            collected.extend_from_slice(&chunk);
        }
    }
    if size_bytes > MAX_ORDER_BYTES {
        Err(ApiError::BodyTooLarge)
    } else {
        Ok(collected.into())
    }
}
