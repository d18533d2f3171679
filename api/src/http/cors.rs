//! Which pages of other sites may use the API: only those whose origins the operator lists.
//!
//! No answer allows every site, or credentials that a browser adds by itself. A page that writes sends the token.

use warp::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
    VARY,
};
use warp::http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use warp::reply::Response;

use super::empty;
use crate::config::origin::AllowedOrigin;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, PUT, POST, PATCH, DELETE");
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "Authorization, Cache-Control, Content-Type, If-Match, If-None-Match, Last-Event-ID, X-Request-Id",
);
const RESPONSE_HEADERS: HeaderValue = HeaderValue::from_static(
    "Age, Cache-Status, ETag, Link, Location, RateLimit, RateLimit-Policy, Retry-After, X-Request-Id",
);
/// How long a browser may reuse the answer. Chromium allows no more.
const MAX_AGE_SECONDS: HeaderValue = HeaderValue::from_static("7200");

/// The origins that the operator lists.
#[derive(Clone, Debug, Default)]
pub struct Cors {
    origins: Vec<AllowedOrigin>,
}

impl Cors {
    /// Allows pages of these origins.
    pub fn new(origins: Vec<AllowedOrigin>) -> Self {
        Self { origins }
    }

    /// Returns the origin of the page that sent the request, if it is listed.
    pub fn allowed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if self.origins.is_empty() {
            return None;
        }
        let mut given = headers.get_all(ORIGIN).iter();
        let origin = given.next().filter(|_| given.next().is_none())?;
        let allowed = self
            .origins
            .iter()
            .find(|allowed| allowed.value() == origin)?;
        Some(allowed.value().clone())
    }

    /// Answers a preflight: a browser asks whether a page may send a request. All paths answer alike, because a page may
    /// read errors, too.
    pub fn preflight<B>(&self, request: &Request<B>) -> Option<Response> {
        let is_preflight = request.method() == Method::OPTIONS
            && request
                .headers()
                .contains_key(ACCESS_CONTROL_REQUEST_METHOD)
            && self.allowed_origin(request.headers()).is_some();
        is_preflight.then(|| {
            let mut response = empty(StatusCode::NO_CONTENT);
            let headers = response.headers_mut();
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
            headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE_SECONDS);
            response
        })
    }

    /// Sets the headers that say who may read an answer. `origin` is the request's [`Self::allowed_origin`].
    pub fn set_headers(&self, origin: Option<HeaderValue>, headers: &mut HeaderMap) {
        if self.origins.is_empty() {
            return;
        }
        headers.append(VARY, HeaderValue::from_static("Origin"));
        if let Some(origin) = origin {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, RESPONSE_HEADERS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_origin_counts_and_only_once() {
        let cors = Cors::new(vec!["https://shop.example".parse().unwrap()]);
        for (given, is_allowed) in [
            (&["https://shop.example"][..], true),
            (&[], false),
            (&["https://shop.example.evil.example"], false),
            (&["https://shop.example:8443"], false),
            (&["http://shop.example"], false),
            (&["null"], false),
            (&["https://shop.example", "https://shop.example"], false),
        ] {
            let mut headers = HeaderMap::new();
            for value in given {
                headers.append(ORIGIN, value.parse().unwrap());
            }
            assert_eq!(
                cors.allowed_origin(&headers).is_some(),
                is_allowed,
                "{given:?}"
            );
            assert_eq!(Cors::default().allowed_origin(&headers), None);
        }
    }
}
