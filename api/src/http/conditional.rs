//! Evaluates `If-Match` and `If-None-Match`.
//!
//! Our `ETag` is the order's revision in quotes. Revisions are compared, so a tag that a proxy has changed matches, too, in
//! both headers: equal revisions are equal orders, whatever the encoding. A proxy that compresses an answer weakens the tag
//! (`W/`) or appends the coding to it (`-gzip`), and usually does not undo this when the client sends the tag back. There
//! is no `Last-Modified`, so the conditions on time do not apply.

use warp::http::header::{IF_MATCH, IF_NONE_MATCH};
use warp::http::{HeaderMap, HeaderName};

use super::problem::ApiError;
use crate::repository::{Precondition, Revision, Revisions};

/// How to answer a read with preconditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Send the order.
    Send,
    /// 304: the client already has this revision.
    NotModified,
    /// 412: the client wants another revision.
    Mismatch,
}

/// Evaluates the preconditions of a read, in the order of RFC 9110, section 13.2.2.
///
/// # Errors
/// Returns `BadRequest` if a header is malformed.
pub fn reading(headers: &HeaderMap, revision: Revision) -> Result<Reading, ApiError> {
    let precondition = precondition(headers)?;
    let contains = |revisions: &Revisions| revisions.contains(revision);
    Ok(if !precondition.accepted.as_ref().is_none_or(contains) {
        Reading::Mismatch
    } else if precondition.refused.as_ref().is_some_and(contains) {
        Reading::NotModified
    } else {
        Reading::Send
    })
}

/// Returns what a request demands of the order.
///
/// # Errors
/// Returns `BadRequest` if a header is malformed.
pub fn precondition(headers: &HeaderMap) -> Result<Precondition, ApiError> {
    Ok(Precondition {
        accepted: revisions(headers, &IF_MATCH)?,
        refused: revisions(headers, &IF_NONE_MATCH)?,
    })
}

/// Returns the revisions in a header, `None` without the header. Tags that are not ours are left out. A star stands alone
/// (RFC 9110, section 13.1.1): in a list it would make a write unconditional that was meant to be conditional.
fn revisions(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Revisions>, ApiError> {
    if !headers.contains_key(name) {
        return Ok(None);
    }
    let given: Vec<_> = tags(headers, name).filter(|tag| !tag.is_empty()).collect();
    match *given {
        ["*"] => Ok(Some(Revisions::Any)),
        _ if given.contains(&"*") => {
            let detail = "If-Match and If-None-Match are either * or a list of tags";
            Err(ApiError::BadRequest(detail))
        }
        _ => {
            let revisions = given.into_iter().filter_map(revision_of).collect();
            Ok(Some(Revisions::These(revisions)))
        }
    }
}

/// Returns whether `If-None-Match` has a tag, by weak comparison (RFC 9110, section 8.8.3.2): for answers that stand for no
/// order. As with orders, a tag matches although a proxy has weakened it or appended a coding.
pub fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    tags(headers, &IF_NONE_MATCH).any(|tag| tag == "*" || opaque(tag) == opaque(etag))
}

/// Lists the tags of a header. Our tags contain no comma, so a tag with a comma never matches, as a whole or in parts.
pub fn tags<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

fn revision_of(tag: &str) -> Option<Revision> {
    opaque(tag)?.parse().ok()
}

/// Returns what a tag has in its quotes, `None` if it has none.
fn opaque(tag: &str) -> Option<&str> {
    let quoted = tag.strip_prefix("W/").unwrap_or(tag);
    let text = quoted.strip_prefix('"')?.strip_suffix('"')?;
    Some(without_coding(text))
}

/// Returns the text of a tag without what a proxy has appended when it compressed the answer: one separator and one coding.
/// Apache, lighttpd and Caddy append `-gzip`, Jetty appends `--gzip`, and some older programs append `;gzip`.
fn without_coding(tag: &str) -> &str {
    const CODINGS: [&str; 4] = ["gzip", "br", "zstd", "deflate"];
    // The longer separator must come first, because it ends with the shorter one.
    const SEPARATORS: [&str; 3] = ["--", "-", ";"];
    CODINGS
        .iter()
        .find_map(|coding| tag.strip_suffix(coding))
        .and_then(|rest| SEPARATORS.iter().find_map(|end| rest.strip_suffix(end)))
        .unwrap_or(tag)
}

#[cfg(test)]
mod tests {
    use shared::db::HistoryId;

    use super::*;

    const SEVEN: Revision = Revision {
        version: 7,
        history: HistoryId(0xab),
    };

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
            (&["\"7-00000000000000ab\""][..], true),
            (&["W/\"7-00000000000000ab\""], true),
            (&["\"6-00000000000000ab\", W/\"7-00000000000000ab\""], true),
            (&["\"6-00000000000000ab\",,\"7-00000000000000ab\" , "], true),
            (&["\"6-00000000000000ab\"", "\"7-00000000000000ab\""], true),
            (&["*"], true),
            (&["\"8-00000000000000ab\""], false),
            (&["7-00000000000000ab"], false),
            (&["\"7\""], false),
            (&["\"7-ab\""], false),
            (&["\"7-00000000000000AB\""], false),
            (&["\"7-00000000000000ac\""], false),
            (&["w/\"7-00000000000000ab\""], false),
            (&["W/ \"7-00000000000000ab\""], false),
            (&["\"07-00000000000000ab\""], false),
            (&["\"+7-00000000000000ab\""], false),
            (&["\"7-00000000000000ab"], false),
            (&["\"7-00000000000000ab-gzip\""], true),
            (&["\"7-00000000000000ab-br\""], true),
            (&["\"7-00000000000000ab-zstd\""], true),
            (&["\"7-00000000000000ab-deflate\""], true),
            (&["\"7-00000000000000ab--gzip\""], true),
            (&["\"7-00000000000000ab--br\""], true),
            (&["\"7-00000000000000ab;gzip\""], true),
            (&["\"7-00000000000000ab;br\""], true),
            (&["W/\"7-00000000000000ab-gzip\""], true),
            (
                &["\"6-00000000000000ab-gzip\", \"7-00000000000000ab-gzip\""],
                true,
            ),
            (&["\"8-00000000000000ab-gzip\""], false),
            (&["\"7-00000000000000ab-gzip-gzip\""], false),
            (&["\"7-00000000000000ab---gzip\""], false),
            (&["\"7-00000000000000ab-;gzip\""], false),
            (&["\"7-00000000000000abgzip\""], false),
            (&["\"7-00000000000000ab-GZIP\""], false),
            (&["\"7-00000000000000ab-\""], false),
            (&["\"7-00000000000000ab-other\""], false),
            (&["\"7-00000000000000ab\"-gzip"], false),
            (&["\"-gzip\""], false),
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
                reading(&headers("if-match", values), SEVEN),
                Ok(expected),
                "{values:?}"
            );
            let expected = if is_match {
                Reading::NotModified
            } else {
                Reading::Send
            };
            assert_eq!(
                reading(&headers("if-none-match", values), SEVEN),
                Ok(expected),
                "{values:?}"
            );
        }
        assert_eq!(reading(&HeaderMap::new(), SEVEN), Ok(Reading::Send));
    }

    #[test]
    fn a_star_stands_alone() {
        for name in ["if-match", "if-none-match"] {
            for values in [
                &["*, \"7-00000000000000ab\""][..],
                &["\"6-00000000000000ab\"", "*"],
                &["*, *"],
                &["*", "*"],
            ] {
                let outcome = reading(&headers(name, values), SEVEN);
                let is_refused = matches!(outcome, Err(ApiError::BadRequest(_)));
                assert!(is_refused, "{values:?}: {outcome:?}");
            }
            // A list may have empty elements (RFC 9110, section 5.6.1).
            assert!(reading(&headers(name, &["*,"]), SEVEN).is_ok());
        }
    }

    #[test]
    fn known_tags_are_compared_weakly() {
        for (value, expected) in [
            ("W/\"ab\"", true),
            ("\"ab\"", true),
            ("W/\"ab-gzip\"", true),
            ("\"cd\", W/\"ab\"", true),
            ("*", true),
            ("\"cd\"", false),
            ("ab", false),
            ("", false),
        ] {
            let given = headers("if-none-match", &[value]);
            assert_eq!(is_known(&given, "W/\"ab\""), expected, "{value}");
        }
        assert!(!is_known(&HeaderMap::new(), "W/\"ab\""));
    }

    #[test]
    fn one_coding_is_removed_whatever_comes_before_it() {
        for (tag, expected) in [
            ("7-0123456789abcdef", "7-0123456789abcdef"),
            ("7-0123456789abcdef-gzip", "7-0123456789abcdef"),
            ("7-0123456789abcdef--br", "7-0123456789abcdef"),
            ("7-0123456789abcdef;zstd", "7-0123456789abcdef"),
            ("7-gzip-br", "7-gzip"),
            ("-gzip", ""),
            ("gzip", "gzip"),
            ("", ""),
        ] {
            assert_eq!(without_coding(tag), expected, "{tag:?}");
        }
    }

    #[test]
    fn if_match_comes_before_if_none_match() {
        for (if_match, if_none_match, expected) in [
            (
                "\"7-00000000000000ab\"",
                "\"7-00000000000000ab\"",
                Reading::NotModified,
            ),
            (
                "\"7-00000000000000ab\"",
                "\"8-00000000000000ab\"",
                Reading::Send,
            ),
            (
                "\"8-00000000000000ab\"",
                "\"7-00000000000000ab\"",
                Reading::Mismatch,
            ),
            ("\"8-00000000000000ab\"", "*", Reading::Mismatch),
        ] {
            let mut both = headers("if-match", &[if_match]);
            both.extend(headers("if-none-match", &[if_none_match]));
            assert_eq!(
                reading(&both, SEVEN),
                Ok(expected),
                "{if_match} {if_none_match}"
            );
        }
    }
}
