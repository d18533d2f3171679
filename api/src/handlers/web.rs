//! The web page with its assets, and the description of the API. All are embedded in the binary.

use std::hash::{DefaultHasher, Hasher};
use std::sync::LazyLock;

use warp::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, REFERRER_POLICY,
};
use warp::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use warp::reply::Response;

use super::Call;
use crate::http::compression::{Precompressed, vary};
use crate::http::conditional;
use crate::http::empty;
use crate::http::problem::ApiError;

/// Allows only content from this server, and nothing inline, so that no text of an order can become a script. Trusted Types
/// make a browser refuse every text that a script of ours would turn into markup or code.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";
/// No window of another site keeps a hold on the page's window, and none of its files is loaded into another site.
const CROSS_ORIGIN_OPENER_POLICY: HeaderName =
    HeaderName::from_static("cross-origin-opener-policy");
const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName =
    HeaderName::from_static("cross-origin-resource-policy");
const SAME_ORIGIN: HeaderValue = HeaderValue::from_static("same-origin");
/// The page needs none of these, so no script that gets in can ask for them.
const PERMISSIONS_POLICY: HeaderName = HeaderName::from_static("permissions-policy");
const NO_PERMISSIONS: HeaderValue = HeaderValue::from_static(
    "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), serial=(), usb=()",
);

/// A file of the page.
#[derive(Debug)]
pub struct Asset {
    content: Precompressed,
    etag: String,
    headers: HeaderMap,
}

impl Asset {
    fn new(content: &'static [u8], content_type: &'static str) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(content);
        // Weak: the same content may be sent compressed.
        let etag = format!("W/\"{:016x}\"", hasher.finish());
        let etag_value = HeaderValue::from_str(&etag).expect("digits and quotes are valid");
        let mut headers = HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static(content_type)),
            (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
            (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
            (CROSS_ORIGIN_OPENER_POLICY, SAME_ORIGIN),
            (CROSS_ORIGIN_RESOURCE_POLICY, SAME_ORIGIN),
            (PERMISSIONS_POLICY, NO_PERMISSIONS),
            (ETAG, etag_value),
        ]);
        vary(&mut headers);
        Self {
            content: Precompressed::new(content),
            etag,
            headers,
        }
    }
}

macro_rules! assets {
    ($($(#[$doc:meta])* $name:ident = $file:literal, $content_type:literal;)*) => {
        $(
            $(#[$doc])*
            pub static $name: LazyLock<Asset> = LazyLock::new(|| {
                let content = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $file));
                Asset::new(content, $content_type)
            });
        )*
    };
}

assets! {
    /// `/`.
    INDEX = "../web/index.html", "text/html; charset=utf-8";
    /// `/style.css`.
    STYLE = "../web/style.css", "text/css; charset=utf-8";
    /// `/app.js`.
    SCRIPT = "../web/app.js", "text/javascript; charset=utf-8";
    /// `/api.html`.
    REFERENCE = "../web/api.html", "text/html; charset=utf-8";
    /// `/api.js`.
    REFERENCE_SCRIPT = "../web/api.js", "text/javascript; charset=utf-8";
    /// `/favicon.svg`.
    ICON = "../web/favicon.svg", "image/svg+xml";
    /// `/openapi.json`: kept by hand; the tests in `routes/openapi.rs` compare it with the code.
    OPENAPI = "openapi.json", "application/json";
}

macro_rules! scripts {
    ($($file:literal)*) => {
        /// The modules that `/app.js` imports, by the last segment of their paths.
        pub static SCRIPTS: [(&str, LazyLock<Asset>); 16] = [$((
            $file,
            LazyLock::new(|| {
                let content = include_bytes!(concat!(
                    env!("CARGO_MANIFEST_DIR"),
                    "/../web/scripts/",
                    $file
                ));
                Asset::new(content, "text/javascript; charset=utf-8")
            }),
        )),*];
    };
}

scripts! {
    "access.js"
    "address.js"
    "client.js"
    "dom.js"
    "event_stream.js"
    "feed.js"
    "follower.js"
    "format.js"
    "kinds.js"
    "order.js"
    "orders.js"
    "search.js"
    "status.js"
    "summary_table.js"
    "token_form.js"
    "view.js"
}

/// Answers with a module of the page's script.
///
/// # Errors
/// Returns `NoSuchEndpoint` if there is none of this name.
pub async fn script(call: Call) -> Result<Response, ApiError> {
    let asked = call.file.as_deref().unwrap_or_default();
    let found = SCRIPTS.iter().find(|(name, _)| *name == asked);
    let (_, script) = found.ok_or(ApiError::NoSuchEndpoint)?;
    asset(script, call).await
}

/// Answers with a file. Query parameters are not checked: they are the page's own.
pub async fn asset(asset: &'static Asset, Call { head, .. }: Call) -> Result<Response, ApiError> {
    let mut response = if conditional::is_known(&head.headers, &asset.etag) {
        empty(StatusCode::NOT_MODIFIED)
    } else {
        asset.content.response(&head)?
    };
    response.headers_mut().extend(asset.headers.clone());
    Ok(response)
}

#[cfg(test)]
mod tests {
    use std::fs::read_dir;

    use super::*;

    #[test]
    fn every_module_of_the_page_is_served() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../web/scripts");
        let entries = read_dir(folder).unwrap();
        let mut files: Vec<_> = entries.map(|each| each.unwrap().file_name()).collect();
        files.sort();
        let served: Vec<_> = SCRIPTS.iter().map(|(name, _)| *name).collect();
        assert_eq!(files, served);
    }
}
