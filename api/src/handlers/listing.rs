//! The parameters of the list of orders, and its cursors.
//!
//! A cursor is a position in the list and a checksum, in base64url. The checksum covers the position and the filters, so a
//! cursor that is garbled or belongs to a list with other filters is refused. A cursor is no secret and grants nothing.

use std::hash::Hasher;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use fnv::FnvHasher;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use shared::order::{OrderUid, format_utc};

use crate::export::NDJSON;
use crate::http::problem::ApiError;
use crate::http::request::Head;
use crate::repository::{OrderFilter, Position};

/// The path of the list.
pub const PATH: &str = "/api/v1/orders";

const PARAMETERS: [&str; 6] = [
    "limit",
    "cursor",
    "customer_id",
    "track_number",
    "from",
    "to",
];
const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: u32 = 1000;
/// The longest text that an order may have.
const MAX_TEXT_CHARS: usize = 256;
const CHECKSUM_BYTES: usize = 8;
const TIME_BYTES: usize = 8;

/// The format of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListFormat {
    /// One page as JSON.
    Json,
    /// All matching orders, one per line.
    Ndjson,
}

impl ListFormat {
    /// Returns the format that the client prefers; a page if it has no preference.
    ///
    /// # Errors
    /// Returns `NotAcceptable` if the client accepts neither.
    pub fn of(head: &Head) -> Result<Self, ApiError> {
        let json = head.preference("application/json");
        let ndjson = head.preference(NDJSON).filter(|_| head.can_stream());
        if ndjson > json {
            Ok(Self::Ndjson)
        } else if json.is_some() {
            Ok(Self::Json)
        } else {
            Err(ApiError::NotAcceptable {
                media_type: "application/json",
            })
        }
    }
}

/// A request for a list.
#[derive(Debug)]
pub struct ListRequest {
    /// The maximum number of orders on the page.
    pub limit: u32,
    /// The position of the last order of the previous page.
    pub after: Option<Position>,
    /// Which orders to list.
    pub filter: OrderFilter,
    /// The format of the answer.
    pub format: ListFormat,
}

impl ListRequest {
    /// Reads the parameters and the header `Accept`.
    ///
    /// # Errors
    /// Returns `UnknownParameter`, `InvalidParameter`, `InvalidLimit` or `InvalidCursor` if a parameter is wrong, and
    /// `NotAcceptable` if the client accepts no format of a list.
    pub fn parse(head: &Head) -> Result<Self, ApiError> {
        let [limit, cursor, customer_id, track_number, from, to] = head.parameters(&PARAMETERS)?;
        let filter = OrderFilter {
            customer_id: text("customer_id", customer_id)?,
            track_number: text("track_number", track_number)?,
            from: from.map(|value| time("from", &value)).transpose()?,
            to: to.map(|value| time("to", &value)).transpose()?,
        };
        let paging = [("limit", limit.is_some()), ("cursor", cursor.is_some())];
        let limit = limit.map_or(Ok(DEFAULT_LIMIT), |value| parse_limit(&value, MAX_LIMIT))?;
        let after = cursor
            .map(|cursor| decode_cursor(&cursor, &filter))
            .transpose()?;
        let format = ListFormat::of(head)?;
        match paging.iter().find(|(_, is_given)| *is_given) {
            Some((name, _)) if format == ListFormat::Ndjson => Err(ApiError::InvalidParameter {
                name,
                detail: "cannot be used with Accept: application/x-ndjson, which returns all orders",
            }),
            _ => Ok(Self {
                limit,
                after,
                filter,
                format,
            }),
        }
    }

    /// Returns the cursor of the page that begins after `position`.
    pub fn next_cursor(&self, position: &Position) -> String {
        encode_cursor(position, &self.filter)
    }

    /// Returns the value of `Link` that leads to the page with this cursor.
    pub fn next_link(&self, next_cursor: &str) -> String {
        let mut link = format!("<{PATH}?limit={}", self.limit);
        for (name, value) in filter_texts(&self.filter) {
            if let Some(value) = value {
                link.push_str(&format!(
                    "&{name}={}",
                    utf8_percent_encode(&value, NON_ALPHANUMERIC)
                ));
            }
        }
        link.push_str(&format!("&cursor={next_cursor}>; rel=\"next\""));
        link
    }
}

/// Reads a limit.
///
/// # Errors
/// Returns `InvalidLimit` unless the value is a number from 1 to `max`.
pub fn parse_limit(value: &str, max: u32) -> Result<u32, ApiError> {
    // `parse` alone would accept "+5".
    let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
    match value.parse() {
        Ok(limit) if is_number && (1..=max).contains(&limit) => Ok(limit),
        _ => Err(ApiError::InvalidLimit { max }),
    }
}

fn text(name: &'static str, value: Option<String>) -> Result<Option<String>, ApiError> {
    let is_text = value.as_ref().is_none_or(|value| {
        (1..=MAX_TEXT_CHARS).contains(&value.chars().count())
            && !value.chars().any(char::is_control)
    });
    let detail = "must have 1 to 256 characters and no control characters";
    is_text
        .then_some(value)
        .ok_or(ApiError::InvalidParameter { name, detail })
}

fn time(name: &'static str, value: &str) -> Result<DateTime<Utc>, ApiError> {
    let detail = "must be an RFC 3339 time with a time zone, for example 2026-01-31T00:00:00Z";
    // If the "+" of the zone was not percent-encoded, decoding has turned it into a space.
    let zone_at = value.len().checked_sub("+00:00".len());
    let value = match zone_at {
        Some(at) if value.as_bytes()[at] == b' ' => [&value[..at], "+", &value[at + 1..]].concat(),
        _ => value.to_owned(),
    };
    // Orders are dated to the microsecond, so both bounds keep their meaning when they are rounded up.
    let time = DateTime::parse_from_rfc3339(&value).ok();
    time.and_then(|time| {
        time.to_utc()
            .duration_round_up(TimeDelta::microseconds(1))
            .ok()
    })
    .ok_or(ApiError::InvalidParameter { name, detail })
}

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

fn filter_texts(filter: &OrderFilter) -> [(&'static str, Option<String>); 4] {
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

    fn request(filter: OrderFilter) -> ListRequest {
        ListRequest {
            limit: 50,
            after: None,
            filter,
            format: ListFormat::Json,
        }
    }

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
        let cursor = request(filter.clone()).next_cursor(&position);
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

    #[test]
    fn times_have_a_zone_and_are_rounded_up_to_the_microsecond() {
        for (given, meant) in [
            ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
            ("2026-01-01T03:00:00+03:00", "2026-01-01T00:00:00Z"),
            ("2026-01-01T03:00:00 03:00", "2026-01-01T00:00:00Z"),
            (
                "2026-01-01T00:00:00.0000001Z",
                "2026-01-01T00:00:00.000001Z",
            ),
        ] {
            assert_eq!(
                time("from", given).map(|time| format_utc(&time)),
                Ok(meant.to_owned()),
                "{given}"
            );
        }
        for given in [
            "",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "1767225600",
            "яяяяяяя",
            "2026-13-01T00:00:00Z",
        ] {
            assert!(time("from", given).is_err(), "{given}");
        }
    }

    #[test]
    fn limits_are_plain_numbers_in_their_bounds() {
        assert_eq!(parse_limit("1000", 1000), Ok(1000));
        for given in [
            "",
            "0",
            "1001",
            "-1",
            "+5",
            "abc",
            "1e2",
            "99999999999999999999",
        ] {
            assert_eq!(
                parse_limit(given, 1000),
                Err(ApiError::InvalidLimit { max: 1000 }),
                "{given}"
            );
        }
    }
}
