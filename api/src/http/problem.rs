//! What can go wrong with a request, and how a client is told: RFC 9457.
//!
//! One variant a `code`, one function that writes the answer. Nothing internal gets in here: where the fault is ours, the
//! client learns the request's id only.

use std::borrow::Cow;

use serde::Serialize;
use shared::order::{Fault, MAX_ORDER_BYTES, OrderUid};
use warp::http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, RETRY_AFTER, WWW_AUTHENTICATE,
};
use warp::http::{HeaderName, HeaderValue, StatusCode};
use warp::reply::Response;

use crate::cache::version_etag;
use crate::repository::{StoreError, WriteError};

/// The header of RFC 9211.
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Seconds after which a refused client may try again: a burst or a restart is over by then.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// A request that gets no answer of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(strum::EnumIter))]
pub enum ApiError {
    /// The path's segment is no order id.
    InvalidOrderUid,
    /// `limit` is no number within its bounds.
    InvalidLimit {
        /// The largest that is allowed; the smallest is 1.
        max: u32,
    },
    /// `cursor` is garbled or belongs to other filters.
    InvalidCursor,
    /// A parameter has a wrong value, or stands twice.
    InvalidParameter {
        /// Its name.
        name: &'static str,
        /// What it must be.
        detail: &'static str,
    },
    /// A parameter that this route does not have.
    UnknownParameter {
        /// Its name as given, cut.
        name: String,
        /// Those that the route has.
        known: &'static [&'static str],
    },
    /// The body is not JSON.
    MalformedJson(String),
    /// The token is missing or wrong.
    Unauthorized,
    /// Writes without a token are not taken on this address.
    WritesDisabled,
    /// The request comes from a page of another site.
    ForbiddenOrigin,
    /// There is no such order.
    OrderNotFound {
        /// The `Cache-Status` of this answer, where the cache was asked.
        cache_status: Option<&'static str>,
    },
    /// There is nothing at this path.
    NoSuchEndpoint,
    /// The path does not know the method.
    MethodNotAllowed {
        /// Those that it allows.
        allow: String,
    },
    /// The client does not take what the answer is.
    NotAcceptable {
        /// What it is.
        media_type: &'static str,
    },
    /// The body came too slowly.
    RequestTimeout,
    /// The order has another version than `If-Match` says.
    VersionMismatch {
        /// The version it has.
        current: i64,
    },
    /// The body is larger than an order may be.
    BodyTooLarge,
    /// The body is not declared as JSON.
    UnsupportedMediaType,
    /// The peer has sent too many requests.
    RateLimited {
        /// Until it may send more.
        retry_after_seconds: u64,
    },
    /// JSON, but no valid order; every fault.
    InvalidOrder(Vec<Fault>),
    /// The body's order has another id than the path.
    UidMismatch,
    /// The database cannot be reached; says what is waited for.
    DatabaseUnavailable(&'static str),
    /// As much is under way as may be; says of what.
    Overloaded(&'static str),
    /// The database took too long.
    DatabaseTimeout,
    /// A fault of ours.
    Internal,
}

/// RFC 9457, with members of our own: `code`, `request_id`, `errors`.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: Cow<'a, str>,
    code: &'static str,
    request_id: &'a str,
    errors: &'a [Fault],
}

impl ApiError {
    /// Returns the status, the code and the title.
    pub fn kind(&self) -> (u16, &'static str, &'static str) {
        match self {
            Self::InvalidOrderUid => (400, "invalid_order_uid", "Invalid order id"),
            Self::InvalidLimit { .. } => (400, "invalid_limit", "Invalid limit"),
            Self::InvalidCursor => (400, "invalid_cursor", "Invalid cursor"),
            Self::InvalidParameter { .. } => (400, "invalid_parameter", "Invalid parameter"),
            Self::UnknownParameter { .. } => (400, "unknown_parameter", "Unknown parameter"),
            Self::MalformedJson(_) => (400, "malformed_json", "Malformed JSON"),
            Self::Unauthorized => (401, "unauthorized", "Token needed"),
            Self::WritesDisabled => (403, "writes_disabled", "Writes are disabled"),
            Self::ForbiddenOrigin => (403, "forbidden_origin", "Foreign origin"),
            Self::OrderNotFound { .. } => (404, "order_not_found", "No such order"),
            Self::NoSuchEndpoint => (404, "no_such_endpoint", "No such endpoint"),
            Self::MethodNotAllowed { .. } => (405, "method_not_allowed", "Method not allowed"),
            Self::NotAcceptable { .. } => (406, "not_acceptable", "Not acceptable"),
            Self::RequestTimeout => (408, "request_timeout", "Request too slow"),
            Self::VersionMismatch { .. } => (412, "version_mismatch", "Another version"),
            Self::BodyTooLarge => (413, "body_too_large", "Body too large"),
            Self::UnsupportedMediaType => (415, "unsupported_media_type", "Unsupported media type"),
            Self::InvalidOrder(_) => (422, "invalid_order", "Invalid order"),
            Self::UidMismatch => (422, "uid_mismatch", "Another order id"),
            Self::RateLimited { .. } => (429, "rate_limited", "Too many requests"),
            Self::DatabaseUnavailable(_) => (503, "database_unavailable", "Database unavailable"),
            Self::Overloaded(_) => (503, "overloaded", "Overloaded"),
            Self::DatabaseTimeout => (504, "database_timeout", "Database timeout"),
            Self::Internal => (500, "internal", "Internal error"),
        }
    }

    /// Returns the status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.kind().0).expect("all are statuses of HTTP")
    }

    fn detail(&self) -> Cow<'_, str> {
        match self {
            Self::InvalidOrderUid => ["an order id ", OrderUid::RULE].concat().into(),
            Self::InvalidLimit { max } => format!("limit must be a number in 1..={max}").into(),
            Self::InvalidCursor => {
                "cursor must be the next_cursor of a page with the same filters".into()
            }
            Self::InvalidParameter { name, detail } => format!("{name} {detail}").into(),
            Self::UnknownParameter { name, known: [] } => {
                format!("{name} is not known, this route takes no parameters").into()
            }
            Self::UnknownParameter { name, known } => {
                format!("{name} is not known, this route takes {}", known.join(", ")).into()
            }
            Self::MalformedJson(detail) => detail.as_str().into(),
            Self::Unauthorized => "send the token as Authorization: Bearer ...".into(),
            Self::WritesDisabled => {
                "this server takes writes only with a token: set API_TOKEN, or bind it to loopback"
                    .into()
            }
            Self::ForbiddenOrigin => {
                "writes without a token are taken from this machine's own pages only".into()
            }
            Self::OrderNotFound { .. } => "there is no order with this id".into(),
            Self::NoSuchEndpoint => "there is nothing at this path".into(),
            Self::MethodNotAllowed { allow } => format!("this path knows {allow}").into(),
            Self::NotAcceptable { media_type } => {
                format!("the answer is {media_type}, which Accept excludes").into()
            }
            Self::RequestTimeout => "the body did not come in time".into(),
            Self::VersionMismatch { .. } => "the order has the version in ETag".into(),
            Self::BodyTooLarge => format!("an order has at most {MAX_ORDER_BYTES} bytes").into(),
            Self::UnsupportedMediaType => "send the order as Content-Type: application/json".into(),
            Self::InvalidOrder(faults) => {
                format!("the order has {} faults, see errors", faults.len()).into()
            }
            Self::UidMismatch => "order_uid of the body must be the one in the path".into(),
            Self::RateLimited { .. } => {
                "this address has sent all the requests that it may send in a minute".into()
            }
            Self::DatabaseUnavailable(detail) | Self::Overloaded(detail) => (*detail).into(),
            Self::DatabaseTimeout => "the database took too long".into(),
            Self::Internal => "the fault is ours; please report the request_id".into(),
        }
    }

    /// Writes the answer.
    pub fn response(&self, request_id: &str) -> Response {
        let (status, code, title) = self.kind();
        let problem = Problem {
            r#type: ["urn:order-service:problem:", code].concat(),
            title,
            status,
            detail: self.detail(),
            code,
            request_id,
            errors: match self {
                Self::InvalidOrder(faults) => faults,
                _ => &[],
            },
        };
        let mut body = serde_json::to_vec(&problem)
            .expect("a problem has string keys only and nothing that can fail to serialise");
        body.push(b'\n');
        let mut response = Response::new(body.into());
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some((name, value)) = self.header() {
            headers.insert(name, value);
        }
        response
    }

    fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        Some(match self {
            Self::Unauthorized => (WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
            Self::MethodNotAllowed { allow } => (
                ALLOW,
                HeaderValue::from_str(allow).expect("methods are valid in a header"),
            ),
            Self::UnsupportedMediaType => (ACCEPT, HeaderValue::from_static("application/json")),
            Self::VersionMismatch { current } => (ETAG, version_etag(*current)),
            Self::OrderNotFound {
                cache_status: Some(cache_status),
            } => (CACHE_STATUS, HeaderValue::from_static(cache_status)),
            Self::RateLimited {
                retry_after_seconds,
            } => (RETRY_AFTER, HeaderValue::from(*retry_after_seconds)),
            Self::DatabaseUnavailable(_) | Self::Overloaded(_) => {
                (RETRY_AFTER, RETRY_AFTER_SECONDS)
            }
            _ => return None,
        })
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Overloaded => {
                Self::Overloaded("every database connection is busy, try again")
            }
            StoreError::Unavailable => {
                Self::DatabaseUnavailable("the database cannot be reached, try again")
            }
            StoreError::Timeout => Self::DatabaseTimeout,
            StoreError::Internal => Self::Internal,
        }
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::NotFound => Self::OrderNotFound { cache_status: None },
            WriteError::VersionMismatch { current } => Self::VersionMismatch { current },
            WriteError::Store(error) => error.into(),
            WriteError::Query(_) => Self::Internal,
        }
    }
}
