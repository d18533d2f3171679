//! What every request must satisfy before any route sees it (RFC 9112, sections 3.2 and 6.1).
//!
//! Two readers of one request must not understand it differently: a proxy that routes by the target and a server that looks
//! at `Host` would. So the request is made unambiguous here, once. Behind this check the target begins with `/` or is `*`,
//! there is at most one `Host`, it is valid, and it is the host of the target.

use std::net::Ipv6Addr;

use warp::http::header::{CONTENT_RANGE, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use warp::http::uri::{Authority, PathAndQuery};
use warp::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};

use super::problem::{ApiError, ONLY_CHUNKED};

/// Checks a request, and makes an absolute target one that begins with `/`.
///
/// # Errors
/// Returns `NotImplemented` for an unknown method or transfer coding, and `BadRequest` for any other fault.
pub fn check<B>(request: &mut Request<B>) -> Result<(), ApiError> {
    check_method(request.method())?;
    check_host(request.version(), request.headers())?;
    check_transfer(request.headers())?;
    check_body_fields(request.method(), request.headers())?;
    let uri = request.uri();
    match uri.authority() {
        Some(host) => {
            let (host, target) = (host_of_target(uri, host)?, origin_form(uri));
            request.headers_mut().insert(HOST, host);
            *request.uri_mut() = target;
        }
        None => check_target(request.method(), uri)?,
    }
    Ok(())
}

fn check_method(method: &Method) -> Result<(), ApiError> {
    match *method {
        Method::GET
        | Method::HEAD
        | Method::PUT
        | Method::POST
        | Method::PATCH
        | Method::DELETE
        | Method::OPTIONS
        | Method::TRACE => Ok(()),
        Method::CONNECT => Err(ApiError::BadRequest(
            "this server is not a proxy, so it does not take CONNECT",
        )),
        _ => Err(ApiError::NotImplemented(
            "the method is unknown; methods are written in capital letters",
        )),
    }
}

fn check_host(version: Version, headers: &HeaderMap) -> Result<(), ApiError> {
    let detail = match values(headers, &HOST) {
        (None, _) if version < Version::HTTP_11 => return Ok(()),
        (None, _) => "the header Host is missing",
        (Some(_), true) => "the header Host is given twice",
        (Some(host), false) if host.to_str().is_ok_and(is_host) => return Ok(()),
        (Some(_), false) => "the header Host must be a host name or address, and may have a port",
    };
    Err(ApiError::BadRequest(detail))
}

/// Where a body ends must be beyond doubt. hyper accepts any list of codings that ends with `chunked`, but decodes only the
/// chunks.
fn check_transfer(headers: &HeaderMap) -> Result<(), ApiError> {
    let (coding, is_doubled) = values(headers, &TRANSFER_ENCODING);
    let Some(coding) = coding else {
        return Ok(());
    };
    let coding = coding.as_bytes();
    if is_doubled {
        let detail = "the header Transfer-Encoding is given twice";
        return Err(ApiError::BadRequest(detail));
    }
    if !coding.eq_ignore_ascii_case(b"chunked") {
        return Err(ApiError::NotImplemented(ONLY_CHUNKED));
    }
    Ok(())
}

fn check_body_fields(method: &Method, headers: &HeaderMap) -> Result<(), ApiError> {
    if matches!(*method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    // RFC 9110, section 14.5: whoever ignores it would take a part of an order for the whole.
    if *method == Method::PUT && headers.contains_key(CONTENT_RANGE) {
        let detail = "PUT replaces whole orders, so it does not take Content-Range";
        return Err(ApiError::BadRequest(detail));
    }
    let (_, is_doubled) = values(headers, &CONTENT_TYPE);
    if is_doubled {
        let detail = "the header Content-Type is given twice";
        return Err(ApiError::BadRequest(detail));
    }
    Ok(())
}

/// Returns the first value of a header, and whether there are more.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> (Option<&'a HeaderValue>, bool) {
    let Some(first) = headers.get(name) else {
        return (None, false);
    };
    (Some(first), headers.get_all(name).iter().nth(1).is_some())
}

/// Checks a target without a host.
fn check_target(method: &Method, uri: &Uri) -> Result<(), ApiError> {
    let target = uri.path_and_query().map_or("", PathAndQuery::as_str);
    if target.starts_with('/') || target == "*" && *method == Method::OPTIONS {
        return Ok(());
    }
    Err(ApiError::BadRequest(
        "the target of the request must be a path that begins with /",
    ))
}

/// Returns the host of an absolute target. It counts, and the header `Host` does not (RFC 9112, section 3.2.2).
fn host_of_target(uri: &Uri, host: &Authority) -> Result<HeaderValue, ApiError> {
    let detail = match uri.scheme_str() {
        None => "this server is not a proxy, so the target of a request must be a path",
        Some("http" | "https") if is_host(host.as_str()) => {
            let host = HeaderValue::from_str(host.as_str());
            return host.map_err(|_| ApiError::BadRequest("the host of the target is malformed"));
        }
        // Among others for a user and a password before the host, which can feign another host.
        Some("http" | "https") => "the host of the target is malformed",
        Some(_) => "the scheme of the target must be http or https",
    };
    Err(ApiError::BadRequest(detail))
}

/// Returns path and query of an absolute target.
fn origin_form(uri: &Uri) -> Uri {
    match uri.path_and_query() {
        Some(target) if target.as_str().starts_with('/') => target.clone().into(),
        Some(query) => {
            Uri::try_from(["/", query.as_str()].concat()).expect("a query may follow any path")
        }
        None => Uri::default(),
    }
}

/// Returns whether a text is a `uri-host` with or without a port (RFC 9110, section 7.2). It must not be empty: this is so
/// for every `http` URI.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if address.parse::<Ipv6Addr>().is_ok() => ("address", port),
            _ => return false,
        },
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let is_port = match port.strip_prefix(':') {
        // The port may be empty.
        Some(digits) => {
            digits.bytes().all(|byte| byte.is_ascii_digit())
                && (digits.is_empty() || digits.parse::<u16>().is_ok())
        }
        None => port.is_empty(),
    };
    is_port && !host.is_empty() && is_reg_name(host.as_bytes())
}

/// RFC 3986, section 3.2.2.
fn is_reg_name(mut bytes: &[u8]) -> bool {
    while let [first, rest @ ..] = bytes {
        bytes = match (first, rest) {
            (b'%', [high, low, rest @ ..])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                rest
            }
            _ if first.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(first) => rest,
            _ => return false,
        };
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_addresses_with_or_without_a_port() {
        for host in [
            "localhost",
            "localhost:",
            "LOCALHOST:8081",
            "a.example.",
            "xn--p1ai",
            "a_b",
            "a%20b",
            "127.0.0.1:65535",
            "[::1]",
            "[::1]:8081",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(is_host(host), "{host}");
        }
        for host in [
            "",
            ":",
            ":80",
            "a b",
            "a,b c",
            "a/b",
            "a@b",
            "user:pass@a",
            "a:b",
            "a:65536",
            "a:80:80",
            "a:-1",
            "a:+1",
            "a%2",
            "a%zz",
            "::1",
            "[::1",
            "[::1]80",
            "[::1]:b",
            "[]",
            "[a]",
            "[fe80::1%25eth0]",
            "http://a",
            "a?b",
            "a#b",
            "я",
            "a\u{7f}",
        ] {
            assert!(!is_host(host), "{host}");
        }
    }

    #[test]
    fn an_absolute_target_brings_its_host() {
        for (target, path, host) in [
            ("/a?b", "/a?b", "header"),
            ("http://a", "/", "a"),
            ("http://a/", "/", "a"),
            ("http://a:1/b?c=http://d/", "/b?c=http://d/", "a:1"),
            ("HTTPS://A/b", "/b", "A"),
            ("http://a?b", "/?b", "a"),
        ] {
            let request = Request::get(target).header(HOST, "header");
            let mut request = request.body(()).unwrap();
            assert_eq!(check(&mut request), Ok(()), "{target}");
            assert_eq!(request.uri(), path);
            assert_eq!(request.headers()[HOST], host);
        }
        for target in [
            "a:443",
            "a",
            "http://u@a/",
            "http://u:p@a/",
            "ftp://a/",
            "*",
        ] {
            let request = Request::get(target).header(HOST, "header");
            let checked = check(&mut request.body(()).unwrap());
            assert!(
                matches!(checked, Err(ApiError::BadRequest(_))),
                "{target}: {checked:?}"
            );
        }
    }
}
