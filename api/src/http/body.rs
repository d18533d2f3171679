//! Reads the body of a request: what it may be declared as, how large it may be, and how long it may take.

use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use shared::order::MAX_ORDER_BYTES;
use warp::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT};

use super::problem::{ApiError, Unsupported};
use super::request::{Body, Head};

/// How much of an oversized body is read and discarded, so that the client gets to read the answer.
const MAX_DRAINED_BYTES: usize = 8 * 1024 * 1024;

/// Reads a body of at most [`MAX_ORDER_BYTES`] that is declared as a media type of JSON.
///
/// # Errors
/// Returns `UnsupportedMediaType`, `BodyTooLarge`, or `RequestTimeout` if the body is not complete within `deadline`.
pub async fn read(
    head: &Head,
    body: Body,
    media_type: &'static str,
    deadline: Duration,
) -> Result<Bytes, ApiError> {
    require_media_type(head, media_type)?;
    refuse_announced_oversize(head)?;
    let collecting = tokio::time::timeout(deadline, collect(body));
    collecting.await.unwrap_or(Err(ApiError::RequestTimeout))
}

/// Checks that the body is declared as plain text of a media type in UTF-8. The crate `mime` would refuse valid headers, such
/// as `application/json ; charset=utf-8`.
fn require_media_type(head: &Head, wanted: &'static str) -> Result<(), ApiError> {
    let media_type = head.header(&CONTENT_TYPE).unwrap_or_default();
    let (essence, parameters) = media_type.split_once(';').unwrap_or((media_type, ""));
    let parameters = parameters.trim().to_ascii_lowercase();
    let charset = parameters.strip_prefix("charset=");
    let is_utf8 = charset.is_none_or(|charset| charset.trim_matches('"') == "utf-8");
    let is_wanted = essence.trim().eq_ignore_ascii_case(wanted);
    if !(is_wanted && is_utf8) {
        return Err(ApiError::UnsupportedMediaType(Unsupported::Type { wanted }));
    }
    let mut codings = head.headers.get_all(CONTENT_ENCODING).iter();
    match codings.find(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        Some(coding) => Err(ApiError::UnsupportedMediaType(Unsupported::coding(coding))),
        None => Ok(()),
    }
}

/// A client that asks before it sends (`Expect: 100-continue`) need not send a body that will be refused anyway.
fn refuse_announced_oversize(head: &Head) -> Result<(), ApiError> {
    let announced = head
        .header(&CONTENT_LENGTH)
        .and_then(|value| value.parse().ok());
    let is_too_large = announced.is_some_and(|size_bytes: usize| size_bytes > MAX_ORDER_BYTES);
    if is_too_large && head.headers.contains_key(EXPECT) {
        return Err(ApiError::BodyTooLarge);
    }
    Ok(())
}

/// Counts the bytes that arrive instead of trusting Content-Length, which a chunked body does not have.
async fn collect(mut body: Body) -> Result<Bytes, ApiError> {
    let mut collected = Vec::new();
    let mut size_bytes = 0;
    // The client has hung up, or has broken the framing.
    while let Some(chunk) = body.try_next().await.map_err(|_| {
        ApiError::BadRequest("the body is cut off, or its chunked coding is malformed")
    })? {
        size_bytes += chunk.len();
        if size_bytes > MAX_DRAINED_BYTES {
            break;
        }
        if size_bytes <= MAX_ORDER_BYTES {
            collected.extend_from_slice(&chunk);
        }
    }
    if size_bytes > MAX_ORDER_BYTES {
        Err(ApiError::BodyTooLarge)
    } else {
        Ok(collected.into())
    }
}
