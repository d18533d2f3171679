//! The parameters of the list of orders.

use std::iter::zip;

use chrono::{DateTime, Datelike, SubsecRound, TimeDelta, Utc};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use shared::order::OrderUid;

use super::super::orders::demand;
use super::PATH;
use super::cursor::{SUMMARY, decode_cursor, encode_cursor, filter_texts};
use super::named::NamedRequest;
use crate::export::Format;
use crate::http::problem::{ApiError, Unacceptable};
use crate::http::request::Head;
use crate::repository::{OrderFilter, Position, TotalKind, View};

/// The parameters that are only for lists of orders that match, and then the others.
const PARAMETERS: [&str; 9] = [
    "limit",
    "cursor",
    "customer_id",
    "track_number",
    "from",
    "to",
    "count",
    "view",
    "order_uids",
];
const MATCHING_PARAMETERS: usize = 7;
const DEFAULT_LIMIT: u32 = 50;
pub(super) const MAX_LIMIT: u32 = 1000;
/// The shortest prefix that orders are searched by. Many orders may begin with fewer characters, and the newest of them may be
/// far down the list.
const MIN_PREFIX_CHARS: usize = 3;
/// The longest text that an order may have.
const MAX_TEXT_CHARS: usize = 256;

/// The format of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListFormat {
    /// One page as JSON.
    Json,
    /// All matching orders as a stream.
    All(Format),
}

impl ListFormat {
    /// Returns the format that the client prefers; a page if it has no preference.
    ///
    /// # Errors
    /// Returns `NotAcceptable` if the client accepts none, or prefers a stream that its version of HTTP cannot carry.
    fn of(head: &Head) -> Result<Self, ApiError> {
        let media_type = "application/json";
        let mut best = (head.preference(media_type), Self::Json);
        for format in Format::ALL {
            let preference = head.preference(format.media_type());
            if preference > best.0 {
                best = (preference, Self::All(format));
            }
        }
        match best {
            (None, _) => {
                let refused = Unacceptable::MediaType(media_type);
                Err(ApiError::NotAcceptable(refused))
            }
            (_, Self::All(_)) if !head.can_stream() => {
                let refused = Unacceptable::Version("a stream of all orders");
                Err(ApiError::NotAcceptable(refused))
            }
            (Some(_), format) => Ok(format),
        }
    }
}

/// A request for orders.
#[derive(Debug)]
pub(super) enum Request {
    /// For those that match.
    Matching(ListRequest),
    /// For those that it names.
    Named(NamedRequest),
}

impl Request {
    /// Reads the parameters and the header `Accept`.
    ///
    /// # Errors
    /// Returns `UnknownParameter`, `InvalidParameter`, `InvalidLimit` or `InvalidCursor` if a parameter is wrong, and
    /// `NotAcceptable` if the client accepts no format of the answer.
    pub(super) fn parse(head: &Head) -> Result<Self, ApiError> {
        let values = head.parameters(&PARAMETERS)?;
        let matching = zip(PARAMETERS, &values).take(MATCHING_PARAMETERS);
        let matching = matching.map(|(name, value)| (name, value.is_some()));
        let matching: Vec<_> = matching.collect();
        let [
            limit,
            cursor,
            customer_id,
            track_number,
            from,
            to,
            count,
            view,
            order_uids,
        ] = values;
        if let Some(uids) = order_uids {
            let request = NamedRequest::parse(&uids, parse_view(view)?, demand(&head.headers))?;
            refuse(&matching, "cannot be used with order_uids")?;
            head.require_accepts_json()?;
            return Ok(Self::Named(request));
        }
        let values = Values {
            limit,
            cursor,
            customer_id,
            track_number,
            from,
            to,
            count,
            view,
            ..Values::default()
        };
        ListRequest::new(values, head).map(Self::Matching)
    }
}

/// The values of parameters as they were given.
#[derive(Debug, Default)]
pub(super) struct Values {
    pub limit: Option<String>,
    pub cursor: Option<String>,
    pub customer_id: Option<String>,
    pub track_number: Option<String>,
    pub from: Option<String>,
    pub to: Option<String>,
    pub count: Option<String>,
    pub view: Option<String>,
    pub phone: Option<String>,
    pub email: Option<String>,
    pub order_uid_prefix: Option<String>,
    pub track_number_prefix: Option<String>,
}

/// A request for the orders that match a filter.
#[derive(Debug)]
pub(super) struct ListRequest {
    /// The maximum number of orders on the page.
    pub limit: u32,
    /// The position of the last order of the previous page.
    pub after: Option<Position>,
    /// Which orders to list.
    pub filter: OrderFilter,
    /// How to determine the number of all matching orders, if the client wants to know it.
    pub count: Option<TotalKind>,
    /// How much of each order the answer has.
    pub view: View,
    /// The format of the answer.
    pub format: ListFormat,
}

impl ListRequest {
    /// Checks the values of the parameters, and the header `Accept`.
    ///
    /// # Errors
    /// Returns `InvalidParameter`, `InvalidLimit` or `InvalidCursor` if a parameter is wrong, and `NotAcceptable` if the client
    /// accepts no format of a list.
    pub(super) fn new(values: Values, head: &Head) -> Result<Self, ApiError> {
        let paging = [
            ("limit", values.limit.is_some()),
            ("cursor", values.cursor.is_some()),
            ("count", values.count.is_some()),
        ];
        let filter = OrderFilter {
            customer_id: text("customer_id", values.customer_id)?,
            track_number: text("track_number", values.track_number)?,
            from: time("from", values.from)?,
            to: time("to", values.to)?,
            phone_digits: phone_digits(values.phone)?,
            email: text("email", values.email)?.map(|email| email.to_ascii_lowercase()),
            order_uid_prefix: uid_prefix(values.order_uid_prefix)?,
            track_number_prefix: track_number_prefix(values.track_number_prefix)?,
        };
        let view = parse_view(values.view)?;
        let count = parse_count(values.count)?;
        let limit = values.limit;
        let limit = limit.map_or(Ok(DEFAULT_LIMIT), |value| parse_limit(&value, MAX_LIMIT))?;
        let after = values
            .cursor
            .map(|cursor| decode_cursor(&cursor, &filter, view))
            .transpose()?;
        let format = ListFormat::of(head)?;
        if format != ListFormat::Json {
            let detail = "cannot be used with Accept: application/x-ndjson or text/csv, which return all orders";
            refuse(&paging, detail)?;
        }
        Ok(Self {
            limit,
            after,
            filter,
            count,
            view,
            format,
        })
    }

    /// Returns the cursor of the page that begins after `position`.
    pub fn next_cursor(&self, position: &Position) -> String {
        encode_cursor(position, &self.filter, self.view)
    }

    /// Returns the value of `Link` that leads to the page with this cursor. It does not ask for the total again: that may take
    /// long, and is the same for all pages.
    pub fn next_link(&self, next_cursor: &str) -> String {
        let mut link = format!("<{PATH}?limit={}", self.limit);
        for (name, value) in filter_texts(&self.filter, self.view) {
            let value = utf8_percent_encode(&value, NON_ALPHANUMERIC);
            link.push_str(&format!("&{name}={value}"));
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

/// Refuses a parameter that is given but must not be.
fn refuse(parameters: &[(&'static str, bool)], detail: &'static str) -> Result<(), ApiError> {
    match parameters.iter().find(|(_, is_given)| *is_given) {
        Some((name, _)) => Err(ApiError::InvalidParameter { name, detail }),
        None => Ok(()),
    }
}

fn parse_view(value: Option<String>) -> Result<View, ApiError> {
    match value.as_deref() {
        None => Ok(View::Whole),
        Some(SUMMARY) => Ok(View::Summary),
        Some(_) => Err(ApiError::InvalidParameter {
            name: "view",
            detail: "must be summary; without it, orders are returned whole",
        }),
    }
}

fn parse_count(value: Option<String>) -> Result<Option<TotalKind>, ApiError> {
    match value.as_deref() {
        None => Ok(None),
        Some("estimated") => Ok(Some(TotalKind::Estimated)),
        Some("exact") => Ok(Some(TotalKind::Exact)),
        Some(_) => Err(ApiError::InvalidParameter {
            name: "count",
            detail: "must be estimated or exact",
        }),
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

/// Keeps the digits of a phone.
fn phone_digits(value: Option<String>) -> Result<Option<String>, ApiError> {
    let Some(phone) = text("phone", value)? else {
        return Ok(None);
    };
    let digits: String = phone.chars().filter(char::is_ascii_digit).collect();
    if digits.is_empty() {
        let (name, detail) = (
            "phone",
            "must contain a digit; only its digits are compared",
        );
        return Err(ApiError::InvalidParameter { name, detail });
    }
    Ok(Some(digits))
}

fn uid_prefix(value: Option<String>) -> Result<Option<String>, ApiError> {
    let is_prefix =
        |prefix: &String| prefix.len() >= MIN_PREFIX_CHARS && OrderUid::is_valid(prefix);
    if value.as_ref().is_none_or(is_prefix) {
        return Ok(value);
    }
    Err(ApiError::InvalidParameter {
        name: "order_uid_prefix",
        detail: "must be the first 3 to 64 characters of an order id",
    })
}

fn track_number_prefix(value: Option<String>) -> Result<Option<String>, ApiError> {
    let name = "track_number_prefix";
    let value = text(name, value)?;
    let is_long = |prefix: &String| prefix.chars().count() >= MIN_PREFIX_CHARS;
    let detail = "must have at least 3 characters";
    let is_prefix = value.as_ref().is_none_or(is_long);
    is_prefix
        .then_some(value)
        .ok_or(ApiError::InvalidParameter { name, detail })
}

fn time(name: &'static str, value: Option<String>) -> Result<Option<DateTime<Utc>>, ApiError> {
    let Some(value) = value else {
        return Ok(None);
    };
    let detail = "must be an RFC 3339 time with a time zone, for example 2026-01-31T00:00:00Z";
    // If the "+" of the zone was not percent-encoded, decoding has turned it into a space.
    let zone_at = value.len().checked_sub("+00:00".len());
    let value = match zone_at {
        Some(at) if value.as_bytes()[at] == b' ' => [&value[..at], "+", &value[at + 1..]].concat(),
        _ => value,
    };
    let time = DateTime::parse_from_rfc3339(&value).ok();
    time.and_then(|time| rounded_up(time.to_utc()))
        .map(|time| Some(time).filter(|time| excludes_orders(name, *time)))
        .ok_or(ApiError::InvalidParameter { name, detail })
}

/// Returns whether a bound leaves orders out. One beyond the years that orders may have does not, and could not be written
/// into a link: RFC 3339 ends with the year 9999.
fn excludes_orders(name: &str, bound: DateTime<Utc>) -> bool {
    match name {
        "to" => bound.year() <= 9999,
        _ => bound.year() >= 1,
    }
}

/// Rounds up to the microsecond. Orders are dated to it, so both bounds keep their meaning. chrono's own `DurationRound` knows
/// only the years 1677 to 2262. Returns `None` after the last time that chrono knows.
fn rounded_up(time: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let whole = time.trunc_subsecs(6);
    if whole == time {
        return Some(whole);
    }
    whole.checked_add_signed(TimeDelta::microseconds(1))
}

#[cfg(test)]
mod tests {
    use shared::order::format_utc;

    use super::*;

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
            (
                "0797-06-21T23:03:31.1250948+09:10",
                "0797-06-21T13:53:31.125095Z",
            ),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(
                time("from", Some(given.to_owned())).map(|time| format_utc(&time.unwrap())),
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
            assert!(time("from", Some(given.to_owned())).is_err(), "{given}");
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
