//! The order as JSON: in a Kafka message, in a request and in every answer.
//!
//! [`Order::decode`] is the only way from bytes to an [`Order`]. Whatever it accepts can be stored and comes back equal.
//! Rows of the database are other types ([`crate::db::models`]), so that a renamed column does not change the API.

mod fault;
mod numbers;
mod raw;
mod surroundings;
mod validation;

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use clap::ValueEnum;
use compact_str::CompactString;
use serde::{Deserialize, Serialize, Serializer};

pub use fault::Fault;

/// The largest JSON document that is accepted as an order, in bytes. It applies to Kafka messages and to the bodies of requests.
pub const MAX_ORDER_BYTES: usize = 256 * 1024;

/// The most items that an order may have.
pub const MAX_ITEMS: usize = 1000;

/// A valid shop order.
///
/// Nearly all of its texts are shorter than 25 bytes. [`CompactString`] stores such a text without an allocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Order {
    /// The producer's id of the order.
    pub order_uid: OrderUid,
    /// The parcel's tracking number.
    pub track_number: CompactString,
    /// The channel through which the order came.
    pub entry: CompactString,
    /// Who gets the order, and where.
    pub delivery: Delivery,
    /// How the order was paid.
    pub payment: Payment,
    /// What was ordered: 1..=[`MAX_ITEMS`] items.
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

/// Who gets an order, and where.
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
    /// Street and house, at most 512 characters, which may include line breaks and tabs.
    pub address: CompactString,
    /// The region.
    pub region: CompactString,
    /// The recipient's e-mail address.
    pub email: CompactString,
}

/// How an order was paid. Amounts have no unit. They are in 0..=2^53-1, as the producer sent them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Payment {
    /// The payment's id at the provider.
    pub transaction: CompactString,
    /// The request's id at the provider.
    pub request_id: CompactString,
    /// The currency's code: three upper-case letters, unless the rules are lenient.
    pub currency: CompactString,
    /// The payment provider.
    pub provider: CompactString,
    /// The sum paid.
    pub amount: i64,
    /// When it was paid, in seconds since 1970. It is 0 if the producer did not say.
    pub payment_dt: i64,
    /// The paying bank.
    pub bank: CompactString,
    /// The part of the sum for the delivery.
    pub delivery_cost: i64,
    /// The part of the sum for the goods.
    pub goods_total: i64,
    /// The part of the sum for customs.
    pub custom_fee: i64,
}

/// One item of an order. Prices have no unit. They are in 0..=2^53-1, as the producer sent them.
///
/// The column `orders.items` stores items as this JSON. Reading them back checks no rule, because items are checked before
/// they are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The article's id in the shop.
    pub chrt_id: i64,
    /// The parcel's tracking number.
    pub track_number: CompactString,
    /// The price before the discount.
    pub price: i64,
    /// The item's id at the producer.
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
    /// The item's status at the producer.
    pub status: i64,
}

/// How strictly e-mail, phone and currency are checked (`ORDER_RULES`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OrderRules {
    /// The three fields must have their usual form, unless they are empty.
    #[default]
    Standard,
    /// Any text within the limits is accepted.
    Lenient,
}

/// What encloses the order in a Kafka message (`KAFKA_VALUE_ENVELOPE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Envelope {
    /// Nothing: the value is the order.
    #[default]
    None,
    /// Kafka Connect's `{"schema": ..., "payload": <order>}`.
    Connect,
    /// A CloudEvent in structured mode, with the order in `data`.
    Cloudevents,
}

/// Reads orders by the operator's settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decoder {
    /// How strictly three of the fields are checked.
    pub rules: OrderRules,
    /// What encloses each order.
    pub envelope: Envelope,
}

impl Decoder {
    /// Reads and checks an order. A byte order mark and the Schema Registry's header are skipped.
    ///
    /// # Errors
    /// Returns [`OrderError`] if the input is too large, is not JSON, or is not a valid order. In the last case the error
    /// holds every fault, or names what the document is instead of an order.
    pub fn decode(&self, bytes: &[u8]) -> Result<Order, OrderError> {
        if bytes.len() > MAX_ORDER_BYTES {
            return Err(OrderError::TooLarge {
                size_bytes: bytes.len(),
            });
        }
        self.decode_any_size(bytes)
    }

    /// Does the same with a document of any size, for documents that were not received as they are.
    ///
    /// # Errors
    /// Returns [`OrderError`] as [`Self::decode`] does, but for the size.
    pub fn decode_any_size(&self, bytes: &[u8]) -> Result<Order, OrderError> {
        let content = surroundings::content(bytes)?;
        // One check of the whole text is cheaper: serde_json would check each string by itself.
        let text =
            str::from_utf8(content).map_err(|error| OrderError::NotJson(error.to_string()))?;
        self.read(text).or_else(|refused| match refused {
            OrderError::Invalid(_) => self.read_again(text, refused),
            other => Err(other),
        })
    }

    fn read(&self, text: &str) -> Result<Order, OrderError> {
        let (document, pointer) = raw::parse(text, self.envelope)?;
        validation::validate(document, self.rules).map_err(|mut faults| {
            for fault in &mut faults {
                fault.pointer.insert_str(0, pointer);
            }
            OrderError::Invalid(faults)
        })
    }

    /// Reads a refused document with its numbers written plainly. Few orders have other numbers, so only these pay for it.
    fn read_again(&self, text: &str, refused: OrderError) -> Result<Order, OrderError> {
        let refused = match numbers::with_plain_integers(text) {
            Some(plain) => match self.read(&plain) {
                Err(refused) => refused,
                order => return order,
            },
            None => refused,
        };
        Err(match surroundings::recognise(text, self.envelope) {
            Some(recognised) => OrderError::Invalid(vec![recognised]),
            None => refused,
        })
    }
}

impl Order {
    /// Reads and checks an order by the default settings, see [`Decoder::decode`].
    ///
    /// # Errors
    /// Returns [`OrderError`] as [`Decoder::decode`] does.
    pub fn decode(bytes: &[u8]) -> Result<Self, OrderError> {
        Decoder::default().decode(bytes)
    }
}

/// Why bytes are not an order.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// More than [`MAX_ORDER_BYTES`].
    #[error("the order has {size_bytes} bytes, at most {MAX_ORDER_BYTES} are allowed")]
    TooLarge {
        /// The size that was refused.
        size_bytes: usize,
    },
    /// Not one JSON document.
    #[error("{0}")]
    NotJson(String),
    /// JSON, but not a valid order. Holds every fault.
    #[error("{}", fault::list(.0))]
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
    /// What an id must look like, for messages to people.
    pub const RULE: &str =
        "must have 1 to 64 characters out of A-Z a-z 0-9 . _ -, the first a letter or a digit";

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether a text is an id.
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

    /// Takes an id from the database, which holds only valid ones.
    pub(crate) fn from_database(text: CompactString) -> Self {
        Self(text)
    }
}

/// The text is not an order id.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an order id {}", OrderUid::RULE)]
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

/// Writes a time as RFC 3339 in UTC with `Z`. The fraction is left out if it is zero.
pub fn format_utc(time: &DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
}

fn serialize_utc<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format_utc(time))
}
