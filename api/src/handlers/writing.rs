//! Replaces or deletes an order.

use std::sync::Arc;

use shared::order::{OrderError, OrderUid};
use tracing::{Instrument, info};
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use warp::http::{HeaderValue, StatusCode};
use warp::reply::Response;

use super::Call;
use crate::app::App;
use crate::cache::ReadyOrder;
use crate::http::authority::Grant;
use crate::http::problem::ApiError;
use crate::http::{body, conditional, empty};
use crate::repository::{Revision, WriteError};

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
    let body = body::read(&head, body, body::JSON, app.body_deadline).await?;
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
