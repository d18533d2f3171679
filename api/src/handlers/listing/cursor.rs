//! The cursors of lists.
//!
//! A cursor is a position in the list and a checksum, in base64url. The checksum covers the position, the filters and the view,
//! so a cursor that is garbled or belongs to another list is refused. A cursor is no secret and grants nothing.

use std::hash::Hasher;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::DateTime;
use fnv::FnvHasher;
use shared::order::{OrderUid, format_utc};

use crate::http::problem::ApiError;
use crate::repository::{OrderFilter, Position, View};

const CHECKSUM_BYTES: usize = 8;
const TIME_BYTES: usize = 8;
/// The only value of the parameter `view`.
pub(super) const SUMMARY: &str = "summary";

/// Returns the cursor of a position in the list with this filter and view.
pub fn encode_cursor(
    (date_created, order_uid): &Position,
    filter: &OrderFilter,
    view: View,
) -> String {
    let mut position = date_created.timestamp_micros().to_be_bytes().to_vec();
    position.extend_from_slice(order_uid.as_bytes());
    let mut bytes = checksum(&position, filter, view).to_be_bytes().to_vec();
    bytes.extend_from_slice(&position);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Returns the position that a cursor stands for.
///
/// # Errors
/// Returns `InvalidCursor` if the cursor is garbled or belongs to a list with another filter or view.
pub fn decode_cursor(cursor: &str, filter: &OrderFilter, view: View) -> Result<Position, ApiError> {
    parse_cursor(cursor, filter, view).ok_or(ApiError::InvalidCursor)
}

fn parse_cursor(cursor: &str, filter: &OrderFilter, view: View) -> Option<Position> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
    let (given, position) = bytes.split_at_checked(CHECKSUM_BYTES)?;
    if given != checksum(position, filter, view).to_be_bytes() {
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

/// Lists what distinguishes a list from others: its filters and its view, as parameters.
pub(super) fn filter_texts(
    filter: &OrderFilter,
    view: View,
) -> impl Iterator<Item = (&'static str, String)> {
    let texts = [
        ("customer_id", filter.customer_id.clone()),
        ("track_number", filter.track_number.clone()),
        ("from", filter.from.as_ref().map(format_utc)),
        ("to", filter.to.as_ref().map(format_utc)),
        ("phone", filter.phone_digits.clone()),
        ("email", filter.email.clone()),
        ("order_uid_prefix", filter.order_uid_prefix.clone()),
        ("track_number_prefix", filter.track_number_prefix.clone()),
        ("view", (view == View::Summary).then(|| SUMMARY.to_owned())),
    ];
    let given = texts.into_iter();
    given.filter_map(|(name, text)| Some((name, text?)))
}

/// FNV-1a gives the same hash in every build and process. The hashers of the standard library do not promise that.
fn checksum(position: &[u8], filter: &OrderFilter, view: View) -> u64 {
    let mut hasher = FnvHasher::default();
    hasher.write(position);
    for (name, value) in filter_texts(filter, view) {
        // No name and no value contains 0, so the end of one cannot be taken for the beginning of another.
        for part in [name, &value] {
            hasher.write(b"\0");
            hasher.write(part.as_bytes());
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
        let cursor = encode_cursor(&position, &filter, View::Whole);
        assert_eq!(decode_cursor(&cursor, &filter, View::Whole), Ok(position));
        assert_eq!(
            decode_cursor(&cursor, &OrderFilter::default(), View::Whole),
            Err(ApiError::InvalidCursor)
        );
        assert_eq!(
            decode_cursor(&cursor, &filter, View::Summary),
            Err(ApiError::InvalidCursor)
        );
        for index in 0..cursor.len() {
            let mut garbled = cursor.clone().into_bytes();
            garbled[index] = if garbled[index] == b'A' { b'B' } else { b'A' };
            let garbled = String::from_utf8(garbled).unwrap();
            assert_eq!(
                decode_cursor(&garbled, &filter, View::Whole),
                Err(ApiError::InvalidCursor),
                "{index}"
            );
        }
        for garbled in ["", "A", "*", &cursor[1..], "AAAAAAAAAAA"] {
            assert_eq!(
                decode_cursor(garbled, &filter, View::Whole),
                Err(ApiError::InvalidCursor),
                "{garbled}"
            );
        }
    }
}
