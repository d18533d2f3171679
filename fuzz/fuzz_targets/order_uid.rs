//! A segment of a path is a valid order id or is refused.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|segment: &str| {
    if let Ok(uid) = api::http::request::order_uid(segment) {
        let text = uid.as_str();
        assert!((1..=64).contains(&text.len()));
        assert!(text.starts_with(|first: char| first.is_ascii_alphanumeric()));
        let is_of_ids = |char: char| char.is_ascii_alphanumeric() || "._-".contains(char);
        assert!(text.chars().all(is_of_ids));
        // A segment without escapes stands for itself.
        assert_eq!(api::http::request::order_uid(text), Ok(uid));
    }
});
