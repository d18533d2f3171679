//! The origins of pages, as `CORS_ALLOWED_ORIGINS` lists them.

use std::str::FromStr;

use warp::http::{HeaderValue, Uri};

/// The origin of a page as browsers send it: `scheme://host[:port]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedOrigin(HeaderValue);

/// The text is not an origin.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is not an origin, write it as browsers send it, for example https://shop.example or http://localhost:3000"
)]
pub struct InvalidOrigin(String);

impl FromStr for AllowedOrigin {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        let text = text.trim();
        let refused = || InvalidOrigin(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| refused())?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(refused());
        };
        // Browsers leave out the default port.
        let is_default_port = matches!(
            (scheme, authority.port_u16()),
            ("http", Some(80)) | ("https", Some(443))
        );
        // An origin written in any other way would never equal what a browser sends.
        let is_exact = [scheme, "://", authority.as_str()].concat() == text
            && !text.bytes().any(|byte| byte.is_ascii_uppercase())
            && !authority.as_str().contains(['@', '*']);
        if matches!(scheme, "http" | "https") && is_exact && !is_default_port {
            HeaderValue::from_str(text).map(Self).map_err(|_| refused())
        } else {
            Err(refused())
        }
    }
}

impl AllowedOrigin {
    /// Returns the origin as a header's value.
    pub fn value(&self) -> &HeaderValue {
        &self.0
    }

    /// Returns the origin as text.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_written_as_browsers_send_them() {
        for text in [
            "https://shop.example",
            "http://localhost:3000",
            "http://127.0.0.1:8080",
            "http://[::1]:3000",
            "https://shop.example:80",
        ] {
            assert!(AllowedOrigin::from_str(text).is_ok(), "{text}");
        }
        for text in [
            "",
            "*",
            "null",
            "shop.example",
            "localhost:3000",
            "//shop.example",
            "https://",
            "https://*.shop.example",
            "https://shop.example/",
            "https://shop.example/page",
            "https://shop.example?x",
            "https://Shop.example",
            "HTTPS://shop.example",
            "https://shop.example:443",
            "http://shop.example:80",
            "https://user@shop.example",
            "ftp://shop.example",
            "https://shop.example https://other.example",
        ] {
            assert!(AllowedOrigin::from_str(text).is_err(), "{text}");
        }
    }
}
