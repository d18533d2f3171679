//! Who may do what.
//!
//! Where there are tokens, a request must carry one with the scope that its endpoint needs. Without tokens, everything is
//! open only to people at the machine itself. The address of the connection decides this, because a proxy on the machine can
//! rewrite every header; a request that shows traces of a proxy is refused. The pages in people's browsers may not write,
//! except the server's own page and those of listed origins (`CORS_ALLOWED_ORIGINS`). And the name in `Host` must be one of
//! the machine's, because a page of another site can reach the server under a host name of its own (DNS rebinding).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tracing::field::DisplayValue;
use tracing::warn;
use warp::http::header::{AUTHORIZATION, FORWARDED, HOST, ORIGIN, VIA};
use warp::http::{HeaderMap, Version};

use super::cors::Cors;
use super::problem::ApiError;
use super::request::Head;
use super::token_file::TokenFile;
use crate::config::Config;
use crate::config::tokens::{Scope, Token, TokenName};

/// What an endpoint needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The scope that a token must have.
    pub scope: Scope,
    /// Whether it changes something, so that pages of other sites may not use it.
    pub is_write: bool,
}

impl Access {
    /// What reading orders needs.
    pub const READ: Self = Self {
        scope: Scope::Read,
        is_write: false,
    };
}

/// Decides who may do what on this server.
#[derive(Debug)]
pub struct Authority {
    tokens: Option<Arc<TokenFile>>,
    open: OpenAccess,
}

/// Whom a server without tokens serves.
#[derive(Debug)]
struct OpenAccess {
    is_bound_to_loopback: bool,
    allows_reads: bool,
    allows_writes: bool,
    allowed_hosts: Vec<String>,
    cors: Cors,
}

/// Why a request is allowed.
#[derive(Clone, Debug)]
pub enum Grant {
    /// The endpoint, or the server, needs no token.
    Open,
    /// The request carries a token.
    Token(HeldToken),
}

/// A token that a request carries.
#[derive(Clone, Debug)]
pub struct HeldToken {
    token: Arc<Token>,
    scope: Scope,
    file: Arc<TokenFile>,
}

impl Grant {
    /// Returns the token; `None` without one.
    pub fn token(&self) -> Option<&Arc<Token>> {
        match self {
            Self::Open => None,
            Self::Token(held) => Some(&held.token),
        }
    }

    /// Returns the name of the token, for the log; `None` without one.
    pub fn token_name(&self) -> Option<DisplayValue<&TokenName>> {
        self.token()
            .map(|token| tracing::field::display(&token.name))
    }

    /// Waits until the token is no longer in force, or lacks the scope that it was used for. Without a token it waits for ever.
    pub async fn withdrawn(self) {
        match self {
            Self::Open => std::future::pending().await,
            Self::Token(HeldToken { token, scope, file }) => {
                file.until(|tokens| !tokens.still_allow(&token, scope))
                    .await;
            }
        }
    }
}

impl Authority {
    /// Chooses the rules for a server that is bound to `address`, and warns of what is open.
    pub fn new(config: &Config, address: SocketAddr, tokens: Option<Arc<TokenFile>>) -> Self {
        let open = OpenAccess {
            is_bound_to_loopback: address.ip().to_canonical().is_loopback(),
            allows_reads: config.allow_unauthenticated_reads,
            allows_writes: config.allow_unauthenticated_writes,
            allowed_hosts: config.allowed_hosts.clone(),
            cors: Cors::new(config.cors_allowed_origins.clone()),
        };
        if tokens.is_none() {
            open.warn();
        }
        Self { tokens, open }
    }

    /// Checks whether a request may use an endpoint. Puts its token into `known`, for the log, also if the token lacks the scope.
    ///
    /// # Errors
    /// Returns `Unauthorized` if the token is missing or wrong, `InsufficientScope` if it does not allow this, `ReadsDisabled`
    /// or `WritesDisabled` if the client is not at this machine, and `ForbiddenOrigin` if the request comes from a page of
    /// another site or names another host.
    pub fn check(
        &self,
        access: Access,
        head: &Head,
        known: &mut Option<Arc<Token>>,
    ) -> Result<Grant, ApiError> {
        let Some(file) = &self.tokens else {
            return self.open.check(access.is_write, head).map(|()| Grant::Open);
        };
        let sent = bearer_token(&head.headers).ok_or(ApiError::Unauthorized { is_wrong: false })?;
        let token = file
            .find(sent)
            .ok_or(ApiError::Unauthorized { is_wrong: true })?;
        *known = Some(Arc::clone(&token));
        let Access { scope, .. } = access;
        if !token.scopes.contains(scope) {
            return Err(ApiError::InsufficientScope {
                scope: scope.name(),
            });
        }
        let file = Arc::clone(file);
        Ok(Grant::Token(HeldToken { token, scope, file }))
    }
}

impl OpenAccess {
    fn warn(&self) {
        if self.allows_reads || self.allows_writes {
            let what = match (self.allows_reads, self.allows_writes) {
                (true, true) => "read and change orders",
                (true, false) => "read orders",
                _ => "change orders",
            };
            warn!(
                "there are no tokens, and ALLOW_UNAUTHENTICATED_... is set: whoever reaches this port with a Host of \
                 ALLOWED_HOSTS may {what}; set API_TOKENS_FILE unless only people at this machine reach it"
            );
        } else if !self.is_bound_to_loopback {
            warn!(
                "there are no tokens, and the server is not bound to loopback: all reads and writes are refused; set \
                 API_TOKENS_FILE, or bind it to 127.0.0.1"
            );
        }
    }

    fn check(&self, is_write: bool, head: &Head) -> Result<(), ApiError> {
        let (is_allowed, disabled) = if is_write {
            (
                self.allows_writes,
                ApiError::WritesDisabled { by_database: false },
            )
        } else {
            (self.allows_reads, ApiError::ReadsDisabled)
        };
        let is_at_the_machine = self.is_bound_to_loopback && is_direct_from_loopback(head);
        if !is_allowed && !is_at_the_machine {
            return Err(disabled);
        }
        let host = single(&head.headers, HOST.as_str()).ok_or(ApiError::ForbiddenOrigin)?;
        let name = host_name(host);
        let is_known_host =
            is_at_the_machine && is_loopback_name(name) || is_allowed && self.is_allowed_host(name);
        if !is_known_host || is_write && !self.is_own_or_listed_origin(&head.headers, host) {
            return Err(ApiError::ForbiddenOrigin);
        }
        Ok(())
    }

    fn is_allowed_host(&self, name: &str) -> bool {
        if self.allowed_hosts.is_empty() {
            return is_loopback_name(name);
        }
        let mut hosts = self.allowed_hosts.iter();
        hosts.any(|host| host.eq_ignore_ascii_case(name))
    }

    fn is_own_or_listed_origin(&self, headers: &HeaderMap, host: &str) -> bool {
        let is_own_origin = !headers.contains_key(ORIGIN)
            || single(headers, ORIGIN.as_str()).is_some_and(|origin| is_origin_of(origin, host));
        let is_cross_site = headers
            .get_all("sec-fetch-site")
            .iter()
            .any(|site| site.as_bytes().eq_ignore_ascii_case(b"cross-site"));
        self.cors.allowed_origin(headers).is_some() || is_own_origin && !is_cross_site
    }
}

/// Returns whether a program on this machine has sent the request, and no proxy that can be recognised. nginx speaks HTTP/1.0
/// to servers behind it unless it is told otherwise, and leaves no other trace.
fn is_direct_from_loopback(head: &Head) -> bool {
    let is_forwarded = |name: &str| {
        name == FORWARDED.as_str() || name == VIA.as_str() || name.starts_with("x-forwarded-")
    };
    head.sender.peer.to_canonical().is_loopback()
        && head.version >= Version::HTTP_11
        && !head.headers.keys().any(|name| is_forwarded(name.as_str()))
}

/// Returns the token that a request carries (RFC 6750, section 2.1); `None` if it has no header of the scheme `Bearer`.
fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = single(headers, AUTHORIZATION.as_str())?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_matches(' '))
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

/// Returns the name in a `Host` without its port. Every read of an order gets here, so nothing is parsed or copied that need
/// not be: whatever is no plain name equals no known one.
fn host_name(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.trim_end_matches('.')
}

fn is_loopback_name(name: &str) -> bool {
    const LOCALHOST: &str = "localhost";
    let is_localhost = |name: &str| name.eq_ignore_ascii_case(LOCALHOST);
    let is_below_localhost = || {
        name.rsplit_once('.')
            .is_some_and(|(_, last)| is_localhost(last))
    };
    let is_address = || {
        let bare = name
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let address = bare.unwrap_or(name).parse::<IpAddr>();
        address.is_ok_and(|address| address.to_canonical().is_loopback())
    };
    is_localhost(name) || is_below_localhost() || is_address()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_loopback_are_known_with_and_without_a_port() {
        for (host, is_loopback) in [
            ("localhost", true),
            ("LocalHost:8081", true),
            ("localhost.", true),
            ("shop.localhost:1", true),
            ("127.0.0.1:8081", true),
            ("127.9.9.9", true),
            ("[::1]:8081", true),
            ("[::1]", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("", false),
            (".localhost.evil.example", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example:8081", false),
            ("localhost@evil.example", false),
            ("evil@localhost", false),
            ("localhost:80:80", false),
            ("notlocalhost", false),
            ("192.168.0.5:8081", false),
            ("[::2]", false),
        ] {
            assert_eq!(is_loopback_name(host_name(host)), is_loopback, "{host}");
        }
    }
}
