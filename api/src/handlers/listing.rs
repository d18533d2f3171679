//! Lists orders: a page of them, all of them as a stream, or those that a client names.
//!
//! `request`: the parameters. `cursor`: the cursors, which lead from page to page. `body`: the JSON of a page.
//! `named`: the orders that a client names. `search`: lists by personal data.

mod body;
mod cursor;
mod named;
mod request;
mod search;

use std::ops::ControlFlow;

use serde::Serialize;
use tracing::info;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE, LINK, VARY};
use warp::http::{HeaderValue, Method, StatusCode};
use warp::reply::Response;

use super::Call;
use crate::app::App;
use crate::export::{self, Format};
use crate::http::authority::Grant;
use crate::http::compression::compress;
use crate::http::problem::ApiError;
use crate::http::request::Head;
use crate::repository::TotalKind;

use body::PageBody;
pub use cursor::{decode_cursor, encode_cursor};
use named::list_named;
pub use request::parse_limit;
use request::{ListFormat, ListRequest, Request};
pub use search::{SEARCH_PATH, search};

/// The path of the list.
pub const PATH: &str = "/api/v1/orders";

/// Lists orders: a page, all of them as a stream, or those that the client names.
pub async fn list(
    Call {
        app, grant, head, ..
    }: Call,
) -> Result<Response, ApiError> {
    let request = Request::parse(&head)?;
    app.require_schema()?;
    let response = match request {
        Request::Named(request) => {
            let page = list_named(&app, &head, &request);
            app.in_time(app.budget.page(head.sender.client, page))
                .await?
        }
        Request::Matching(request) => answer(&app, grant, &head, request).await?,
    };
    finish(&head, response)
}

/// Answers with the orders that match.
async fn answer(
    app: &App,
    grant: Grant,
    head: &Head,
    request: ListRequest,
) -> Result<Response, ApiError> {
    match request.format {
        ListFormat::Json => {
            let page = list_page(app, head, &request);
            app.in_time(app.budget.page(head.sender.client, page)).await
        }
        ListFormat::All(format) => list_all(app, grant, head, format, request).await,
    }
}

/// Adds what all lists have in common.
fn finish(head: &Head, mut response: Response) -> Result<Response, ApiError> {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.append(VARY, HeaderValue::from_static("Accept"));
    compress(head, response)
}

async fn list_all(
    app: &App,
    grant: Grant,
    head: &Head,
    format: Format,
    request: ListRequest,
) -> Result<Response, ApiError> {
    let mut response = if head.method == Method::HEAD {
        export::no_orders()
    } else {
        info!(operation = "export", token = grant.token_name(), "read");
        let (metrics, shutdown) = (&app.metrics.exports, &app.stopping.closing);
        let withdrawn = grant.withdrawn();
        let place = app.export_place(head.sender.client).await?;
        let beginning = async {
            let ListRequest { filter, view, .. } = request;
            let snapshot = app.repository.open_snapshot(filter, view).await?;
            export::stream_orders(snapshot, format, place, metrics, withdrawn, shutdown).await
        };
        app.in_time(beginning).await?
    };
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static(format.content_type()),
    );
    Ok(response)
}

async fn list_page(app: &App, head: &Head, request: &ListRequest) -> Result<Response, ApiError> {
    let mut body = PageBody::new(request.view);
    let (mut last, mut orders) = (None, 0);
    let reading = app.repository.read_page(
        &request.filter,
        request.view,
        request.after.as_ref(),
        request.limit,
        |order| {
            body.add(order.revision, &order.content)?;
            let version = Some(order.revision.version);
            app.cache.core.supersede(order.order_uid(), version);
            last = Some(order.position());
            orders += 1;
            ControlFlow::Continue(())
        },
    );
    let has_more = reading.await?.content;
    let next_cursor = last
        .filter(|_| has_more)
        .map(|last| request.next_cursor(&last));
    let total = match request.count {
        Some(kind) => Some(total(app, request, kind, orders, has_more).await?),
        None => None,
    };
    let mut response = body.response(
        head,
        &PageEnd {
            next_cursor: next_cursor.as_deref(),
            total,
        },
    );
    // A search is not repeated by following a link, and its filters must not get into a URL.
    let has_link = response.status() == StatusCode::OK && head.method != Method::POST;
    if has_link && let Some(next_cursor) = next_cursor {
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
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<Total>,
}

/// The number of orders that match, on whatever page they are.
#[derive(Serialize)]
struct Total {
    value: u64,
    kind: TotalKind,
}

/// Determines the total of a list, of which a page with `orders` orders was read.
async fn total(
    app: &App,
    request: &ListRequest,
    kind: TotalKind,
    orders: u64,
    has_more: bool,
) -> Result<Total, ApiError> {
    let is_whole = request.after.is_none() && !has_more;
    let kind = match kind {
        // There are no statistics on what a phone and an e-mail are compared by. But they have few orders, by an index.
        TotalKind::Estimated if !is_whole && !request.filter.is_of_person() => kind,
        _ => TotalKind::Exact,
    };
    let value = match kind {
        TotalKind::Exact if is_whole => orders,
        TotalKind::Exact => app.repository.count(&request.filter).await?,
        TotalKind::Estimated => {
            let estimate = app.repository.estimate(&request.filter).await?;
            // A total below what the client sees would be puzzling.
            estimate.max(orders + u64::from(has_more))
        }
    };
    Ok(Total { value, kind })
}
