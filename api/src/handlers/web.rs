//! The page and its assets, and the description of the API, embedded in the binary.

use std::hash::{DefaultHasher, Hasher};

use bytes::Bytes;
use warp::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY,
};
use warp::http::{HeaderValue, StatusCode};
use warp::reply::Response;

use super::Call;
use crate::http::compression::compress;
use crate::http::empty;
use crate::http::problem::ApiError;

/// Everything from this server, nothing inline: text of an order can never become a script.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// A file of the page.
#[derive(Debug)]
pub struct Asset {
    content: &'static [u8],
    content_type: &'static str,
}

macro_rules! asset {
    ($file:literal, $content_type:literal) => {
        Asset {
            content: include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $file)),
            content_type: $content_type,
        }
    };
}

/// `/`.
pub static INDEX: Asset = asset!("../web/index.html", "text/html; charset=utf-8");
/// `/style.css`.
pub static STYLE: Asset = asset!("../web/style.css", "text/css; charset=utf-8");
/// `/app.js`.
pub static SCRIPT: Asset = asset!("../web/app.js", "text/javascript; charset=utf-8");
/// `/api.html`.
pub static REFERENCE: Asset = asset!("../web/api.html", "text/html; charset=utf-8");
/// `/api.js`.
pub static REFERENCE_SCRIPT: Asset = asset!("../web/api.js", "text/javascript; charset=utf-8");
/// `/favicon.svg`.
pub static ICON: Asset = asset!("../web/favicon.svg", "image/svg+xml");

/// `/openapi.json`: kept by hand; the tests in `openapi.rs` compare it with the code.
pub static OPENAPI: Asset = asset!("openapi.json", "application/json");

/// Answers with a file. Its parameters are the page's own business.
pub async fn asset(asset: &'static Asset, Call { head, .. }: Call) -> Result<Response, ApiError> {
    let etag = content_etag(asset.content);
    let known = head
        .headers
        .get(IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let is_known = known
        .split(',')
        .any(|tag| tag.trim() == etag || tag.trim() == "*");
    let mut response = if is_known {
        empty(StatusCode::NOT_MODIFIED)
    } else {
        Response::new(Bytes::from_static(asset.content).into())
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(asset.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Ok(etag) = HeaderValue::try_from(etag) {
        headers.insert(ETAG, etag);
    }
    Ok(compress(&head, response))
}

/// Weak: the same content may travel compressed.
fn content_etag(content: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    format!("W/\"{:016x}\"", hasher.finish())
}
