//! Lists orders: a page of them, or all of them as a stream.
//!
//! `request`: the parameters. `cursor`: the cursors, which lead from page to page.

mod cursor;
mod request;

use serde::Serialize;
use shared::order::Order;
use tracing::info;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE, LINK, VARY};
use warp::http::{HeaderValue, Method, StatusCode};
use warp::reply::Response;

use super::Call;
use crate::app::App;
use crate::export;
use crate::http::compression::compress;
use crate::http::json_response;
use crate::http::problem::ApiError;

pub use cursor::{decode_cursor, encode_cursor};
pub use request::parse_limit;
use request::{ListFormat, ListRequest};

/// The path of the list.
pub const PATH: &str = "/api/v1/orders";

#[derive(Serialize)]
struct OrderPage<'a> {
    orders: Vec<&'a Order>,
    next_cursor: Option<&'a str>,
}

/// Lists orders: a page, or all of them as a stream.
pub async fn list(
    Call {
        app, grant, head, ..
    }: Call,
) -> Result<Response, ApiError> {
    let request = ListRequest::parse(&head)?;
    app.require_schema()?;
    let mut response = match request.format {
        ListFormat::Json => app.in_time(list_page(&app, &request)).await?,
        ListFormat::Ndjson if head.method == Method::HEAD => export::no_orders(),
        ListFormat::Ndjson => {
            let (metrics, shutdown) = (&app.metrics.exports, &app.shutdown);
            info!(operation = "export", token = grant.token_name(), "read");
            let withdrawn = grant.withdrawn();
            let beginning = export::stream_orders(
                &app.repository,
                request.filter,
                metrics,
                withdrawn,
                shutdown,
            );
            app.in_time(beginning).await?
        }
    };
    let headers = response.headers_mut();
    if request.format == ListFormat::Ndjson {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(export::NDJSON));
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.append(VARY, HeaderValue::from_static("Accept"));
    Ok(compress(&head, response))
}

async fn list_page(app: &App, request: &ListRequest) -> Result<Response, ApiError> {
    // One additional order shows whether another page follows.
    let wanted = i64::from(request.limit) + 1;
    let mut found = app
        .repository
        .list_orders(&request.filter, request.after.as_ref(), wanted)
        .await?;
    let has_more = found.len() > request.limit as usize;
    found.truncate(request.limit as usize);
    for versioned in &found {
        let uid = versioned.order.order_uid.as_str();
        app.cache.core.supersede(uid, Some(versioned.version));
    }
    let next_cursor = found.last().filter(|_| has_more).map(|last| {
        request.next_cursor(&(last.order.date_created, last.order.order_uid.to_string()))
    });
    let page = OrderPage {
        orders: found.iter().map(|versioned| &versioned.order).collect(),
        next_cursor: next_cursor.as_deref(),
    };
    let mut response = json_response(StatusCode::OK, &page);
    if let Some(next_cursor) = next_cursor {
        let link = HeaderValue::try_from(request.next_link(&next_cursor))
            .expect("percent-encoded text is valid in a header");
        response.headers_mut().insert(LINK, link);
    }
    Ok(response)
}
