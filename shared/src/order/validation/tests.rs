use base64::Engine;
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::order::{Decoder, Envelope, MAX_ITEMS, MAX_ORDER_BYTES, Order, OrderError, OrderRules};

const MODEL: &str = include_str!("../../../data/model.json");

fn model() -> Value {
    serde_json::from_str(MODEL).unwrap()
}

fn decode(document: &Value) -> Result<Order, OrderError> {
    Order::decode(document.to_string().as_bytes())
}

/// The pointers of all faults, with one field of the model replaced.
fn faults_with(pointer: &str, value: Value) -> Vec<String> {
    let mut document = model();
    *document.pointer_mut(pointer).unwrap() = value;
    fault_pointers(&document)
}

fn fault_pointers(document: &Value) -> Vec<String> {
    match decode(document) {
        Ok(_) => Vec::new(),
        Err(OrderError::Invalid(faults)) => faults.into_iter().map(|fault| fault.pointer).collect(),
        Err(other) => panic!("{other}"),
    }
}

fn without(pointer: &str) -> Value {
    let mut document = model();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    document
        .pointer_mut(parent)
        .unwrap()
        .as_object_mut()
        .unwrap()
        .remove(field)
        .unwrap();
    document
}

const REQUIRED: [&str; 12] = [
    "/order_uid",
    "/track_number",
    "/customer_id",
    "/date_created",
    "/payment/transaction",
    "/payment/amount",
    "/payment/currency",
    "/payment/provider",
    "/items/0/chrt_id",
    "/items/0/name",
    "/items/0/brand",
    "/items/0/price",
];

const OPTIONAL_TEXTS: [&str; 17] = [
    "/entry",
    "/locale",
    "/internal_signature",
    "/delivery_service",
    "/shardkey",
    "/oof_shard",
    "/delivery/name",
    "/delivery/phone",
    "/delivery/zip",
    "/delivery/city",
    "/delivery/address",
    "/delivery/region",
    "/delivery/email",
    "/payment/request_id",
    "/payment/bank",
    "/items/0/track_number",
    "/items/0/rid",
];

const OPTIONAL_INTEGERS: [&str; 8] = [
    "/sm_id",
    "/payment/payment_dt",
    "/payment/delivery_cost",
    "/payment/goods_total",
    "/payment/custom_fee",
    "/items/0/sale",
    "/items/0/nm_id",
    "/items/0/status",
];

#[test]
fn the_model_comes_back_equal() {
    let order = decode(&model()).unwrap();
    assert_eq!(serde_json::to_value(&order).unwrap(), model());
}

#[test]
fn a_required_field_that_is_absent_or_null_is_named() {
    for pointer in REQUIRED.into_iter().chain(["/items/0/total_price"]) {
        assert_eq!(fault_pointers(&without(pointer)), [pointer]);
        assert_eq!(faults_with(pointer, Value::Null), [pointer]);
    }
}

#[test]
fn a_required_text_may_not_be_empty() {
    for pointer in REQUIRED
        .into_iter()
        .filter(|pointer| model().pointer(pointer).unwrap().is_string())
    {
        assert_eq!(faults_with(pointer, json!("")), [pointer]);
    }
}

#[test]
fn an_optional_field_that_is_absent_or_null_is_answered_empty() {
    let empties = OPTIONAL_TEXTS.map(|pointer| (pointer, json!("")));
    for (pointer, empty) in empties
        .into_iter()
        .chain(OPTIONAL_INTEGERS.map(|pointer| (pointer, json!(0))))
    {
        let mut nulled = model();
        *nulled.pointer_mut(pointer).unwrap() = Value::Null;
        for document in [without(pointer), nulled] {
            let answer = serde_json::to_value(decode(&document).unwrap()).unwrap();
            assert_eq!(answer.pointer(pointer), Some(&empty), "{pointer}");
        }
    }
}

#[test]
fn every_fault_is_reported_at_once() {
    let document = json!({"order_uid": "-", "delivery": [], "payment": {"currency": "usd", "amount": -1}, "items": [{}, 7]});
    let faults = fault_pointers(&document);
    for pointer in [
        "/order_uid",
        "/track_number",
        "/delivery",
        "/payment/transaction",
        "/payment/currency",
        "/payment/amount",
        "/items/0/chrt_id",
        "/items/1",
        "/customer_id",
        "/date_created",
    ] {
        assert!(
            faults.iter().any(|fault| fault == pointer),
            "{pointer} is not in {faults:?}"
        );
    }
}

#[test]
fn a_value_of_the_wrong_type_is_named() {
    for wrong in [
        json!(7),
        json!(true),
        json!([]),
        json!({}),
        json!([["nested"]]),
    ] {
        assert_eq!(faults_with("/delivery/name", wrong), ["/delivery/name"]);
    }
    for wrong in [
        json!("7"),
        json!(1.5),
        json!(-1),
        json!(9_007_199_254_740_992_u64),
        json!(1e300),
        json!([]),
    ] {
        assert_eq!(faults_with("/payment/amount", wrong), ["/payment/amount"]);
    }
    for wrong in [json!([]), json!("x"), json!(null)] {
        assert!(faults_with("/payment", wrong).contains(&"/payment".to_owned()));
    }
}

#[test]
fn integers_have_bounds() {
    assert!(faults_with("/payment/amount", json!(9_007_199_254_740_991_u64)).is_empty());
    assert!(faults_with("/items/0/sale", json!(100)).is_empty());
    assert_eq!(faults_with("/items/0/sale", json!(101)), ["/items/0/sale"]);
    assert!(faults_with("/payment/payment_dt", json!(4_102_444_800_u64)).is_empty());
    assert_eq!(
        faults_with("/payment/payment_dt", json!(4_102_444_801_u64)),
        ["/payment/payment_dt"]
    );
}

#[test]
fn texts_have_bounds_in_characters_and_no_controls() {
    assert!(faults_with("/delivery/name", json!("ы".repeat(256))).is_empty());
    assert_eq!(
        faults_with("/delivery/name", json!("ы".repeat(257))),
        ["/delivery/name"]
    );
    assert!(faults_with("/delivery/address", json!("a".repeat(512))).is_empty());
    assert_eq!(
        faults_with("/delivery/address", json!("a".repeat(513))),
        ["/delivery/address"]
    );
    for control in ["a\0b", "a\nb", "\u{7f}", "\u{85}"] {
        assert_eq!(faults_with("/entry", json!(control)), ["/entry"]);
    }
}

#[test]
fn the_uid_has_its_alphabet() {
    for good in ["a", "0", "b563feb7b2b84b6test", "A.b_c-d", &"x".repeat(64)] {
        assert!(faults_with("/order_uid", json!(good)).is_empty(), "{good}");
    }
    for bad in [
        "-a",
        ".a",
        "_a",
        "a b",
        "a/b",
        "é",
        "a\u{430}",
        &"x".repeat(65),
    ] {
        assert_eq!(
            faults_with("/order_uid", json!(bad)),
            ["/order_uid"],
            "{bad}"
        );
    }
}

#[test]
fn phone_email_and_currency_have_their_forms() {
    for good in ["+9720000000", "8 (800) 555-35-35", "12345", "1/2.3x4#5"] {
        assert!(
            faults_with("/delivery/phone", json!(good)).is_empty(),
            "{good}"
        );
    }
    for bad in ["1234", "+1-2-3-4", "12345a", &"1".repeat(33), "١٢٣٤٥"] {
        assert_eq!(
            faults_with("/delivery/phone", json!(bad)),
            ["/delivery/phone"],
            "{bad}"
        );
    }
    for bad in ["plain", "@b.c", "a@", "Name <a@b.example>", "a b@c.example"] {
        assert_eq!(
            faults_with("/delivery/email", json!(bad)),
            ["/delivery/email"],
            "{bad}"
        );
    }
    for bad in ["usd", "US", "USDT", "U1D"] {
        assert_eq!(
            faults_with("/payment/currency", json!(bad)),
            ["/payment/currency"],
            "{bad}"
        );
    }
}

#[test]
fn dates_are_kept_to_the_microsecond_in_utc() {
    for (given, answered) in [
        ("2021-11-26T06:22:19Z", "2021-11-26T06:22:19Z"),
        ("2021-11-26T09:22:19+03:00", "2021-11-26T06:22:19Z"),
        (
            "2021-11-26T06:22:19.123456789Z",
            "2021-11-26T06:22:19.123456Z",
        ),
        ("2021-11-26T06:22:19.100Z", "2021-11-26T06:22:19.100Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("0001-01-01T03:00:00+03:00", "0001-01-01T00:00:00Z"),
        ("1500-02-28 12:00:00Z", "1500-02-28T12:00:00Z"),
        (
            "9999-12-31T23:59:59.999999999Z",
            "9999-12-31T23:59:59.999999Z",
        ),
    ] {
        let mut document = model();
        document["date_created"] = json!(given);
        let order = decode(&document).unwrap();
        assert_eq!(
            serde_json::to_value(&order).unwrap()["date_created"],
            answered
        );
    }
    for bad in [
        "2021-11-26T06:22:19",
        "2021-11-26",
        "2021-11-26T24:00:00Z",
        "2016-12-31T23:59:60Z",
        "0000-12-31T23:59:59Z",
        "10000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "-0001-01-01T00:00:00Z",
        "yesterday",
    ] {
        assert_eq!(
            faults_with("/date_created", json!(bad)),
            ["/date_created"],
            "{bad}"
        );
    }
}

#[test]
fn items_are_one_to_a_thousand() {
    let item = model()["items"][0].clone();
    assert_eq!(faults_with("/items", json!([])), ["/items"]);
    assert!(
        faults_with(
            "/items",
            Value::Array(vec![
                json!({"chrt_id": 1, "name": "n", "brand": "b", "price": 1, "total_price": 1});
                MAX_ITEMS
            ])
        )
        .is_empty()
    );
    assert_eq!(
        faults_with("/items", Value::Array(vec![json!({}); MAX_ITEMS + 1])),
        ["/items"]
    );
    assert_eq!(
        faults_with("/items", json!([item, null])).first().unwrap(),
        "/items/1"
    );
}

#[test]
fn what_is_no_json_is_told_from_what_is_no_order() {
    let reason = |bytes: &[u8]| Order::decode(bytes).unwrap_err().reason();
    for no_json in [
        &b""[..],
        b"{",
        b"nope",
        b"{} {}",
        b"\xff\xfe",
        b"{\"entry\":\"\xff\"}",
        b"\xef\xbb\xbf",
        b"\xef\xbb\xbf\xef\xbb\xbf{}",
    ] {
        assert_eq!(reason(no_json), "not_json", "{no_json:?}");
    }
    for no_order in [
        &b"[]"[..],
        b"null",
        b"7",
        b"\"text\"",
        b"{}",
        b"\xef\xbb\xbf{}",
        b"[\"b563feb7b2b84b6test\"]",
    ] {
        assert_eq!(reason(no_order), "invalid_order", "{no_order:?}");
    }
    let duplicate = MODEL.replacen('{', "{\"entry\": \"x\",", 1);
    assert_eq!(reason(duplicate.as_bytes()), "invalid_order");
    assert_eq!(reason(&vec![b' '; MAX_ORDER_BYTES + 1]), "too_large");
}

#[test]
fn unknown_fields_are_ignored_at_any_depth() {
    let deep = format!(
        "{{\"unknown\":{}{},",
        "[".repeat(50_000),
        "]".repeat(50_000)
    );
    assert!(Order::decode(MODEL.replacen('{', &deep, 1).as_bytes()).is_ok());
}

/// Reads the model with one field replaced, by given settings, and returns the details of all faults.
fn details(decoder: Decoder, pointer: &str, value: Value) -> Vec<String> {
    let mut document = model();
    *document.pointer_mut(pointer).unwrap() = value;
    details_of(decoder, document.to_string().as_bytes())
}

fn details_of(decoder: Decoder, bytes: &[u8]) -> Vec<String> {
    match decoder.decode(bytes) {
        Ok(_) => Vec::new(),
        Err(OrderError::Invalid(faults)) => faults.iter().map(ToString::to_string).collect(),
        Err(other) => vec![other.to_string()],
    }
}

const LENIENT: Decoder = Decoder {
    rules: OrderRules::Lenient,
    envelope: Envelope::None,
};

#[test]
fn lenient_rules_accept_any_form_within_the_limits() {
    for (pointer, odd) in [
        ("/delivery/phone", "ask the shop"),
        ("/delivery/email", "none"),
        ("/payment/currency", "rub"),
        ("/payment/currency", "bonus points"),
    ] {
        assert_eq!(details(LENIENT, pointer, json!(odd)).len(), 0, "{pointer}");
        assert_eq!(faults_with(pointer, json!(odd)), [pointer]);
        for bad in [json!("a".repeat(257)), json!("a\nb"), json!(7)] {
            assert_eq!(details(LENIENT, pointer, bad).len(), 1, "{pointer}");
        }
    }
    assert_eq!(details(LENIENT, "/payment/currency", json!("")).len(), 1);
}

#[test]
fn an_address_may_have_several_lines() {
    assert!(faults_with("/delivery/address", json!("Main street 1\r\n\tApt 2\n")).is_empty());
    for bad in ["a\0", "a\u{1b}[2J", "a\u{85}b", "a\u{7f}"] {
        assert_eq!(
            faults_with("/delivery/address", json!(bad)),
            ["/delivery/address"]
        );
    }
}

#[test]
fn an_integer_is_read_by_its_value() {
    for (written, value) in [
        ("1817.0", 1817_i64),
        ("1.817e3", 1817),
        ("18170E-1", 1817),
        ("-0.0", 0),
        ("9007199254740991.0", 9_007_199_254_740_991),
    ] {
        let document = MODEL.replace("\"amount\": 1817", &format!("\"amount\": {written}"));
        assert_ne!(document, MODEL);
        let order = Order::decode(document.as_bytes()).unwrap();
        assert_eq!(order.payment.amount, value, "{written}");
    }
    for written in ["9007199254740991.4", "9007199254740992.0", "1e16", "-1.0"] {
        let document = MODEL.replace("\"amount\": 1817", &format!("\"amount\": {written}"));
        let faults = details_of(Decoder::default(), document.as_bytes());
        assert_eq!(faults.len(), 1, "{written}: {faults:?}");
        assert!(faults[0].starts_with("/payment/amount: must be an integer in 0..="));
    }
}

#[test]
fn details_say_what_to_send_instead() {
    for (pointer, value, expected) in [
        ("/shardkey", json!(9), "put the number into quotes"),
        ("/payment/amount", json!(18.17), "without a fraction"),
        ("/payment/amount", json!(-5), "not negative"),
        ("/payment/amount", json!("1817"), "not in quotes"),
        (
            "/date_created",
            json!("2021-11-26"),
            "the time of day is missing",
        ),
        (
            "/date_created",
            json!("2021-11-26T06:22:19"),
            "the zone is missing",
        ),
        ("/date_created", json!("2016-12-31T23:59:60Z"), "second 60"),
        (
            "/date_created",
            json!("10000-01-01T00:00:00Z"),
            "such as 2021-11-26T06:22:19Z",
        ),
    ] {
        let faults = details(Decoder::default(), pointer, value);
        assert_eq!(faults.len(), 1, "{pointer}: {faults:?}");
        assert!(faults[0].contains(expected), "{faults:?}");
    }
}

#[test]
fn an_order_is_taken_out_of_its_envelope() {
    let connect = json!({"schema": {"type": "struct"}, "payload": model()}).to_string();
    let event =
        json!({"specversion": "1.0", "id": "1", "source": "/shop", "type": "t", "data": model()})
            .to_string();
    let with = |envelope| Decoder {
        rules: OrderRules::Standard,
        envelope,
    };
    let expected = decode(&model()).unwrap();
    for (envelope, value) in [
        (Envelope::Connect, &connect),
        (Envelope::Cloudevents, &event),
    ] {
        assert_eq!(
            with(envelope).decode(value.as_bytes()),
            Ok(expected.clone())
        );
        // A topic may have producers of both kinds.
        assert_eq!(
            with(envelope).decode(MODEL.as_bytes()),
            Ok(expected.clone())
        );
    }
    for (envelope, value, named) in [
        (Envelope::None, &connect, "KAFKA_VALUE_ENVELOPE=connect"),
        (Envelope::None, &event, "KAFKA_VALUE_ENVELOPE=cloudevents"),
        (
            Envelope::Connect,
            &event,
            "KAFKA_VALUE_ENVELOPE=cloudevents",
        ),
        (
            Envelope::Cloudevents,
            &connect,
            "KAFKA_VALUE_ENVELOPE=connect",
        ),
    ] {
        let faults = details_of(with(envelope), value.as_bytes());
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains(named), "{faults:?}");
    }
    let mut document: Value = serde_json::from_str(&connect).unwrap();
    document["payload"]["customer_id"] = Value::Null;
    assert_eq!(
        details_of(with(Envelope::Connect), document.to_string().as_bytes()),
        ["/payload/customer_id: is required"]
    );
    document["payload"] = json!([1]);
    assert_eq!(
        details_of(with(Envelope::Connect), document.to_string().as_bytes()),
        ["/payload: must be an object"]
    );
}

#[test]
fn what_is_sent_in_place_of_an_order_is_named() {
    let utf_16 = |text: &str, bytes: fn(u16) -> [u8; 2]| {
        text.encode_utf16().flat_map(bytes).collect::<Vec<u8>>()
    };
    let in_registry = |value: &[u8]| [&[0, 0, 0, 0, 7], value].concat();
    for (value, named) in [
        (
            json!([model()]).to_string().into_bytes(),
            "one order per message",
        ),
        (json!(MODEL).to_string().into_bytes(), "not twice"),
        (
            json!({"payload": {"before": null, "after": model(), "op": "c"}})
                .to_string()
                .into_bytes(),
            "/payload/after",
        ),
        (
            json!({"before": null, "after": model(), "op": "c"})
                .to_string()
                .into_bytes(),
            "in /after",
        ),
        (utf_16(MODEL, u16::to_le_bytes), "UTF-16"),
        (utf_16(MODEL, u16::to_be_bytes), "UTF-16"),
        (
            utf_16(&format!("\u{feff}{MODEL}"), u16::to_le_bytes),
            "UTF-16",
        ),
        (b"\x1f\x8b\x08\x00".to_vec(), "gzip"),
        (b"\x28\xb5\x2f\xfd\x04".to_vec(), "zstd"),
        (b"Obj\x01\x04".to_vec(), "Avro"),
        (in_registry(b"\x26edge"), "Avro or Protobuf"),
    ] {
        let faults = details_of(Decoder::default(), &value);
        assert_eq!(faults.len(), 1, "{named}: {faults:?}");
        assert!(faults[0].contains(named), "{named}: {faults:?}");
    }
    // What is merely skipped.
    for value in [
        in_registry(MODEL.as_bytes()),
        ["\u{feff}", MODEL].concat().into_bytes(),
        [MODEL, "\r\n"].concat().into_bytes(),
    ] {
        assert_eq!(Order::decode(&value), decode(&model()));
    }
}

/// Messages as real producers send them, each with the verdict under both rule sets.
#[test]
fn messages_of_real_producers_get_their_verdicts() {
    #[derive(serde::Deserialize)]
    struct Input {
        name: String,
        settings: std::collections::HashMap<String, String>,
        standard: String,
        lenient: String,
        value_base64: String,
    }
    let inputs: Vec<Input> =
        serde_json::from_str(include_str!("../../../data/edge-inputs.json")).unwrap();
    assert!(inputs.len() > 30);
    for input in inputs {
        let value = base64::engine::general_purpose::STANDARD
            .decode(&input.value_base64)
            .unwrap();
        let envelope = input.settings.get("KAFKA_VALUE_ENVELOPE");
        let envelope = envelope.map_or(Envelope::None, |name| {
            Envelope::from_str(name, false).unwrap()
        });
        for (rules, expected) in [
            (OrderRules::Standard, &input.standard),
            (OrderRules::Lenient, &input.lenient),
        ] {
            let decoded = Decoder { rules, envelope }.decode(&value);
            let verdict = if decoded.is_ok() { "stored" } else { "refused" };
            assert_eq!(verdict, expected, "{}: {decoded:?}", input.name);
        }
    }
}
