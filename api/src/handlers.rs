//! What each route does. Each handler makes its checks in one order: path,
//! method, authority, media type, size, JSON, order, uids, existence, precondition.

pub mod cache;
pub mod events;
pub mod health;
pub mod orders;
pub mod web;

use serde::Serialize;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use warp::http::{HeaderValue, StatusCode};
use warp::reply::Response;

/// A JSON answer that nobody may keep.
fn json_response(status: StatusCode, value: &impl Serialize) -> Response {
    let mut body = serde_json::to_vec(value)
        .expect("answers have string keys only and nothing that can fail to serialise");
    body.push(b'\n');
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
