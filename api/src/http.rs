//! What speaks HTTP and knows no route: the server, what every answer has in common, and checks that handlers share.

pub mod authority;
pub mod compression;
pub mod conditional;
pub mod cors;
pub mod envelope;
pub mod problem;
pub mod rate_limit;
pub mod request;
pub mod server;

use serde::Serialize;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use warp::http::{HeaderValue, StatusCode};
use warp::reply::Response;

/// An answer without a body.
pub fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Default::default());
    *response.status_mut() = status;
    response
}

/// A JSON answer that nobody may keep.
pub fn json_response(status: StatusCode, value: &impl Serialize) -> Response {
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
