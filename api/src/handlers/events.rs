//! The live feed, as Server-Sent Events.

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use tracing::debug;
use warp::Reply;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use warp::http::{HeaderName, HeaderValue, Method};
use warp::reply::Response;

use super::Call;
use crate::app::App;
use crate::feed::{OrderSet, StreamEnd};
use crate::http::authority::Grant;
use crate::http::problem::ApiError;
use crate::http::request::{Head, ORDER_UIDS, named_orders};
use crate::shares::Exhausted;

/// The media type of Server-Sent Events.
const EVENT_STREAM: &str = "text/event-stream";
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Without this header, nginx would hold events back until its buffer is full.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Streams the changes of all orders, or of those that `order_uids` names. The stream is never compressed, because an encoder
/// would hold events back, too.
pub async fn follow(
    Call {
        app, grant, head, ..
    }: Call,
) -> Result<Response, ApiError> {
    let [uids] = head.parameters(&[ORDER_UIDS])?;
    let uids = uids.map(|value| named_orders(&value)).transpose()?;
    head.require_accepts(EVENT_STREAM)?;
    let mut response = if head.method == Method::HEAD {
        // Its length is unknown, like that of GET.
        warp::reply::stream(stream::empty::<Result<Vec<u8>, Infallible>>()).into_response()
    } else {
        feed(app, grant, &head, uids.map(OrderSet::new))?
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM));
    // A proxy that compresses would hold events back, too.
    let no_store = HeaderValue::from_static("no-store, no-transform");
    headers.insert(CACHE_CONTROL, no_store);
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

fn feed(
    app: Arc<App>,
    grant: Grant,
    head: &Head,
    orders: Option<OrderSet>,
) -> Result<Response, ApiError> {
    if app.stopping.closing.is_cancelled() {
        return Err(ApiError::Overloaded("the server is stopping, try again"));
    }
    // Our ids are text; anything else matches none of them.
    let last_event_id = head.headers.get(LAST_EVENT_ID);
    let last_event_id = last_event_id.map(|id| id.to_str().unwrap_or_default());
    let client = app
        .cache
        .feed
        .join(head.sender.client, last_event_id, orders);
    let client = client.map_err(|exhausted| {
        ApiError::Overloaded(match exhausted {
            Exhausted::Share => {
                "this address follows the events 100 times, which is all that one address may, try again when it has left one"
            }
            Exhausted::All => "the limit of clients that follow the events is reached, try again",
        })
    })?;
    let following = app.metrics.feed.client_joined();
    let body = stream::unfold(
        (app, client, following),
        async |(app, mut client, following)| match client.next(&app.stopping.closing).await {
            Ok(bytes) => Some((Ok::<_, Infallible>(bytes), (app, client, following))),
            Err(end) => {
                if end == StreamEnd::Slow {
                    app.metrics.feed.client_dropped();
                }
                debug!(?end, "stream of events ended");
                None
            }
        },
    );
    let body = body.take_until(grant.withdrawn());
    Ok(warp::reply::stream(body).into_response())
}
