//! Merge patches (RFC 7396): how one changes an order.
//!
//! The members of a patch stay the text that the client has sent. So numbers keep their exact values, and the decoder finds
//! members that are given twice. Only the members of an order, of its delivery and of its payment are merged. There are no
//! other objects: a patch replaces `items` as a whole, like every array. `null` removes a member, which an order understands
//! by itself: to it, `null` means the same as no member.

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use shared::order::{Decoder, Fault, MAX_ORDER_BYTES, Order, OrderError, OrderUid};

use super::problem::ApiError;

/// What every order must have besides its id.
const TEMPLATE: &str = r#""track_number":"x","customer_id":"x","date_created":"2000-01-01T00:00:00Z","delivery":{},
    "payment":{"transaction":"x","currency":"XXX","provider":"x","amount":0},
    "items":[{"chrt_id":0,"name":"x","brand":"x","price":0,"total_price":0}]}"#;

/// A merge patch of an order.
#[derive(Debug)]
pub struct MergePatch(Box<RawValue>);

impl MergePatch {
    /// Reads a patch of the order `uid`, and checks it as far as that is possible without the order: merged into any valid
    /// order, it must yield a valid order. No rule of an order spans several members, so a patch that makes one valid order
    /// invalid makes all of them invalid.
    ///
    /// # Errors
    /// Returns `MalformedJson`; `InvalidOrder` with the faults that the order would have; or `UidMismatch` if the patch changes
    /// the order's id.
    pub fn parse(body: &[u8], uid: &OrderUid, decoder: &Decoder) -> Result<Self, ApiError> {
        let not_json = |error: &dyn ToString| ApiError::MalformedJson(error.to_string());
        let text = str::from_utf8(body).map_err(|error| not_json(&error))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let patch: &RawValue = serde_json::from_str(text).map_err(|error| not_json(&error))?;
        if !is_object(patch) {
            return Err(fault("must be an object with the members to change".to_owned()).into());
        }
        let template = format!("{{\"order_uid\":\"{uid}\",{TEMPLATE}");
        if decode(decoder, &template, patch)?.order_uid != *uid {
            return Err(ApiError::UidMismatch);
        }
        Ok(Self(patch.to_owned()))
    }

    /// Returns the order with the changes. The whole order is checked: it may have been stored under other rules.
    ///
    /// # Errors
    /// Returns an [`OrderError`] if the order would not be valid, or would have more than [`MAX_ORDER_BYTES`] as JSON. An order
    /// that has more already must not grow.
    pub fn apply(&self, order: &Order, decoder: &Decoder) -> Result<Order, OrderError> {
        let before = to_json(order);
        let changed = decode(decoder, &before, &self.0)?;
        let size_bytes = to_json(&changed).len();
        if size_bytes > MAX_ORDER_BYTES.max(before.len()) {
            return Err(fault(format!(
                "would have {size_bytes} bytes, at most {MAX_ORDER_BYTES} are allowed"
            )));
        }
        Ok(changed)
    }
}

fn to_json(order: &Order) -> String {
    serde_json::to_string(order)
        .expect("an order has only string keys, and serialising its fields cannot fail")
}

/// Merges and decodes. The errors name no lines and columns, because those would be of a text that the client has not sent.
fn decode(decoder: &Decoder, target: &str, patch: &RawValue) -> Result<Order, OrderError> {
    let merged = serde_json::from_str(target).and_then(|target| merge(target, patch));
    let merged = merged.map_err(|error| OrderError::NotJson(error.to_string()));
    let decoded = merged.and_then(|merged| decoder.decode_any_size(merged.as_bytes()));
    let without_place = |text: &str| text.split(" at line ").next().unwrap_or(text).to_owned();
    decoded.map_err(|error| match error {
        OrderError::NotJson(detail) => OrderError::NotJson(without_place(&detail)),
        OrderError::Invalid(mut faults) => {
            for fault in faults.iter_mut().filter(|fault| fault.pointer.is_empty()) {
                fault.detail = without_place(&fault.detail).into();
            }
            OrderError::Invalid(faults)
        }
        too_large @ OrderError::TooLarge { .. } => too_large,
    })
}

/// Merges a patch into an object. It goes only as deep as the object has objects, whatever the patch contains.
fn merge(target: &RawValue, patch: &RawValue) -> serde_json::Result<String> {
    let Members(target) = serde_json::from_str(target.get())?;
    let Members(patch) = serde_json::from_str(patch.get())?;
    let mut merged = Vec::new();
    for (name, value) in &target {
        if patch.iter().all(|(patched, _)| patched != name) {
            merged.push([&serde_json::to_string(name)?, ":", value.get()].concat());
        }
    }
    for (name, value) in &patch {
        let inner = target.iter().find(|(each, _)| each == name);
        let inner = inner.filter(|(_, inner)| is_object(inner) && is_object(value));
        let text = match inner {
            Some((_, inner)) => merge(inner, value)?,
            None => value.get().to_owned(),
        };
        merged.push([&serde_json::to_string(name)?, ":", &text].concat());
    }
    Ok(["{", &merged.join(","), "}"].concat())
}

fn is_object(value: &RawValue) -> bool {
    value.get().starts_with('{')
}

fn fault(detail: String) -> OrderError {
    OrderError::Invalid(vec![Fault {
        pointer: String::new(),
        detail: detail.into(),
    }])
}

/// The members of an object, in their order and with those that are given twice. A map would drop these.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Members(members))
    }
}

#[cfg(test)]
mod tests {
    use shared::order::{Envelope, OrderRules};
    use shared::testing::model_json;

    use super::*;

    fn decoder(rules: OrderRules) -> Decoder {
        let envelope = Envelope::None;
        Decoder { rules, envelope }
    }

    fn model() -> Order {
        Order::decode(model_json().as_bytes()).unwrap()
    }

    fn parse(patch: &str) -> Result<MergePatch, ApiError> {
        let decoder = decoder(OrderRules::Standard);
        MergePatch::parse(patch.as_bytes(), &model().order_uid, &decoder)
    }

    /// What the patch does to the model, as the RFC says it: on values instead of texts.
    fn expected(target: &mut serde_json::Value, patch: &serde_json::Value) {
        let serde_json::Value::Object(members) = patch else {
            *target = patch.clone();
            return;
        };
        if !target.is_object() {
            *target = serde_json::json!({});
        }
        for (name, value) in members {
            if value.is_null() {
                target.as_object_mut().unwrap().remove(name);
            } else {
                expected(&mut target[name], value);
            }
        }
    }

    #[test]
    fn a_patch_does_what_the_rfc_says() {
        for patch in [
            "{}",
            r#"{"locale":"de"}"#,
            r#" { "locale" : null, "entry": "" }"#,
            r#"{"locale":null,"delivery":{"phone":null,"city":"Haifa"}}"#,
            r#"{"delivery":null}"#,
            r#"{"delivery":{}}"#,
            r#"{"payment":{"amount":1,"bank":null},"sm_id":0}"#,
            r#"{"items":[{"chrt_id":1,"name":"n","brand":"b","price":2,"total_price":3}]}"#,
            r#"{"order_uid":"b563feb7b2b84b6test","unknown":{"a":{"b":[null]}}}"#,
            r#"{"\u006cocale":"de","payment":{"amount":9007199254740991}}"#,
            r#"{"payment":{"amount":1.817e3},"sm_id":7.0}"#,
        ] {
            let mut value = serde_json::to_value(model()).unwrap();
            expected(&mut value, &serde_json::from_str(patch).unwrap());
            let expected = Order::decode(value.to_string().as_bytes()).unwrap();
            let decoder = decoder(OrderRules::Standard);
            let patched = parse(patch).unwrap().apply(&model(), &decoder).unwrap();
            assert_eq!(patched, expected, "{patch}");
        }
    }

    #[test]
    fn a_patch_that_yields_no_order_is_refused_without_the_order() {
        for (patch, pointers) in [
            ("[]", &[""][..]),
            ("null", &[""]),
            ("\"x\"", &[""]),
            (r#"{"payment":null}"#, &["/payment", "/payment/transaction"]),
            (r#"{"payment":5}"#, &["/payment"]),
            (
                r#"{"payment":{"amount":null,"currency":"eur"}}"#,
                &["/payment/currency", "/payment/amount"],
            ),
            (
                r#"{"payment":{"amount":9007199254740991.4}}"#,
                &["/payment/amount"],
            ),
            (r#"{"items":[]}"#, &["/items"]),
            (r#"{"items":{"0":{"name":"x"}}}"#, &["/items"]),
            (r#"{"items":[{"chrt_id":1}]}"#, &["/items/0/price"]),
            (r#"{"locale":"a","locale":"b"}"#, &[""]),
            (r#"{"locale":null,"locale":"b"}"#, &[""]),
            (r#"{"delivery":{"city":"a"},"delivery":{"zip":"b"}}"#, &[""]),
            (r#"{"delivery":{"city":"a","city":null}}"#, &[""]),
            (r#"{"order_uid":null}"#, &["/order_uid"]),
            (r#"{"order_uid":"!"}"#, &["/order_uid"]),
        ] {
            let refused = parse(patch).unwrap_err();
            let ApiError::InvalidOrder(faults) = refused else {
                panic!("{patch}: {refused:?}");
            };
            for pointer in pointers {
                assert!(
                    faults.iter().any(|fault| fault.pointer == *pointer),
                    "{patch}: {faults:?}"
                );
            }
            assert!(
                !faults.iter().any(|fault| fault.detail.contains("column")),
                "{faults:?}"
            );
        }
        let another = parse(r#"{"order_uid":"another"}"#).unwrap_err();
        assert_eq!(another, ApiError::UidMismatch);
    }

    #[test]
    fn what_is_not_json_is_refused_as_such() {
        for (patch, has_place) in [
            (&b"{"[..], true),
            (b"{} {}", true),
            (b"", true),
            (b"{\"a\":\xff}", false),
            (br#"{"locale":"\ud800"}"#, false),
            (br#"{"\ud800":1}"#, false),
            (br#"{"sm_id":1e999}"#, false),
        ] {
            let refused =
                MergePatch::parse(patch, &model().order_uid, &decoder(OrderRules::Standard));
            let Err(ApiError::MalformedJson(detail)) = refused else {
                panic!("{refused:?}");
            };
            assert_eq!(detail.contains("column"), has_place, "{detail}");
        }
    }

    /// Each level costs a stack frame in a naive merge, and time in one that reads each level again.
    #[test]
    fn a_deep_patch_costs_no_more_than_a_long_one() {
        let levels = MAX_ORDER_BYTES / 8;
        for name in ["delivery", "items", "unknown"] {
            let deep = ["{\"a\":".repeat(levels), "1".to_owned(), "}".repeat(levels)].concat();
            let parsed = parse(&format!("{{\"{name}\":{deep}}}"));
            assert_eq!(parsed.is_ok(), name != "items", "{name}");
        }
    }

    #[test]
    fn an_order_of_other_rules_is_checked_as_a_whole() {
        let patch = parse(r#"{"locale":"de"}"#).unwrap();
        let mut lenient = model();
        lenient.delivery.email = "none".into();
        let refused = patch
            .apply(&lenient, &decoder(OrderRules::Standard))
            .unwrap_err();
        assert!(
            refused.to_string().starts_with("/delivery/email: "),
            "{refused}"
        );
        assert!(patch.apply(&lenient, &decoder(OrderRules::Lenient)).is_ok());
    }

    #[test]
    fn an_order_does_not_grow_beyond_the_limit() {
        let decoder = decoder(OrderRules::Standard);
        let with_items = |count| {
            let mut order = model();
            let mut item = order.items.remove(0);
            item.name = "x".repeat(200).into();
            order.items = vec![item; count];
            order
        };
        let size_of = |count| to_json(&with_items(count)).len();
        let most = 1 + (MAX_ORDER_BYTES - size_of(1)) / (size_of(2) - size_of(1));
        let grow = format!(r#"{{"delivery":{{"address":"{}"}}}}"#, "й".repeat(512));
        // The second one is too large already: a message that contains nothing empty can be smaller.
        for count in [most, most + 1] {
            assert_eq!(size_of(count) > MAX_ORDER_BYTES, count > most);
            let refused = parse(&grow).unwrap().apply(&with_items(count), &decoder);
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains("at most 262144"), "{refused}");
        }
        let large = with_items(most + 1);
        let shrunk = parse(r#"{"delivery":null}"#)
            .unwrap()
            .apply(&large, &decoder);
        assert!(shrunk.is_ok());
    }
}
