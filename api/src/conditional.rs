//! `If-None-Match` and `If-Match` against versions.
//!
//! An `ETag` of ours is a quoted version. Versions are compared, so a tag that a proxy weakened (`W/`) matches as well:
//! equal versions are equal orders, whatever the encoding.

use warp::http::HeaderMap;
use warp::http::header::{IF_MATCH, IF_NONE_MATCH};

use crate::repository::Precondition;

/// Whether the client already has this version.
pub fn is_not_modified(headers: &HeaderMap, version: i64) -> bool {
    if !headers.contains_key(IF_NONE_MATCH) {
        return false;
    }
    tags(headers, IF_NONE_MATCH.as_str()).any(|tag| tag == "*" || tag_version(tag) == Some(version))
}

/// Which versions the client accepts to change.
pub fn precondition(headers: &HeaderMap) -> Precondition {
    if !headers.contains_key(IF_MATCH) || tags(headers, IF_MATCH.as_str()).any(|tag| tag == "*") {
        return Precondition::None;
    }
    // A tag that is none of ours matches no version.
    Precondition::VersionIn(
        tags(headers, IF_MATCH.as_str())
            .filter_map(tag_version)
            .collect(),
    )
}

/// No tag of ours holds a comma, so one that does is not ours, whole or in parts.
fn tags<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    let values = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

fn tag_version(tag: &str) -> Option<i64> {
    let quoted = tag.strip_prefix("W/").unwrap_or(tag);
    let digits = quoted.strip_prefix('"')?.strip_suffix('"')?;
    // Only in the spelling that we send: `parse` would take "+7" and "07".
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
    fn if_none_match_takes_lists_weak_tags_and_the_star() {
        for (values, is_match) in [
            (&["\"7\""][..], true),
            (&["W/\"7\""], true),
            (&["\"6\", W/\"7\""], true),
            (&["\"6\"", "\"7\""], true),
            (&["*"], true),
            (&["\"8\""], false),
            (&["7"], false),
            (&["\"07\""], false),
            (&["\"\""], false),
            (&[""], false),
            (&[], false),
        ] {
            assert_eq!(
                is_not_modified(&headers("if-none-match", values), 7),
                is_match,
                "{values:?}"
            );
        }
    }

    #[test]
    fn if_match_without_a_tag_of_ours_accepts_no_version() {
        assert_eq!(precondition(&headers("if-match", &[])), Precondition::None);
        assert_eq!(
            precondition(&headers("if-match", &["*"])),
            Precondition::None
        );
        assert_eq!(
            precondition(&headers("if-match", &["W/\"7\", \"8\""])),
            Precondition::VersionIn(vec![7, 8])
        );
        assert_eq!(
            precondition(&headers("if-match", &["7"])),
            Precondition::VersionIn(vec![])
        );
    }
}
