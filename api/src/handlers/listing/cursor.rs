//! The cursors of lists.
//!
//! A cursor is a position in the list and a checksum, in base64url. The checksum covers the position and the filters, so a
//! cursor that is garbled or belongs to a list with other filters is refused. A cursor is no secret and grants nothing.

use std::hash::Hasher;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::DateTime;
use fnv::FnvHasher;
use shared::order::{OrderUid, format_utc};

use crate::http::problem::ApiError;
use crate::repository::{OrderFilter, Position};

const CHECKSUM_BYTES: usize = 8;
const TIME_BYTES: usize = 8;

/// Returns the cursor of a position in the list with this filter.
pub fn encode_cursor((date_created, order_uid): &Position, filter: &OrderFilter) -> String {
    let mut position = date_created.timestamp_micros().to_be_bytes().to_vec();
    position.extend_from_slice(order_uid.as_bytes());
    let mut bytes = checksum(&position, filter).to_be_bytes().to_vec();
    bytes.extend_from_slice(&position);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Returns the position that a cursor stands for.
///
/// # Errors
/// Returns `InvalidCursor` if the cursor is garbled or belongs to a list with another filter.
pub fn decode_cursor(cursor: &str, filter: &OrderFilter) -> Result<Position, ApiError> {
    parse_cursor(cursor, filter).ok_or(ApiError::InvalidCursor)
}

fn parse_cursor(cursor: &str, filter: &OrderFilter) -> Option<Position> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
    let (given, position) = bytes.split_at_checked(CHECKSUM_BYTES)?;
    if given != checksum(position, filter).to_be_bytes() {
        return None;
    }
    let (micros, uid) = position.split_at_checked(TIME_BYTES)?;
    let date_created =
        DateTime::from_timestamp_micros(i64::from_be_bytes(micros.try_into().ok()?))?;
    let uid = str::from_utf8(uid)
        .ok()
        .filter(|uid| OrderUid::is_valid(uid))?;
    Some((date_created, uid.to_owned()))
}

/// The filters as texts, for cursors and links.
pub(super) fn filter_texts(filter: &OrderFilter) -> [(&'static str, Option<String>); 4] {
    [
        ("customer_id", filter.customer_id.clone()),
        ("track_number", filter.track_number.clone()),
        ("from", filter.from.as_ref().map(format_utc)),
        ("to", filter.to.as_ref().map(format_utc)),
    ]
}

/// FNV-1a gives the same hash in every build and process. The hashers of the standard library do not promise that.
fn checksum(position: &[u8], filter: &OrderFilter) -> u64 {
    let mut hasher = FnvHasher::default();
    hasher.write(position);
    for (name, value) in filter_texts(filter) {
        // No value contains 0, so the end of one value cannot be taken for the beginning of another.
        hasher.write(b"\0");
        if let Some(value) = value {
            hasher.write(name.as_bytes());
            hasher.write(value.as_bytes());
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_leads_back_to_its_place_in_its_own_list_only() {
        let filter = OrderFilter {
            customer_id: Some("a b".into()),
            ..OrderFilter::default()
        };
        let position = (
            "2026-01-01T00:00:00.000001Z".parse().unwrap(),
            "uid-1".to_owned(),
        );
        let cursor = encode_cursor(&position, &filter);
        assert_eq!(decode_cursor(&cursor, &filter), Ok(position));
        assert_eq!(
            decode_cursor(&cursor, &OrderFilter::default()),
            Err(ApiError::InvalidCursor)
        );
        for index in 0..cursor.len() {
            let mut garbled = cursor.clone().into_bytes();
            garbled[index] = if garbled[index] == b'A' { b'B' } else { b'A' };
            let garbled = String::from_utf8(garbled).unwrap();
            assert_eq!(
                decode_cursor(&garbled, &filter),
                Err(ApiError::InvalidCursor),
                "{index}"
            );
        }
        for garbled in ["", "A", "*", &cursor[1..], "AAAAAAAAAAA"] {
            assert_eq!(
                decode_cursor(garbled, &filter),
                Err(ApiError::InvalidCursor),
                "{garbled}"
            );
        }
    }
}
