//! Reads JSON into fields that may be absent or of the wrong type.
//!
//! Serde alone stops at the first fault. Here every field accepts any JSON value, so that validation can report all
//! faults together. Only text that is not JSON stops the reading.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::fault::Fault;
use super::{Envelope, MAX_ITEMS, OrderError};

/// What a field contained.
#[derive(Debug, Default)]
pub(super) enum Field<T> {
    /// Nothing, or `null`.
    #[default]
    Absent,
    /// A value of the right type.
    Value(T),
    /// A value of another type.
    WrongType(Kind),
}

/// The type of a JSON value that is not the one that a field needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Boolean,
    /// An integer that fits into 64 bits and is not negative.
    Integer,
    NegativeInteger,
    /// Any other number.
    Number,
    Text,
    Array,
    Object,
}

pub(super) type Text<'a> = Field<Cow<'a, str>>;
pub(super) type Integer = Field<u64>;

#[derive(Debug, Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub(super) struct RawOrder<'a> {
    pub order_uid: Text<'a>,
    pub track_number: Text<'a>,
    pub entry: Text<'a>,
    pub delivery: Field<RawDelivery<'a>>,
    pub payment: Field<RawPayment<'a>>,
    pub items: Field<Vec<Field<RawItem<'a>>>>,
    pub locale: Text<'a>,
    pub internal_signature: Text<'a>,
    pub customer_id: Text<'a>,
    pub delivery_service: Text<'a>,
    pub shardkey: Text<'a>,
    pub sm_id: Integer,
    pub date_created: Text<'a>,
    pub oof_shard: Text<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub(super) struct RawDelivery<'a> {
    pub name: Text<'a>,
    pub phone: Text<'a>,
    pub zip: Text<'a>,
    pub city: Text<'a>,
    pub address: Text<'a>,
    pub region: Text<'a>,
    pub email: Text<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub(super) struct RawPayment<'a> {
    pub transaction: Text<'a>,
    pub request_id: Text<'a>,
    pub currency: Text<'a>,
    pub provider: Text<'a>,
    pub amount: Integer,
    pub payment_dt: Integer,
    pub bank: Text<'a>,
    pub delivery_cost: Integer,
    pub goods_total: Integer,
    pub custom_fee: Integer,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub(super) struct RawItem<'a> {
    pub chrt_id: Integer,
    pub track_number: Text<'a>,
    pub price: Integer,
    pub rid: Text<'a>,
    pub name: Text<'a>,
    pub sale: Integer,
    pub size: Text<'a>,
    pub total_price: Integer,
    pub nm_id: Integer,
    pub brand: Text<'a>,
    pub status: Integer,
}

/// Kafka Connect's envelope. Its member `schema` is not needed.
#[derive(Debug, Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub(super) struct Connect<'a> {
    payload: Field<RawOrder<'a>>,
}

/// A CloudEvent in structured mode.
#[derive(Debug, Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub(super) struct CloudEvent<'a> {
    data: Field<RawOrder<'a>>,
}

/// Reads one JSON document, and takes the order out of its envelope. An order without an envelope is accepted, too.
///
/// Returns what stands where the order should be, and the pointer to this place.
///
/// A field that is given twice is a fault of the order, not of the JSON: nobody can know which of the two is meant.
pub(super) fn parse(
    text: &str,
    envelope: Envelope,
) -> Result<(Field<RawOrder<'_>>, &'static str), OrderError> {
    let (enclosed, pointer) = match envelope {
        Envelope::None => (Field::Absent, ""),
        Envelope::Connect => match read(text)? {
            Field::Value(Connect { payload }) => (payload, "/payload"),
            _ => (Field::Absent, ""),
        },
        Envelope::Cloudevents => match read(text)? {
            Field::Value(CloudEvent { data }) => (data, "/data"),
            _ => (Field::Absent, ""),
        },
    };
    match enclosed {
        Field::Absent => Ok((read(text)?, "")),
        order => Ok((order, pointer)),
    }
}

fn read<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, OrderError> {
    serde_json::from_str(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => {
            OrderError::Invalid(vec![Fault::of_document(error.to_string())])
        }
        _ => OrderError::NotJson(error.to_string()),
    })
}

/// Reads a type from each kind of JSON value. `None` means that the value is of the wrong kind.
trait FromJson<'de>: Sized {
    fn from_text(_text: Cow<'de, str>) -> Option<Self> {
        None
    }

    fn from_integer(_integer: u64) -> Option<Self> {
        None
    }

    fn from_array<A: SeqAccess<'de>>(mut array: A) -> Result<Option<Self>, A::Error> {
        while array.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn from_object<A: MapAccess<'de>>(mut object: A) -> Result<Option<Self>, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

impl<'de: 'a, 'a> FromJson<'de> for Cow<'a, str> {
    fn from_text(text: Cow<'de, str>) -> Option<Self> {
        Some(text)
    }
}

impl FromJson<'_> for u64 {
    fn from_integer(integer: u64) -> Option<Self> {
        Some(integer)
    }
}

impl<'de, T: Deserialize<'de>> FromJson<'de> for Vec<T> {
    /// Keeps at most one element more than an order may have. That is enough to see that there are too many, and a body
    /// with tens of thousands of `{}` takes no more memory than a valid one.
    fn from_array<A: SeqAccess<'de>>(mut array: A) -> Result<Option<Self>, A::Error> {
        let mut elements = Vec::new();
        while elements.len() <= MAX_ITEMS {
            match array.next_element()? {
                Some(element) => elements.push(element),
                None => return Ok(Some(elements)),
            }
        }
        while array.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Some(elements))
    }
}

/// Accepts objects only. A struct with a derived `Deserialize` would also accept an array, field by position.
macro_rules! object_from_json {
    ($($object:ident),+) => {$(
        impl<'de: 'a, 'a> FromJson<'de> for $object<'a> {
            fn from_object<A: MapAccess<'de>>(object: A) -> Result<Option<Self>, A::Error> {
                Self::deserialize(MapAccessDeserializer::new(object)).map(Some)
            }
        }
    )+};
}
object_from_json!(
    RawOrder,
    RawDelivery,
    RawPayment,
    RawItem,
    Connect,
    CloudEvent
);

impl<'de, T: FromJson<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor(PhantomData))
    }
}

struct FieldVisitor<T>(PhantomData<T>);

impl<'de, T: FromJson<'de>> FieldVisitor<T> {
    fn field(value: Option<T>, kind: Kind) -> Field<T> {
        value.map_or(Field::WrongType(kind), Field::Value)
    }
}

impl<'de, T: FromJson<'de>> Visitor<'de> for FieldVisitor<T> {
    type Value = Field<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Field<T>, E> {
        Ok(Field::Absent)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Field<T>, E> {
        Ok(Field::WrongType(Kind::Boolean))
    }

    fn visit_u64<E>(self, integer: u64) -> Result<Field<T>, E> {
        Ok(Self::field(T::from_integer(integer), Kind::Integer))
    }

    /// `serde_json` calls this for negative integers only.
    fn visit_i64<E>(self, _: i64) -> Result<Field<T>, E> {
        Ok(Field::WrongType(Kind::NegativeInteger))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Field<T>, E> {
        Ok(Field::WrongType(Kind::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Field<T>, E> {
        let text = Cow::Owned(text.to_owned());
        Ok(Self::field(T::from_text(text), Kind::Text))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Field<T>, E> {
        let text = Cow::Borrowed(text);
        Ok(Self::field(T::from_text(text), Kind::Text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, array: A) -> Result<Field<T>, A::Error> {
        T::from_array(array).map(|value| Self::field(value, Kind::Array))
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Field<T>, A::Error> {
        T::from_object(object).map(|value| Self::field(value, Kind::Object))
    }
}
