//! What client and server cannot agree on: the form of an answer, or that of a body.

use warp::http::header::{ACCEPT, ACCEPT_ENCODING};
use warp::http::{HeaderName, HeaderValue};

use crate::http::MERGE_PATCH;

/// The header that lists the media types of patches (RFC 5789, section 3.1).
pub const ACCEPT_PATCH: HeaderName = HeaderName::from_static("accept-patch");

/// An error repeats at most this many characters of what a client has sent.
const MAX_REPEATED_CHARS: usize = 64;

/// Why the client does not accept an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub enum Unacceptable {
    /// It does not accept the media type.
    #[error("the response is {0}, which the header Accept does not allow")]
    MediaType(&'static str),
    /// It accepts no coding that the answer can have, and forbids an answer without one.
    #[default]
    #[error("the header Accept-Encoding forbids every form in which the response can be sent")]
    Coding,
    /// It speaks HTTP/1.0, in which a stream that was cut looks complete.
    #[error("{0} needs HTTP/1.1, because a client of HTTP/1.0 cannot tell whether it was cut")]
    Version(&'static str),
}

/// What is wrong with the declaration of a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// It is not what the method needs.
    #[error("send the body as Content-Type: {wanted}")]
    Type {
        /// The media type that the method needs.
        wanted: &'static str,
    },
    /// It is encoded in this way.
    #[error("Content-Encoding is {0}, but this server decodes nothing: send the body as it is")]
    Coding(String),
}

impl Default for Unsupported {
    fn default() -> Self {
        Self::Coding(String::new())
    }
}

impl Unsupported {
    /// Refuses a coding.
    pub fn coding(coding: &HeaderValue) -> Self {
        let coding = coding.to_str().unwrap_or("not text");
        Self::Coding(coding.chars().take(MAX_REPEATED_CHARS).collect())
    }

    /// Returns the header that says what is supported.
    pub(super) fn header(&self) -> (HeaderName, HeaderValue) {
        match self {
            // RFC 5789, section 2.2.
            Self::Type {
                wanted: MERGE_PATCH,
            } => (ACCEPT_PATCH, HeaderValue::from_static(MERGE_PATCH)),
            Self::Type { wanted } => (ACCEPT, HeaderValue::from_static(wanted)),
            // RFC 9110, section 12.5.3.
            Self::Coding(_) => (ACCEPT_ENCODING, HeaderValue::from_static("identity")),
        }
    }
}
