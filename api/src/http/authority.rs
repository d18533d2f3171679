//! Who may write, warm up the cache and clear it.
//!
//! If the server has a token, a request must carry it. Without a token, only people at the machine itself may write. The pages
//! in their browsers may not, except the server's own page: a page of another site can make a browser send requests to
//! loopback, even under a host name of its own (DNS rebinding). Pages whose origins the operator lists
//! (`CORS_ALLOWED_ORIGINS`) may write, too.

use std::net::{IpAddr, SocketAddr};

use shared::config::Secret;
use subtle::ConstantTimeEq;
use warp::http::HeaderMap;
use warp::http::header::{AUTHORIZATION, HOST, ORIGIN};
use warp::http::uri::Authority as HostAndPort;

use super::cors::Cors;
use super::problem::ApiError;
use crate::config::Config;

/// Who may write to this server.
#[derive(Clone, Debug)]
pub enum Authority {
    /// Whoever sends the token.
    Token(Secret),
    /// People at the machine, and pages of the listed origins.
    Open(Cors),
    /// Nobody.
    Disabled,
}

impl Authority {
    /// Chooses the rule for a server that is bound to `address`.
    pub fn new(config: &Config, address: SocketAddr) -> Self {
        match &config.api_token {
            Some(token) => Self::Token(token.clone()),
            None if address.ip().to_canonical().is_loopback()
                || config.allow_unauthenticated_writes =>
            {
                Self::Open(Cors::new(config.cors_allowed_origins.clone()))
            }
            None => Self::Disabled,
        }
    }

    /// Checks whether a request may write.
    ///
    /// # Errors
    /// Returns `Unauthorized` if the token is missing or wrong, `ForbiddenOrigin` if the request comes from another site or
    /// machine, and `WritesDisabled` if nobody may write.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        match self {
            Self::Token(token) if has_token(headers, token) => Ok(()),
            Self::Token(_) => Err(ApiError::Unauthorized),
            Self::Open(cors) if is_from_this_machine(headers, cors) => Ok(()),
            Self::Open(_) => Err(ApiError::ForbiddenOrigin),
            Self::Disabled => Err(ApiError::WritesDisabled),
        }
    }
}

fn has_token(headers: &HeaderMap, token: &Secret) -> bool {
    let Some((scheme, given)) =
        single(headers, AUTHORIZATION.as_str()).and_then(|value| value.split_once(' '))
    else {
        return false;
    };
    scheme.eq_ignore_ascii_case("bearer")
        && bool::from(given.trim().as_bytes().ct_eq(token.expose().as_bytes()))
}

fn is_from_this_machine(headers: &HeaderMap, cors: &Cors) -> bool {
    let Some(host) = single(headers, HOST.as_str()) else {
        return false;
    };
    let has_loopback_host = host
        .parse::<HostAndPort>()
        .is_ok_and(|host| is_loopback_name(host.host()));
    let is_own_origin = !headers.contains_key(ORIGIN)
        || single(headers, ORIGIN.as_str()).is_some_and(|origin| is_origin_of(origin, host));
    let is_cross_site = headers
        .get_all("sec-fetch-site")
        .iter()
        .any(|site| site.as_bytes().eq_ignore_ascii_case(b"cross-site"));
    let is_listed_origin = cors.allowed_origin(headers).is_some();
    has_loopback_host && (is_listed_origin || is_own_origin && !is_cross_site)
}

/// Returns the value of a header, `None` if it is missing or sent more than once.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

fn is_origin_of(origin: &str, host: &str) -> bool {
    origin.split_once("://").is_some_and(|(scheme, name)| {
        matches!(scheme, "http" | "https") && name.eq_ignore_ascii_case(host)
    })
}

fn is_loopback_name(host: &str) -> bool {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost"
        || name.ends_with(".localhost")
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: impl IntoIterator<Item = (&'static str, &'static str)>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn token_is_compared_whole() {
        let authority = Authority::Token(Secret::new("s3cret"));
        for (given, is_right) in [
            ("Bearer s3cret", true),
            ("bearer s3cret", true),
            ("Bearer s3cre", false),
            ("Bearer s3cretx", false),
            ("Bearer ", false),
            ("Basic s3cret", false),
            ("s3cret", false),
        ] {
            let checked = authority.check(&headers([("authorization", given)]));
            assert_eq!(checked.is_ok(), is_right, "{given}");
        }
        assert_eq!(authority.check(&headers([])), Err(ApiError::Unauthorized));
        let twice = headers([
            ("authorization", "Bearer s3cret"),
            ("authorization", "Bearer s3cret"),
        ]);
        assert_eq!(authority.check(&twice), Err(ApiError::Unauthorized));
    }

    #[test]
    fn open_writes_are_for_this_machine_its_own_page_and_those_listed() {
        let cors = Cors::new(vec!["https://shop.example".parse().unwrap()]);
        for (given, is_allowed) in [
            ("host=localhost:8081", true),
            ("host=LOCALHOST", true),
            ("host=127.0.0.1:8081", true),
            ("host=127.9.9.9", true),
            ("host=[::1]:8081", true),
            ("host=shop.localhost:1", true),
            ("", false),
            ("host=evil.example", false),
            ("host=127.0.0.1.evil.example:8081", false),
            ("host=localhost.evil.example", false),
            ("host=localhost@evil.example", false),
            ("host=192.168.0.5:8081", false),
            ("host=localhost, host=localhost", false),
            ("host=localhost:8081, origin=http://localhost:8081", true),
            ("host=localhost:8081, origin=http://localhost:3000", false),
            ("host=localhost:8081, origin=http://evil.example", false),
            ("host=localhost:8081, origin=null", false),
            ("host=localhost:8081, sec-fetch-site=same-origin", true),
            ("host=localhost:8081, sec-fetch-site=none", true),
            ("host=localhost:8081, sec-fetch-site=cross-site", false),
            (
                "host=localhost:8081, origin=https://shop.example, sec-fetch-site=cross-site",
                true,
            ),
            ("host=evil.example, origin=https://shop.example", false),
        ] {
            let pairs = given.split(", ").filter_map(|pair| pair.split_once('='));
            let checked = Authority::Open(cors.clone()).check(&headers(pairs));
            let expected = if is_allowed {
                Ok(())
            } else {
                Err(ApiError::ForbiddenOrigin)
            };
            assert_eq!(checked, expected, "{given:?}");
        }
        assert_eq!(
            Authority::Disabled.check(&headers([("host", "localhost")])),
            Err(ApiError::WritesDisabled)
        );
    }
}
