//! A request as handlers see it, and the checks that they share.

use std::net::IpAddr;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use percent_encoding::percent_decode_str;
use shared::order::OrderUid;
use warp::http::header::{ACCEPT, ACCEPT_ENCODING};
use warp::http::{HeaderMap, HeaderName, Method, Version};

use super::problem::{ApiError, Unacceptable};

/// The parameter that names orders.
pub const ORDER_UIDS: &str = "order_uids";
/// The largest number of orders that a parameter names.
const MAX_NAMED_ORDERS: usize = 100;

/// The body of a request, as it arrives.
pub type Body = Pin<Box<dyn Stream<Item = Result<Bytes, warp::Error>> + Send + Sync>>;

/// The head of a request, without its path.
#[derive(Debug)]
pub struct Head {
    /// The method.
    pub method: Method,
    /// The headers.
    pub headers: HeaderMap,
    /// The query as sent, without `?`; empty if there is none.
    pub query: String,
    /// The version of HTTP.
    pub version: Version,
    /// Who has sent the request.
    pub sender: Sender,
}

/// The addresses of whoever has sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The address of the connection's other end.
    pub peer: IpAddr,
    /// The address of the client, which differs if the peer is a proxy that the operator trusts. It counts for limits and for
    /// the log, and grants nothing.
    pub client: IpAddr,
}

impl Head {
    /// Returns whether the client understands chunked answers. An HTTP/1.0 client does not, so it cannot tell an answer that
    /// was cut from a complete one.
    pub fn can_stream(&self) -> bool {
        self.version >= Version::HTTP_11
    }

    /// Returns the first value of a header, if it is text.
    pub fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Decodes the parameters and returns them in the order of `known`.
    ///
    /// # Errors
    /// Returns `UnknownParameter` if a parameter is not in `known`, and `InvalidParameter` if one is given twice or is not
    /// UTF-8.
    pub fn parameters<const N: usize>(
        &self,
        known: &'static [&'static str; N],
    ) -> Result<[Option<String>; N], ApiError> {
        let mut values = [const { None }; N];
        for pair in self.query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode_form(name).unwrap_or_else(|| name.to_owned());
            let Some(index) = known.iter().position(|each| *each == name) else {
                return Err(ApiError::unknown_parameter(&name, known));
            };
            let name = known[index];
            let value = decode_form(value).ok_or(ApiError::InvalidParameter {
                name,
                detail: "must be UTF-8",
            })?;
            if values[index].replace(value).is_some() {
                return Err(ApiError::InvalidParameter {
                    name,
                    detail: "is given twice",
                });
            }
        }
        Ok(values)
    }

    /// Checks that the client accepts JSON.
    ///
    /// # Errors
    /// Returns `NotAcceptable` if it does not.
    pub fn require_accepts_json(&self) -> Result<(), ApiError> {
        self.require_accepts("application/json")
    }

    /// Checks that the client accepts a media type, and an answer that is not compressed.
    ///
    /// # Errors
    /// Returns `NotAcceptable` if it does not.
    pub fn require_accepts(&self, media_type: &'static str) -> Result<(), ApiError> {
        if self.preference(media_type).is_none() {
            let refused = Unacceptable::MediaType(media_type);
            return Err(ApiError::NotAcceptable(refused));
        }
        if self.coding_quality("identity") == Some(0) {
            return Err(ApiError::NotAcceptable(Unacceptable::Coding));
        }
        Ok(())
    }

    /// Returns how much the client likes a coding according to `Accept-Encoding`, in thousandths; `None` if it does not say
    /// (RFC 9110, section 12.5.3).
    pub fn coding_quality(&self, coding: &str) -> Option<u16> {
        let mut any = None;
        let values = self.headers.get_all(ACCEPT_ENCODING).iter();
        for each in values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
        {
            let mut parts = each.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            if name.eq_ignore_ascii_case(coding) {
                return Some(permille(parts));
            }
            if name == "*" {
                any = Some(permille(parts));
            }
        }
        any
    }

    /// Returns how much the client prefers a media type, according to `Accept`; `None` if it does not accept it.
    pub fn preference(&self, media_type: &'static str) -> Option<Preference> {
        if !self.headers.contains_key(ACCEPT) {
            return Some((1000, 0));
        }
        let values = self.headers.get_all(ACCEPT).iter();
        let mut ranges = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter(|range| !range.trim().is_empty())
            .peekable();
        // A list of nothing prefers nothing.
        if ranges.peek().is_none() {
            return Some((1000, 0));
        }
        // The most specific range decides (RFC 9110, section 12.5.1).
        let preference = ranges
            .filter_map(|range| parse_range(range, media_type))
            .max_by_key(|(_, specificity)| *specificity)?;
        (preference.0 > 0).then_some(preference)
    }
}

/// How much a client prefers a media type: its quality in thousandths, and how specifically the client named it. Of two
/// types with the same quality, the more specific one is preferred.
pub type Preference = (u16, u8);

/// Returns `None` if the range does not include the media type.
fn parse_range(range: &str, media_type: &str) -> Option<Preference> {
    let mut parts = range.split(';').map(str::trim);
    let range = parts.next()?.to_ascii_lowercase();
    let specificity = match range.strip_suffix("/*") {
        _ if range == media_type => 2,
        Some("*") => 0,
        Some(group) if media_type.split('/').next() == Some(group) => 1,
        _ => return None,
    };
    Some((permille(parts), specificity))
}

/// Finds the quality among the parameters of a range, in thousandths.
pub fn permille<'a>(mut parameters: impl Iterator<Item = &'a str>) -> u16 {
    let quality = parameters.find_map(|each| each.strip_prefix("q=").or(each.strip_prefix("Q=")));
    let quality: f32 = quality.map_or(Ok(1.0), str::parse).unwrap_or(0.0);
    // Values out of bounds are clamped; whatever is not a number counts as 0.
    (quality.clamp(0.0, 1.0) * 1000.0) as u16
}

/// Decodes a segment of the path into an order id.
///
/// # Errors
/// Returns `InvalidOrderUid` if the decoded segment is not a valid order id.
pub fn order_uid(segment: &str) -> Result<OrderUid, ApiError> {
    let text = percent_decode_str(segment)
        .decode_utf8()
        .map_err(|_| ApiError::InvalidOrderUid)?;
    text.parse().map_err(|_| ApiError::InvalidOrderUid)
}

/// Reads the value of [`ORDER_UIDS`]. An id that is given twice counts once, at its first place: clients put ids of several
/// events together.
///
/// # Errors
/// Returns `InvalidParameter` unless there are 1 to 100 valid ids.
pub fn named_orders(value: &str) -> Result<Vec<OrderUid>, ApiError> {
    let invalid = |detail| ApiError::InvalidParameter {
        name: ORDER_UIDS,
        detail,
    };
    let mut uids: Vec<OrderUid> = Vec::new();
    for (index, text) in value.split(',').enumerate() {
        if index == MAX_NAMED_ORDERS {
            return Err(invalid("may name at most 100 orders"));
        }
        let uid = text.parse().map_err(|_| {
            invalid("must be order ids, separated by commas, for example order_uids=a,b")
        })?;
        if !uids.contains(&uid) {
            uids.push(uid);
        }
    }
    Ok(uids)
}

/// Decodes `application/x-www-form-urlencoded`, as browsers write queries. Returns `None` if the text is not UTF-8; the
/// crate `form_urlencoded` would replace the wrong bytes, and the client would get an answer to another question.
fn decode_form(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced)
        .decode_utf8()
        .ok()
        .map(Into::into)
}
