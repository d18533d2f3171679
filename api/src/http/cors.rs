//! Pages of other sites that may read the answers: those that the operator lists, and no others.
//!
//! No answer ever allows every site, or credentials that a browser adds by itself: a page that may write sends the token.

use warp::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
    VARY,
};
use warp::http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use warp::reply::Response;

use super::empty;
use crate::config::origin::AllowedOrigin;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, PUT, POST, DELETE");
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "Authorization, Cache-Control, Content-Type, If-Match, If-None-Match, Last-Event-ID, X-Request-Id",
);
const RESPONSE_HEADERS: HeaderValue = HeaderValue::from_static(
    "Age, Cache-Status, ETag, Link, Location, RateLimit, RateLimit-Policy, Retry-After, X-Request-Id",
);
/// How long a browser need not ask again; Chromium's own upper bound.
const MAX_AGE_SECONDS: HeaderValue = HeaderValue::from_static("7200");

/// The operator's list.
#[derive(Clone, Debug, Default)]
pub struct Cors {
    origins: Vec<AllowedOrigin>,
}

impl Cors {
    /// Allows these.
    pub fn new(origins: Vec<AllowedOrigin>) -> Self {
        Self { origins }
    }

    /// The origin of the page that asks, if it is one of the list.
    pub fn allowed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        // Off: not even the header is looked for.
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

    /// Answers a browser that asks whether a page may send a request. All paths alike: a page may read errors, too.
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

    /// Says in an answer who may read it; `origin` is the request's [`Self::allowed_origin`].
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
