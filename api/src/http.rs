//! Everything about HTTP that does not depend on a route: what all answers have in common, and the checks that handlers share.

pub mod access_log;
pub mod authority;
pub mod body;
pub mod budget;
pub mod checks;
pub mod compression;
pub mod conditional;
pub mod cors;
pub mod envelope;
pub mod forwarded;
pub mod merge_patch;
pub mod problem;
pub mod rate_limit;
pub mod request;
pub mod server_span;
pub mod token_file;

use serde::Serialize;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use warp::http::{HeaderValue, StatusCode};
use warp::reply::Response;

/// What watches the process asks for these paths: orchestrators, load balancers and Prometheus.
pub const OPS_PATHS: [&str; 4] = ["/livez", "/readyz", "/health", "/metrics"];

/// The media type of an order.
pub const JSON: &str = "application/json";

/// The media type of a change of an order (RFC 7396).
pub const MERGE_PATCH: &str = "application/merge-patch+json";

/// Returns an answer without a body.
pub fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Default::default());
    *response.status_mut() = status;
    response
}

/// Returns a JSON answer that must not be stored.
pub fn json_response(status: StatusCode, value: &impl Serialize) -> Response {
    let mut body = serde_json::to_vec(value)
        .expect("answers have only string keys and cannot fail to serialise");
    body.push(b'\n');
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
