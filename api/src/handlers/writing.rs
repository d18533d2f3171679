//! Creates, replaces, patches or deletes an order.

use std::sync::Arc;

use bytes::Bytes;
use shared::order::{Order, OrderUid};
use shared::traces;
use tracing::{Instrument, info};
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, LOCATION};
use warp::http::{HeaderValue, StatusCode};
use warp::reply::Response;

use super::Call;
use crate::app::App;
use crate::cache::{ReadyOrder, revision_etag};
use crate::http::authority::{Access, Grant};
use crate::http::budget::Reserved;
use crate::http::merge_patch::MergePatch;
use crate::http::problem::{ApiError, order_location};
use crate::http::request::{Body, Head};
use crate::http::{JSON, MERGE_PATCH, body, conditional, empty};
use crate::repository::{Edited, Effect, Precondition, Revision, WriteError, Written};

/// Creates an order.
pub async fn post(call: Call) -> Result<Response, ApiError> {
    let Call {
        app,
        grant,
        head,
        body,
        ..
    } = call;
    let (body, reserved) = receive(&app, &head, body, JSON).await?;
    let order = app.decoder.decode(&body)?;
    // The preconditions of the request are about the list, which POST does not change as a whole.
    let author = Author {
        operation: "post",
        grant,
    };
    store(&app, author, order, None, reserved).await
}

/// Replaces an order. Creates one if the client demands that there is none.
pub async fn put(call: Call) -> Result<Response, ApiError> {
    let uid = call.order_uid()?.clone();
    let Call {
        app,
        grant,
        head,
        body,
        ..
    } = call;
    let (body, reserved) = receive(&app, &head, body, JSON).await?;
    let order = app.decoder.decode(&body)?;
    if order.order_uid != uid {
        return Err(ApiError::UidMismatch);
    }
    let precondition = conditional::precondition(&head.headers)?;
    let author = Author {
        operation: "put",
        grant,
    };
    store(&app, author, order, Some(precondition), reserved).await
}

/// Checks the head of a write, and reads its body. Memory is reserved for the body and for the answer.
async fn receive(
    app: &App,
    head: &Head,
    body: Body,
    media_type: &'static str,
) -> Result<(Bytes, Reserved), ApiError> {
    head.parameters(&[])?;
    head.require_accepts_json()?;
    let reserved = app.budget.write(head.sender.client).await?;
    let body = body::read(head, body, media_type, app.body_deadline).await?;
    Ok((body, reserved))
}

/// Writes an order, and answers with it, for which memory is reserved. Without a precondition the order is created.
async fn store(
    app: &Arc<App>,
    author: Author,
    order: Order,
    precondition: Option<Precondition>,
    reserved: Reserved,
) -> Result<Response, ApiError> {
    let uid = order.order_uid.clone();
    let (repository, order) = (app.repository.clone(), Arc::new(order));
    let stored = Arc::clone(&order);
    let written = write(app, author, uid, async move {
        match precondition {
            Some(precondition) => repository.put_order(&stored, &precondition).await,
            None => repository.create_order(&stored).await,
        }
    })
    .await?;
    let mut response = order_response(&order, written.revision, reserved);
    if written.effect == Effect::Created {
        *response.status_mut() = StatusCode::CREATED;
        let location = order_location(order.order_uid.as_str());
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

/// Changes some members of an order. A patch that changes nothing writes nothing, so the order keeps its revision. The answer
/// has the order only for those who may read it: otherwise an empty patch would show it to whoever may write.
pub async fn patch(call: Call) -> Result<Response, ApiError> {
    let uid = call.order_uid()?.clone();
    let Call {
        app,
        grant,
        head,
        body,
        ..
    } = call;
    let (body, reserved) = receive(&app, &head, body, MERGE_PATCH).await?;
    let patch = MergePatch::parse(&body, &uid, &app.decoder)?;
    let precondition = conditional::precondition(&head.headers)?;
    let may_read = app.authority.check(Access::READ, &head, &mut None).is_ok();
    let (repository, decoder, patched) = (app.repository.clone(), app.decoder, uid.clone());
    let author = Author {
        operation: "patch",
        grant,
    };
    let Edited { written, order } = write(&app, author, uid, async move {
        let edit = move |order: &Order| patch.apply(order, &decoder);
        repository
            .edit_order(patched.as_str(), &edit, &precondition)
            .await
    })
    .await?;
    if may_read {
        return Ok(order_response(&order, written.revision, reserved));
    }
    let mut response = empty(StatusCode::NO_CONTENT);
    response
        .headers_mut()
        .insert(ETAG, revision_etag(written.revision));
    Ok(response)
}

/// Returns the answer to a write: the order as it is now.
fn order_response(order: &Order, revision: Revision, reserved: Reserved) -> Response {
    let (etag, body) = ReadyOrder::new(order, revision).into_parts();
    let mut response = Response::new(reserved.attach(body).into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    headers.insert(ETAG, etag);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    response
}

/// Deletes an order.
pub async fn delete(call: Call) -> Result<Response, ApiError> {
    let uid = call.order_uid()?.clone();
    let Call {
        app, grant, head, ..
    } = call;
    head.parameters(&[])?;
    let precondition = conditional::precondition(&head.headers)?;
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
/// client is answered.
async fn write<T: AsRef<Written> + Send + 'static>(
    app: &Arc<App>,
    author: Author,
    uid: OrderUid,
    writing: impl Future<Output = Result<T, WriteError>> + Send + 'static,
) -> Result<T, ApiError> {
    app.require_schema()?;
    let cache = Arc::clone(&app.cache);
    let task = async move {
        let outcome = writing.await.map_err(ApiError::from);
        // Also after a failure: a COMMIT may have succeeded although its answer was lost.
        cache.core.invalidate(uid.as_str());
        log_write(&author, &uid, outcome.as_ref().map(AsRef::as_ref));
        outcome
    };
    let task = Box::pin(task.in_current_span());
    let task = traces::within(traces::current().as_ref(), task);
    let task = tokio::spawn(task);
    let ended = async { task.await.unwrap_or(Err(ApiError::Internal)) };
    app.in_time(ended).await
}

/// Writes the log line that every write leaves, including those that the database refused: operation, order id, outcome, and
/// the version that was written, deleted or conflicting. The span has the request's id. Of the client the line contains only
/// the name of its token, and nothing else of the order.
fn log_write(author: &Author, uid: &OrderUid, outcome: Result<&Written, &ApiError>) {
    let (outcome, revision) = match outcome {
        Ok(Written { revision, effect }) => (effect.name(), Some(*revision)),
        Err(error) => (error.kind().1, error.present_revision()),
    };
    info!(
        operation = author.operation,
        token = author.grant.token_name(),
        order.id = uid.as_str(),
        outcome,
        version = revision.map(|revision| revision.version),
        "write"
    );
}
