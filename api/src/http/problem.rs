//! The errors that a request can cause, and the problem documents that clients get (RFC 9457).
//!
//! There is one variant per `code`, and one function writes the answer. Internal texts never get here: if the fault is
//! ours, the client learns only the request's id.

mod negotiation;

use serde::Serialize;
use shared::order::{Fault, MAX_ORDER_BYTES, OrderError, OrderUid};
use shared::server::Unreadable;
use shared::traces::TraceId;
use warp::http::header::{
    ALLOW, CONNECTION, CONTENT_TYPE, ETAG, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use warp::http::{HeaderName, HeaderValue, StatusCode};
use warp::reply::Response;

use super::json_response;
use crate::cache::revision_etag;
use crate::repository::{Revision, StoreError, WriteError};
pub use negotiation::{ACCEPT_PATCH, Unacceptable, Unsupported};

/// The header that says where an answer came from (RFC 9211).
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Which transfer codings there are.
pub const ONLY_CHUNKED: &str = "Transfer-Encoding must be exactly chunked";

/// Seconds after which a refused client may try again. A burst or a restart is usually over by then.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// An error repeats at most this many characters of a parameter's name.
const MAX_NAME_CHARS: usize = 64;

/// Why a request is refused or fails. The texts are the details that clients get.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(test, derive(strum::EnumIter))]
pub enum ApiError {
    /// The request is not as HTTP wants it, so no handler sees it. Holds what is wrong.
    #[error("{0}")]
    BadRequest(&'static str),
    /// The order id in the path is invalid.
    #[error("an order id {}", OrderUid::RULE)]
    InvalidOrderUid,
    /// `limit` is not a number within its bounds.
    #[error("limit must be a number from 1 to {max}")]
    InvalidLimit {
        /// The largest allowed value; the smallest is 1.
        max: u32,
    },
    /// `cursor` is garbled, or belongs to a list with other filters.
    #[error("cursor must be a next_cursor that was returned for the same filters")]
    InvalidCursor,
    /// A parameter has an invalid value or is given twice.
    #[error("{name} {detail}")]
    InvalidParameter {
        /// The parameter's name.
        name: &'static str,
        /// What is wrong, as a predicate of the name.
        detail: &'static str,
    },
    /// The route has no such parameter.
    #[error("there is no parameter {name}, this route takes {}", list(known))]
    UnknownParameter {
        /// The name as given, shortened.
        name: String,
        /// The parameters of the route.
        known: &'static [&'static str],
    },
    /// The body is not JSON.
    #[error("{0}")]
    MalformedJson(String),
    /// The token is missing or wrong.
    #[error("{}", unauthorized_detail(*is_wrong))]
    Unauthorized {
        /// Whether there is a token.
        is_wrong: bool,
    },
    /// The token does not allow this.
    #[error("this token lacks the scope {scope}")]
    InsufficientScope {
        /// The scope that is missing.
        scope: &'static str,
    },
    /// The server has no tokens, and the request does not come directly from its machine.
    #[error(
        "this server has no tokens, so it answers reads only to programs on its machine, and to none behind a proxy: set \
         API_TOKENS_FILE"
    )]
    ReadsDisabled,
    /// The same for what changes something. Or the database role may not write.
    #[error("{}", writes_disabled_detail(*by_database))]
    WritesDisabled {
        /// Whether the reason is the database role.
        by_database: bool,
    },
    /// The request needs no token, but it names another host, or it is a write from a page of another site.
    #[error(
        "without a token, the header Host must be a name of loopback, or one of ALLOWED_HOSTS if unauthenticated requests are \
         allowed, and a write must not come from a page of another site"
    )]
    ForbiddenOrigin,
    /// There is no such order.
    #[error("there is no order with this id")]
    OrderNotFound {
        /// The `Cache-Status` of the answer, if the cache was asked.
        cache_status: Option<&'static str>,
    },
    /// No route has this path.
    #[error("there is no endpoint at this path")]
    NoSuchEndpoint,
    /// The path does not allow the method.
    #[error("this path allows {allow}")]
    MethodNotAllowed {
        /// The methods that the path allows, for the header `Allow`.
        allow: String,
    },
    /// The client does not accept the answer in any form that it can have.
    #[error("{0}")]
    NotAcceptable(Unacceptable),
    /// The body did not arrive in time.
    #[error("the body did not arrive in time")]
    RequestTimeout,
    /// The target of the request is longer than a whole header may be.
    #[error("the target of a request and its header may have 16 KiB together")]
    UriTooLong,
    /// The header of the request is too large.
    #[error("the header of a request may have 16 KiB and 100 fields")]
    HeaderTooLarge,
    /// The server knows nothing of a method or a coding. Holds what is wrong.
    #[error("{0}")]
    NotImplemented(&'static str),
    /// There is an order with the id of the one to create.
    #[error("there is an order with this id, see Location and ETag; PUT replaces it")]
    OrderExists {
        /// The order's id.
        order_uid: String,
        /// The order's revision.
        current: Revision,
    },
    /// The order's version does not satisfy the precondition.
    #[error("{}", version_mismatch(current.is_some()))]
    VersionMismatch {
        /// The order's revision; `None` if there is no such order.
        current: Option<Revision>,
    },
    /// The body is larger than an order may be.
    #[error("the body may have at most {MAX_ORDER_BYTES} bytes")]
    BodyTooLarge,
    /// The body is not declared as what the method needs, or is encoded.
    #[error("{0}")]
    UnsupportedMediaType(Unsupported),
    /// The peer has sent too many requests.
    #[error("this address has used up its requests for this minute")]
    RateLimited {
        /// The seconds after which it may send more.
        retry_after_seconds: u64,
    },
    /// The body is JSON, but not a valid order. Holds all faults.
    #[error("the order has {} fault{}, see errors", .0.len(), if .0.len() == 1 { "" } else { "s" })]
    InvalidOrder(Vec<Fault>),
    /// The order id in the body differs from the one in the path.
    #[error("order_uid in the body must equal the order id in the path")]
    UidMismatch,
    /// The database cannot be used. Holds the detail for the client.
    #[error("{0}")]
    DatabaseUnavailable(&'static str),
    /// A limit of concurrent work is reached. Holds the detail for the client.
    #[error("{0}")]
    Overloaded(&'static str),
    /// The database did not answer in time.
    #[error("the database did not answer in time")]
    DatabaseTimeout,
    /// An internal error.
    #[error("an internal error occurred, please report the request_id")]
    Internal,
}

/// A problem document of RFC 9457. `code`, `request_id`, `trace_id` and `errors` are our own members.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: String,
    code: &'static str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    errors: &'a [Fault],
}

impl ApiError {
    /// The refusal of a parameter that is not among those that are known.
    pub fn unknown_parameter(name: &str, known: &'static [&'static str]) -> Self {
        let shown = name.chars().filter(|char| !char.is_control());
        Self::UnknownParameter {
            name: shown.take(MAX_NAME_CHARS).collect(),
            known,
        }
    }

    /// Returns the status, the code and the title.
    pub fn kind(&self) -> (u16, &'static str, &'static str) {
        match self {
            Self::BadRequest(_) => (400, "bad_request", "Bad request"),
            Self::InvalidOrderUid => (400, "invalid_order_uid", "Invalid order id"),
            Self::InvalidLimit { .. } => (400, "invalid_limit", "Invalid limit"),
            Self::InvalidCursor => (400, "invalid_cursor", "Invalid cursor"),
            Self::InvalidParameter { .. } => (400, "invalid_parameter", "Invalid parameter"),
            Self::UnknownParameter { .. } => (400, "unknown_parameter", "Unknown parameter"),
            Self::MalformedJson(_) => (400, "malformed_json", "Malformed JSON"),
            Self::Unauthorized { .. } => (401, "unauthorized", "Token required"),
            Self::InsufficientScope { .. } => (403, "insufficient_scope", "Insufficient scope"),
            Self::ReadsDisabled => (403, "reads_disabled", "Reads are disabled"),
            Self::WritesDisabled { .. } => (403, "writes_disabled", "Writes are disabled"),
            Self::ForbiddenOrigin => (403, "forbidden_origin", "Forbidden origin"),
            Self::OrderNotFound { .. } => (404, "order_not_found", "No such order"),
            Self::NoSuchEndpoint => (404, "no_such_endpoint", "No such endpoint"),
            Self::MethodNotAllowed { .. } => (405, "method_not_allowed", "Method not allowed"),
            Self::NotAcceptable(_) => (406, "not_acceptable", "Not acceptable"),
            Self::RequestTimeout => (408, "request_timeout", "Request timeout"),
            Self::OrderExists { .. } => (409, "order_exists", "Order exists"),
            Self::UriTooLong => (414, "uri_too_long", "URI too long"),
            Self::HeaderTooLarge => (431, "header_too_large", "Header too large"),
            Self::NotImplemented(_) => (501, "not_implemented", "Not implemented"),
            Self::VersionMismatch { .. } => (412, "version_mismatch", "Version mismatch"),
            Self::BodyTooLarge => (413, "body_too_large", "Body too large"),
            Self::UnsupportedMediaType(_) => {
                (415, "unsupported_media_type", "Unsupported media type")
            }
            Self::InvalidOrder(_) => (422, "invalid_order", "Invalid order"),
            Self::UidMismatch => (422, "uid_mismatch", "Order id mismatch"),
            Self::RateLimited { .. } => (429, "rate_limited", "Too many requests"),
            Self::DatabaseUnavailable(_) => (503, "database_unavailable", "Database unavailable"),
            Self::Overloaded(_) => (503, "overloaded", "Overloaded"),
            Self::DatabaseTimeout => (504, "database_timeout", "Database timeout"),
            Self::Internal => (500, "internal", "Internal error"),
        }
    }

    /// Returns the status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.kind().0).expect("all of them are valid")
    }

    /// Returns the revision of the order that is in the way of the request.
    pub fn present_revision(&self) -> Option<Revision> {
        match self {
            Self::OrderExists { current, .. } => Some(*current),
            Self::VersionMismatch { current } => *current,
            _ => None,
        }
    }

    /// Returns the answer that tells the client. `trace_id` is known if the request is traced.
    pub fn response(&self, request_id: &str, trace_id: Option<TraceId>) -> Response {
        let (status, code, title) = self.kind();
        let problem = Problem {
            r#type: ["urn:order-service:problem:", code].concat(),
            title,
            status,
            detail: self.to_string(),
            code,
            request_id,
            trace_id: trace_id.map(|id| id.to_string()),
            errors: match self {
                Self::InvalidOrder(faults) => faults,
                _ => &[],
            },
        };
        let mut response = json_response(self.status(), &problem);
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some((name, value)) = self.header() {
            headers.insert(name, value);
        }
        if let Some(revision) = self.present_revision() {
            headers.insert(ETAG, revision_etag(revision));
        }
        if let Self::OrderExists { order_uid, .. } = self {
            headers.insert(LOCATION, order_location(order_uid));
        }
        if self.is_about_form() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Returns whether the request is not as HTTP wants it. Then it may end where the client did not mean it to, and the
    /// next one may begin there.
    fn is_about_form(&self) -> bool {
        matches!(
            self,
            Self::BadRequest(_) | Self::UriTooLong | Self::HeaderTooLarge | Self::NotImplemented(_)
        )
    }

    fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        Some(match self {
            // RFC 6750, section 3.
            Self::Unauthorized { is_wrong: false } => {
                (WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
            }
            Self::Unauthorized { is_wrong: true } => (
                WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer error=\"invalid_token\""),
            ),
            Self::InsufficientScope { scope } => (
                WWW_AUTHENTICATE,
                HeaderValue::try_from(format!(
                    "Bearer error=\"insufficient_scope\", scope=\"{scope}\""
                ))
                .expect("a scope's name is valid in a header"),
            ),
            Self::MethodNotAllowed { allow } => (
                ALLOW,
                HeaderValue::from_str(allow).expect("methods are valid in a header"),
            ),
            Self::UnsupportedMediaType(unsupported) => unsupported.header(),
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

fn unauthorized_detail(is_wrong: bool) -> &'static str {
    if is_wrong {
        "this token is not valid here: it is misspelt, or it was withdrawn"
    } else {
        "send a token in the header Authorization: Bearer ..."
    }
}

fn writes_disabled_detail(by_database: bool) -> &'static str {
    if by_database {
        "the database role of this server may not do this, its log says which right is missing"
    } else {
        "this server has no tokens, so it accepts writes only from programs on its machine, and from none behind a proxy: set \
         API_TOKENS_FILE"
    }
}

fn version_mismatch(exists: bool) -> &'static str {
    if exists {
        "the order's current version is in the header ETag"
    } else {
        "there is no order with this id, and If-Match demands one"
    }
}

/// Returns the value of `Location` for an order. `/api/v1/orders/search` is another route, so an order with this id is at the
/// same path with an encoded letter.
pub fn order_location(order_uid: &str) -> HeaderValue {
    let segment = if order_uid == "search" {
        "%73earch"
    } else {
        order_uid
    };
    let path = ["/api/v1/orders/", segment].concat();
    HeaderValue::try_from(path).expect("all characters of an order id are valid in a header")
}

fn list(known: &[&str]) -> String {
    if known.is_empty() {
        return "none".to_owned();
    }
    known.join(", ")
}

impl From<Unreadable> for ApiError {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::Malformed(detail) => Self::BadRequest(detail),
            Unreadable::TargetTooLong => Self::UriTooLong,
            Unreadable::HeaderTooLarge => Self::HeaderTooLarge,
            Unreadable::TransferCoding => Self::NotImplemented(ONLY_CHUNKED),
        }
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
            StoreError::ReadOnly => {
                Self::DatabaseUnavailable("the database accepts no writes at present, try again")
            }
            StoreError::Forbidden => Self::WritesDisabled { by_database: true },
            StoreError::Timeout => Self::DatabaseTimeout,
            StoreError::Internal => Self::Internal,
        }
    }
}

impl From<OrderError> for ApiError {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::TooLarge { .. } => Self::BodyTooLarge,
            OrderError::NotJson(detail) => Self::MalformedJson(detail),
            OrderError::Invalid(faults) => Self::InvalidOrder(faults),
        }
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::NotFound => Self::OrderNotFound { cache_status: None },
            WriteError::Exists { order_uid, current } => Self::OrderExists { order_uid, current },
            WriteError::VersionMismatch { current } => Self::VersionMismatch { current },
            WriteError::Invalid(error) => error.into(),
            WriteError::Store(error) => error.into(),
        }
    }
}
