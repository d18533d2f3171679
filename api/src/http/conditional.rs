//! Evaluates `If-Match` and `If-None-Match`.
//!
//! Our `ETag` is the order's version in quotes. Versions are compared, so a tag that a proxy has weakened (`W/`) matches,
//! too, in both headers: equal versions are equal orders, whatever the encoding. There is no `Last-Modified`, so the
//! conditions on time do not apply.

use warp::http::header::{IF_MATCH, IF_NONE_MATCH};
use warp::http::{HeaderMap, HeaderName};

use crate::repository::{Precondition, Versions};

/// How to answer a read with preconditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Send the order.
    Send,
    /// 304: the client already has this version.
    NotModified,
    /// 412: the client wants another version.
    Mismatch,
}

/// Evaluates the preconditions of a read, in the order of RFC 9110, section 13.2.2.
pub fn reading(headers: &HeaderMap, version: i64) -> Reading {
    let precondition = precondition(headers);
    if !precondition.accepted.contains(version) {
        Reading::Mismatch
    } else if precondition.refused.contains(version) {
        Reading::NotModified
    } else {
        Reading::Send
    }
}

/// Returns which versions of the order a write may change.
pub fn precondition(headers: &HeaderMap) -> Precondition {
    Precondition {
        accepted: versions(headers, &IF_MATCH).unwrap_or(Versions::Any),
        refused: versions(headers, &IF_NONE_MATCH).unwrap_or(Versions::These(Vec::new())),
    }
}

/// Returns the versions in a header, `None` without the header. Tags that are not ours are left out.
fn versions(headers: &HeaderMap, name: &HeaderName) -> Option<Versions> {
    if !headers.contains_key(name) {
        return None;
    }
    let versions = if tags(headers, name).any(|tag| tag == "*") {
        Versions::Any
    } else {
        Versions::These(tags(headers, name).filter_map(tag_version).collect())
    };
    Some(versions)
}

/// Lists the tags of a header. Our tags contain no comma, so a tag with a comma never matches, as a whole or in parts.
pub fn tags<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

fn tag_version(tag: &str) -> Option<i64> {
    let quoted = tag.strip_prefix("W/").unwrap_or(tag);
    let digits = quoted.strip_prefix('"')?.strip_suffix('"')?;
    // Only the spelling that we send counts. `parse` would also accept "+7" and "07".
    let version: i64 = digits.parse().ok()?;
    (version.to_string() == digits).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn tags_are_lists_weak_ones_and_the_star() {
        for (values, is_match) in [
            (&["\"7\""][..], true),
            (&["W/\"7\""], true),
            (&["\"6\", W/\"7\""], true),
            (&["\"6\",,\"7\" , "], true),
            (&["\"6\"", "\"7\""], true),
            (&["*"], true),
            (&["\"6\"", "*"], true),
            (&["\"8\""], false),
            (&["7"], false),
            (&["w/\"7\""], false),
            (&["W/ \"7\""], false),
            (&["\"07\""], false),
            (&["\"+7\""], false),
            (&["\"7"], false),
            (&["\"\""], false),
            (&["\"*\""], false),
            (&[""], false),
        ] {
            let expected = if is_match {
                Reading::Send
            } else {
                Reading::Mismatch
            };
            assert_eq!(
                reading(&headers("if-match", values), 7),
                expected,
                "{values:?}"
            );
            let expected = if is_match {
                Reading::NotModified
            } else {
                Reading::Send
            };
            assert_eq!(
                reading(&headers("if-none-match", values), 7),
                expected,
                "{values:?}"
            );
        }
        assert_eq!(reading(&HeaderMap::new(), 7), Reading::Send);
    }

    #[test]
    fn if_match_comes_before_if_none_match() {
        for (if_match, if_none_match, expected) in [
            ("\"7\"", "\"7\"", Reading::NotModified),
            ("\"7\"", "\"8\"", Reading::Send),
            ("\"8\"", "\"7\"", Reading::Mismatch),
            ("\"8\"", "*", Reading::Mismatch),
        ] {
            let mut both = headers("if-match", &[if_match]);
            both.extend(headers("if-none-match", &[if_none_match]));
            assert_eq!(reading(&both, 7), expected, "{if_match} {if_none_match}");
        }
    }
}
