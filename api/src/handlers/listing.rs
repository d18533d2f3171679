//! Lists orders: a page of them, or all of them as a stream.
//!
//! `request`: the parameters. `cursor`: the cursors, which lead from page to page. `body`: the JSON of a page.

mod body;
mod cursor;
mod request;

use std::ops::ControlFlow;

use serde::Serialize;
use tracing::info;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE, LINK, VARY};
use warp::http::{HeaderValue, Method};
use warp::reply::Response;

use super::Call;
use crate::app::App;
use crate::export;
use crate::http::compression::compress;
use crate::http::problem::ApiError;

use body::PageBody;
pub use cursor::{decode_cursor, encode_cursor};
pub use request::parse_limit;
use request::{ListFormat, ListRequest};

/// The path of the list.
pub const PATH: &str = "/api/v1/orders";

/// Lists orders: a page, or all of them as a stream.
pub async fn list(
    Call {
        app, grant, head, ..
    }: Call,
) -> Result<Response, ApiError> {
    let request = ListRequest::parse(&head)?;
    app.require_schema()?;
    let format = request.format;
    let mut response = match format {
        ListFormat::Json => app.in_time(list_page(&app, &request)).await?,
        ListFormat::Ndjson if head.method == Method::HEAD => export::no_orders(),
        ListFormat::Ndjson => {
            let (metrics, shutdown) = (&app.metrics.exports, &app.shutdown);
            info!(operation = "export", token = grant.token_name(), "read");
            let (repository, ListRequest { filter, view, .. }) = (&app.repository, request);
            let beginning = export::stream_orders(
                repository,
                filter,
                view,
                metrics,
                grant.withdrawn(),
                shutdown,
            );
            app.in_time(beginning).await?
        }
    };
    let headers = response.headers_mut();
    if format == ListFormat::Ndjson {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(export::NDJSON));
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.append(VARY, HeaderValue::from_static("Accept"));
    Ok(compress(&head, response))
}

async fn list_page(app: &App, request: &ListRequest) -> Result<Response, ApiError> {
    let mut body = PageBody::new();
    let mut last = None;
    let reading = app.repository.read_page(
        &request.filter,
        request.view,
        request.after.as_ref(),
        request.limit,
        |order| {
            body.add(&order.content)?;
            let version = Some(order.revision.version);
            app.cache.core.supersede(order.order_uid(), version);
            last = Some(order.position());
            ControlFlow::Continue(())
        },
    );
    let has_more = reading.await?.content;
    let next_cursor = last
        .filter(|_| has_more)
        .map(|last| request.next_cursor(&last));
    let mut response = body.response(&PageEnd {
        next_cursor: next_cursor.as_deref(),
    });
    if let Some(next_cursor) = next_cursor {
        let link = HeaderValue::try_from(request.next_link(&next_cursor))
            .expect("percent-encoded text is valid in a header");
        response.headers_mut().insert(LINK, link);
    }
    Ok(response)
}

/// What follows the orders of a page.
#[derive(Serialize)]
struct PageEnd<'a> {
    next_cursor: Option<&'a str>,
}
