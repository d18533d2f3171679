//! Requests that hyper cannot read.
//!
//! hyper answers them itself: a status line, no body, no id, and no hook for anybody else. [`bare_answer`] recognises such
//! an answer when hyper writes it. The server withholds it, and its own answer is sent instead.

use std::error::Error;
use std::fmt::Write as _;

use chrono::Utc;
use http_body_util::BodyExt;
use hyper::body::Body;
use hyper::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderValue};
use hyper::{Response, StatusCode};

/// Why hyper cannot read a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// The request is not HTTP/1.1. Holds what is wrong, as a sentence without a full stop.
    Malformed(&'static str),
    /// The request line is larger than a whole header may be.
    TargetTooLong,
    /// The header is larger than 16 KiB, or has more than 100 fields.
    HeaderTooLarge,
    /// The body is encoded for its transfer in another way than by chunks.
    TransferCoding,
}

impl Unreadable {
    /// Returns the status of the answer.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeaderTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
        }
    }

    /// Tells the reason from hyper's error. hyper publishes the reason only as a text, and tests compare all of these.
    /// `unread` is what hyper has read of the header but not understood.
    pub(super) fn of(error: &hyper::Error, unread: &[u8]) -> Self {
        if error.is_parse_too_large() {
            return if unread.contains(&b'\n') {
                Self::HeaderTooLarge
            } else {
                Self::TargetTooLong
            };
        }
        match error.to_string().as_str() {
            "URI too long" => Self::TargetTooLong,
            "invalid transfer-encoding parsed" => Self::TransferCoding,
            "unexpected transfer-encoding parsed" => {
                Self::Malformed("Transfer-Encoding needs HTTP/1.1")
            }
            "invalid content-length parsed" => {
                Self::Malformed("Content-Length must be one number of bytes")
            }
            "invalid HTTP method parsed" => {
                Self::Malformed("the request does not begin with a method")
            }
            "invalid URI" => Self::Malformed(
                "the target of the request is not a valid URI, or HTTP/1.1 does not follow it",
            ),
            "invalid HTTP version parsed" => {
                Self::Malformed("the request line does not end with HTTP/1.1")
            }
            "invalid HTTP header parsed" => Self::Malformed("a field of the header is malformed"),
            _ => Self::Malformed("the request is not HTTP/1.1"),
        }
    }
}

/// The bare answers, without the version before them and the value of `Date` behind them.
const BARE: [&[u8]; 3] = [
    b" 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: ",
    b" 414 URI Too Long\r\nconnection: close\r\ncontent-length: 0\r\ndate: ",
    b" 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: ",
];
const VERSION: &str = "HTTP/1.1";
const DATE_AND_END: &str = "Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n";

/// Returns how many bytes at the end of what hyper writes are an answer of its own. It is always the last answer of a
/// connection, and comes here as a whole. No other answer can be taken for one: they have more fields, and no text of a body
/// contains a line break.
pub(super) fn bare_answer(bytes: &[u8]) -> usize {
    if !bytes.ends_with(b"\r\n\r\n") {
        return 0;
    }
    let length = |head: &&[u8]| {
        let length = VERSION.len() + head.len() + DATE_AND_END.len();
        let start = bytes.len().checked_sub(length)?;
        let after_version = &bytes[start + VERSION.len()..];
        after_version.starts_with(head).then_some(length)
    };
    BARE.iter().find_map(length).unwrap_or(0)
}

/// Writes an answer as it is sent instead of a bare one. The connection ends with it.
pub(super) async fn written<B>(response: Response<B>) -> Vec<u8>
where
    B: Body<Error: Into<Box<dyn Error + Send + Sync>>>,
{
    let (mut parts, body) = response.into_parts();
    // The bodies of refusals are in memory.
    let body = body.collect().await.map(|body| body.to_bytes());
    let body = body.unwrap_or_default();
    let date = Utc::now().format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let date = HeaderValue::try_from(date).expect("a date is valid in a header");
    parts.headers.insert(DATE, date);
    parts.headers.insert(CONTENT_LENGTH, body.len().into());
    let close = HeaderValue::from_static("close");
    parts.headers.insert(CONNECTION, close);
    let mut head = format!("{VERSION} {}\r\n", parts.status);
    let mut answer = Vec::new();
    for (name, value) in &parts.headers {
        write!(head, "{name}: ").expect("writing to a text cannot fail");
        answer.append(&mut head.into_bytes());
        answer.extend_from_slice(value.as_bytes());
        head = "\r\n".to_owned();
    }
    answer.extend_from_slice(b"\r\n\r\n");
    answer.extend_from_slice(&body);
    answer
}
