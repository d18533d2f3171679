//! The order as it travels in JSON: from Kafka, in a PUT, in every answer.
//!
//! [`Order::decode`] is the only way from bytes to an [`Order`]; whatever it accepts can be stored and comes back
//! equal. Rows are other types ([`crate::db::models`]): renaming a column must not change the API.

mod raw;
mod validation;

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use compact_str::CompactString;
use serde::{Deserialize, Serialize, Serializer};

pub use validation::{Fault, MAX_ITEMS};

/// Upper bound of an order's JSON in bytes, in Kafka and in a PUT alike.
pub const MAX_ORDER_BYTES: usize = 256 * 1024;

/// A shop order, known to be valid.
///
/// Nearly all of its texts are shorter than 25 bytes, which [`CompactString`] keeps without an allocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Order {
    /// The producer's id of the order.
    pub order_uid: OrderUid,
    /// The parcel's track number.
    pub track_number: CompactString,
    /// The channel by which the order came.
    pub entry: CompactString,
    /// To whom and where the order goes.
    pub delivery: Delivery,
    /// How the order was paid.
    pub payment: Payment,
    /// What was ordered, 1..=[`MAX_ITEMS`].
    pub items: Vec<Item>,
    /// The customer's language.
    pub locale: CompactString,
    /// The producer's signature.
    pub internal_signature: CompactString,
    /// The customer's id.
    pub customer_id: CompactString,
    /// The carrier.
    pub delivery_service: CompactString,
    /// The producer's shard of the order.
    pub shardkey: CompactString,
    /// The producer's sales channel, 0..=2^53-1.
    pub sm_id: i64,
    /// When the shop created the order, to the microsecond.
    #[serde(serialize_with = "serialize_utc")]
    pub date_created: DateTime<Utc>,
    /// The producer's shard of out-of-fulfilment data.
    pub oof_shard: CompactString,
}

/// To whom and where an order goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Delivery {
    /// The recipient.
    pub name: CompactString,
    /// The recipient's phone number.
    pub phone: CompactString,
    /// The postal code.
    pub zip: CompactString,
    /// The city.
    pub city: CompactString,
    /// Street and house, at most 512 characters.
    pub address: CompactString,
    /// The region.
    pub region: CompactString,
    /// The recipient's e-mail address.
    pub email: CompactString,
}

/// How an order was paid. Amounts have no unit: 0..=2^53-1, as the producer sent them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Payment {
    /// The payment's id at the provider.
    pub transaction: CompactString,
    /// The request's id at the provider.
    pub request_id: CompactString,
    /// Three upper-case letters.
    pub currency: CompactString,
    /// The payment provider.
    pub provider: CompactString,
    /// The sum paid.
    pub amount: i64,
    /// When it was paid: seconds since 1970, 0 where the producer did not say.
    pub payment_dt: i64,
    /// The paying bank.
    pub bank: CompactString,
    /// The share of the delivery.
    pub delivery_cost: i64,
    /// The share of the goods.
    pub goods_total: i64,
    /// The share of customs.
    pub custom_fee: i64,
}

/// One line of an order. Prices have no unit: 0..=2^53-1, as the producer sent them.
///
/// The database stores items as this JSON, see `orders.items`. Reading them back checks nothing: what the database holds was
/// checked before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The article's id in the shop.
    pub chrt_id: i64,
    /// The parcel's track number.
    pub track_number: CompactString,
    /// The price before the discount.
    pub price: i64,
    /// The line's id at the producer.
    pub rid: CompactString,
    /// The article's name.
    pub name: CompactString,
    /// The discount in percent, 0..=100.
    pub sale: i32,
    /// The article's size.
    pub size: CompactString,
    /// The price after the discount.
    pub total_price: i64,
    /// The article's id at the maker.
    pub nm_id: i64,
    /// The article's brand.
    pub brand: CompactString,
    /// The producer's state of the line.
    pub status: i64,
}

impl Order {
    /// Reads and checks an order.
    ///
    /// # Errors
    /// [`OrderError`] says whether the bytes are too many, no JSON, or JSON that is no valid order; in the last case
    /// with every fault at once.
    pub fn decode(bytes: &[u8]) -> Result<Self, OrderError> {
        if bytes.len() > MAX_ORDER_BYTES {
            return Err(OrderError::TooLarge {
                size_bytes: bytes.len(),
            });
        }
        validation::validate(raw::parse(bytes)?).map_err(OrderError::Invalid)
    }
}

/// Why bytes are no order.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// More than [`MAX_ORDER_BYTES`].
    #[error("{size_bytes} bytes are more than the {MAX_ORDER_BYTES} that an order may have")]
    TooLarge {
        /// The size that was refused.
        size_bytes: usize,
    },
    /// Not one JSON document.
    #[error("{0}")]
    NotJson(String),
    /// JSON, but no valid order; every fault of it.
    #[error("{}", validation::list(.0))]
    Invalid(Vec<Fault>),
}

impl OrderError {
    /// The stable code of `dead_letters.reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::NotJson(_) => "not_json",
            Self::Invalid(_) => "invalid_order",
        }
    }
}

/// The id of an order: `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct OrderUid(CompactString);

impl OrderUid {
    /// What an id looks like, for messages to people.
    pub const RULE: &str =
        "1 to 64 characters out of A-Z a-z 0-9 . _ -, the first a letter or a digit";

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Says whether a text is an id.
    pub fn is_valid(text: &str) -> bool {
        text.len() <= 64
            && text
                .bytes()
                .next()
                .is_some_and(|first| first.is_ascii_alphanumeric())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    }

    /// Takes an id that the database holds; only valid ones get there.
    pub(crate) fn from_database(text: CompactString) -> Self {
        Self(text)
    }
}

/// The text is no order id.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an order id has {}", OrderUid::RULE)]
pub struct InvalidOrderUid;

impl FromStr for OrderUid {
    type Err = InvalidOrderUid;

    fn from_str(text: &str) -> Result<Self, InvalidOrderUid> {
        if Self::is_valid(text) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidOrderUid)
        }
    }
}

impl fmt::Display for OrderUid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl AsRef<str> for OrderUid {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Writes a time as RFC 3339 in UTC with `Z`, with a fraction only where there is one.
pub fn format_utc(time: &DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
}

fn serialize_utc<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format_utc(time))
}
