//! What producers put around an order, and what they send in place of one.
//!
//! [`content`] removes what is skipped. [`recognise`] names the rest, because "every field is required" helps nobody who
//! has sent an envelope. It runs only for bytes that were refused.

use serde_json::Value;

use super::fault::Fault;
use super::{Envelope, OrderError};

/// A UTF-8 byte order mark. RFC 8259, section 8.1, lets a reader skip it.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The first byte of the Schema Registry's header. The schema's id follows in four bytes.
const SCHEMA_REGISTRY_MAGIC: u8 = 0;
const SCHEMA_ID_BYTES: usize = 4;

const UTF_16: &str =
    "the value is UTF-16, and JSON must be UTF-8: set the producer's encoding to UTF-8";

/// Beginnings of values that are not JSON, and what they tell.
const BINARY_FORMATS: [(&[u8], &str); 5] = [
    (
        b"\x1f\x8b",
        "the value is compressed with gzip: send plain JSON, and set the producer's compression.type instead",
    ),
    (
        b"\x28\xb5\x2f\xfd",
        "the value is compressed with zstd: send plain JSON, and set the producer's compression.type instead",
    ),
    (b"\xff\xfe", UTF_16),
    (b"\xfe\xff", UTF_16),
    (
        b"Obj\x01",
        "the value is an Avro file: send the order as JSON, one order per message",
    ),
];

/// The bytes that should be JSON: without a byte order mark and without the Schema Registry's header.
///
/// # Errors
/// Returns [`OrderError::NotJson`], which names the format, if the bytes are known to be something else.
pub(super) fn content(bytes: &[u8]) -> Result<&[u8], OrderError> {
    let not_json = |detail: &str| Err(OrderError::NotJson(detail.to_owned()));
    if let Some((_, detail)) = BINARY_FORMATS
        .iter()
        .find(|(beginning, _)| bytes.starts_with(beginning))
    {
        return not_json(detail);
    }
    match bytes {
        [b'{', 0, ..] | [0, b'{', 0, ..] => not_json(UTF_16),
        [SCHEMA_REGISTRY_MAGIC, rest @ ..] if rest.len() >= SCHEMA_ID_BYTES => {
            let value = &rest[SCHEMA_ID_BYTES..];
            if value.first() == Some(&b'{') {
                Ok(value)
            } else {
                not_json(
                    "the value has the Schema Registry's header and then no JSON, so it is Avro or Protobuf: \
                     use the JSON Schema serializer, or plain JSON",
                )
            }
        }
        _ => Ok(bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)),
    }
}

/// Names what a JSON document is that is not an order; `None` if it is not known.
pub(super) fn recognise(text: &str, envelope: Envelope) -> Option<Fault> {
    // A document that is nested too deeply for this is nothing that is known here.
    let detail = match serde_json::from_str(text).ok()? {
        Value::Array(_) => "is an array: send one order per message",
        Value::String(inner) if inner.trim_start().starts_with('{') => {
            "is a string that contains JSON: encode the order once, not twice"
        }
        Value::Object(object) if !object.contains_key("order_uid") => {
            let has = |name: &str| object.contains_key(name);
            let payload = object.get("payload");
            if is_change_event(payload) {
                "is a Debezium change event, not an order; the order seems to be in /payload/after: \
                 use the transform ExtractNewRecordState"
            } else if has("op") && (has("before") || has("after")) {
                "is a Debezium change event, not an order; the order seems to be in /after: \
                 use the transform ExtractNewRecordState"
            } else if has("schema") && has("payload") && envelope != Envelope::Connect {
                "is Kafka Connect's envelope, and the order seems to be in /payload: set \
                 KAFKA_VALUE_ENVELOPE=connect, or the producer's value.converter.schemas.enable=false"
            } else if has("specversion") && envelope != Envelope::Cloudevents {
                "is a CloudEvent, and the order seems to be in /data: set KAFKA_VALUE_ENVELOPE=cloudevents"
            } else {
                return None;
            }
        }
        _ => return None,
    };
    Some(Fault::of_document(detail.to_owned()))
}

/// Whether a payload has the members of a Debezium change event.
fn is_change_event(payload: Option<&Value>) -> bool {
    let Some(Value::Object(payload)) = payload else {
        return false;
    };
    payload.contains_key("op") && (payload.contains_key("before") || payload.contains_key("after"))
}
