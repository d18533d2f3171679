//! Messages that are meant to break a consumer: each is stored whole or becomes a dead letter, and the daemon keeps
//! running.

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::{Value, json};
use servers::kafka::PrivateKafka;
use shared::testing::{TestDatabase, wait_until};

use crate::support::{Api, PATIENCE, RawHeader, RawRecord, Scene};

/// The size of the largest message that can be an order.
const MAX_BYTES: usize = 256 * 1024;

/// The expected result of a message.
enum Expected {
    /// The api returns this order.
    Stored(Value),
    /// `dead_letters` has this reason, and a detail with this part.
    Refused(&'static str, &'static str),
}

struct Case {
    name: String,
    message: Vec<u8>,
    expected: Expected,
}

/// Messages. Each is made from an order that is valid except for the case's own change.
struct Cases<'a> {
    scene: &'a mut Scene,
    cases: Vec<Case>,
}

impl Cases<'_> {
    /// The order from which the next case is made.
    fn order(&mut self) -> Value {
        let uid = format!("case-{}", self.cases.len());
        serde_json::to_value(self.scene.later(&uid)).unwrap()
    }

    fn push(&mut self, name: &str, message: impl Into<Vec<u8>>, expected: Expected) {
        self.cases.push(Case {
            name: name.to_owned(),
            message: message.into(),
            expected,
        });
    }

    /// Adds an order with this value in a field. The order must come back with it.
    fn good(&mut self, pointer: &str, value: Value) {
        let name = format!("{pointer} = {value:.60}");
        let mut order = self.order();
        *order.pointer_mut(pointer).unwrap() = value;
        self.push(&name, order.to_string(), Expected::Stored(order));
    }

    /// Adds an order whose text is edited without a change of its meaning.
    fn good_text(&mut self, name: &str, edit: impl Fn(&str) -> String) {
        let order = self.order();
        self.push(name, edit(&order.to_string()), Expected::Stored(order));
    }

    /// Adds an order that is refused because of this value in a field.
    fn bad(&mut self, pointer: &'static str, value: Value) {
        let name = format!("{pointer} = {value:.60}");
        let mut order = self.order();
        *order.pointer_mut(pointer).unwrap() = value;
        let expected = Expected::Refused("invalid_order", pointer);
        self.push(&name, order.to_string(), expected);
    }

    /// Adds an order whose text is edited so that it is no valid order any more.
    fn bad_text(
        &mut self,
        name: &str,
        reason: &'static str,
        detail: &'static str,
        edit: impl Fn(&str) -> Vec<u8>,
    ) {
        let order = self.order().to_string();
        self.push(name, edit(&order), Expected::Refused(reason, detail));
    }

    /// Adds an order whose payment's amount is replaced by this JSON.
    fn amount(&mut self, literal: &str, reason: &'static str, detail: &'static str) {
        let mut order = self.order();
        order["payment"]["amount"] = json!("THE AMOUNT");
        let message = order.to_string().replace("\"THE AMOUNT\"", literal);
        let name = format!("amount = {literal:.60}");
        self.push(&name, message, Expected::Refused(reason, detail));
    }
}

/// Inserts a member after the text's opening brace.
fn with_member(order: &str, member: &str) -> String {
    order.replacen('{', &format!("{{{member},"), 1)
}

fn texts(cases: &mut Cases<'_>) {
    cases.good("/delivery/name", json!("'); DROP TABLE orders; --"));
    cases.good("/delivery/name", json!("\\N"));
    cases.good("/delivery/name", json!("\\."));
    cases.good(
        "/delivery/name",
        json!("\u{10ffff} \u{200f}\u{202e}e\u{301}"),
    );
    cases.good(
        "/delivery/name",
        json!("</script><img src=x onerror=alert(1)>"),
    );
    cases.good("/delivery/name", json!("𝄞".repeat(256)));
    cases.good("/delivery/address", json!("ß".repeat(512)));
    cases.good("/delivery/address", json!("Main street 1\r\n\tApt 2\n"));
    for field in ["name", "phone", "city", "region", "address", "email"] {
        cases.good(&format!("/delivery/{field}"), json!(""));
    }
    cases.good_text("a byte order mark", |order| format!("\u{feff}{order}"));
    cases.good_text("a line break at the end", |order| format!("{order}\r\n"));
    cases.good("/order_uid", json!(format!("x{}", ".".repeat(63))));
    cases.good_text("escaped names of fields", |order| {
        order.replacen("\"track_number\"", "\"\\u0074rack_number\"", 1)
    });
    let mut order = cases.order();
    order["delivery"]["name"] = json!("\u{1f600}");
    let message = order.to_string().replace('\u{1f600}', "\\ud83d\\ude00");
    cases.push("a pair of surrogates", message, Expected::Stored(order));

    cases.bad("/delivery/name", json!("a\0b"));
    cases.bad("/items/0/name", json!("\u{0}"));
    cases.bad("/delivery/name", json!("a\u{1b}[31mb"));
    cases.bad("/delivery/name", json!("𝄞".repeat(257)));
    cases.bad("/delivery/name", json!("x".repeat(200_000)));
    cases.bad("/delivery/address", json!("ß".repeat(513)));
    cases.bad("/order_uid", json!("../../etc/passwd"));
    cases.bad("/order_uid", json!("x".repeat(65)));
    cases.bad("/order_uid", json!("а-look-alike"));
    cases.bad("/order_uid", json!(""));
    let refused = ("not_json", "");
    cases.bad_text("a raw NUL", refused.0, refused.1, |order| {
        order.replacen("WBIL", "WB\0L", 1).into_bytes()
    });
    cases.bad_text("a raw line feed in a text", refused.0, refused.1, |order| {
        order.replacen("WBIL", "WB\nL", 1).into_bytes()
    });
    cases.bad("/delivery/address", json!("a\u{1b}[31mb"));
    cases.bad_text("gzip", refused.0, "gzip", |_| b"\x1f\x8b\x08\x00".to_vec());
    cases.bad_text("UTF-16", refused.0, "UTF-16", |order| {
        order.encode_utf16().flat_map(u16::to_le_bytes).collect()
    });
    cases.bad_text("no UTF-8", refused.0, refused.1, |order| {
        let mut bytes = order.as_bytes().to_vec();
        let at = order.find("WBIL").unwrap();
        bytes[at] = 0xff;
        bytes
    });
    cases.bad_text("a lone surrogate", refused.0, refused.1, |order| {
        order.replacen("WBIL", "\\ud800", 1).into_bytes()
    });
}

fn numbers_and_times(cases: &mut Cases<'_>) {
    const MAX: u64 = (1 << 53) - 1;
    cases.good("/payment/amount", json!(MAX));
    cases.good("/items/0/chrt_id", json!(0));
    cases.good("/payment/payment_dt", json!(4_102_444_800_u64));
    cases.good("/date_created", json!("0001-01-01T00:00:00Z"));
    cases.good("/date_created", json!("9999-12-31T23:59:59.999999Z"));
    for literal in ["1817.0", "1.817e3", "18170E-1"] {
        let mut order = cases.order();
        order["payment"]["amount"] = json!("THE AMOUNT");
        let message = order.to_string().replace("\"THE AMOUNT\"", literal);
        order["payment"]["amount"] = json!(1817);
        let name = format!("amount = {literal}");
        cases.push(&name, message, Expected::Stored(order));
    }
    let mut order = cases.order();
    let message = {
        order["date_created"] = json!("2026-02-28T23:30:00.123456789-01:00");
        order.to_string()
    };
    order["date_created"] = json!("2026-03-01T00:30:00.123456Z");
    cases.push("nanoseconds and a zone", message, Expected::Stored(order));

    for literal in [
        "-1",
        "18.17",
        "1e-400",
        "9007199254740991.5",
        "9007199254740992",
        "9223372036854775808",
        "18446744073709551616",
        "\"1\"",
        "true",
        "[1]",
        "{\"a\": 1}",
    ] {
        cases.amount(literal, "invalid_order", "/payment/amount");
    }
    // Numbers that no parser can hold, and texts that are no numbers.
    cases.amount("1e400", "not_json", "");
    cases.amount("NaN", "not_json", "");
    cases.amount("Infinity", "not_json", "");
    cases.amount("01", "not_json", "");
    cases.amount("0x10", "not_json", "");
    cases.bad("/items/0/sale", json!(2_147_483_648_u64));
    cases.bad("/items/0/sale", json!(101));
    cases.bad("/payment/payment_dt", json!(9_000_000_000_000_000_000_u64));
    for time in [
        "2026-06-30T23:59:60Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:00:00",
        "2026-01-01",
        "0000-12-31T23:59:59Z",
        "0001-01-01T00:00:00+01:00",
        "+10000-01-01T00:00:00Z",
        "-0001-01-01T00:00:00Z",
        "262143-01-01T00:00:00Z",
        "",
    ] {
        cases.bad("/date_created", json!(time));
    }
}

fn structures(cases: &mut Cases<'_>) {
    let deep = "[".repeat(50_000) + &"]".repeat(50_000);
    cases.good_text("an unknown field 50,000 deep", |order| {
        with_member(order, &format!("\"x\": {deep}"))
    });
    cases.good_text("an unknown field with all that is unstorable", |order| {
        with_member(order, r#""x": ["\u0000", 1e400, -0, {"": null}]"#)
    });
    cases.good_text("an unknown field twice", |order| {
        with_member(order, "\"x\": 1, \"x\": 2")
    });
    cases.good_text("as many bytes as an order may have", |order| {
        order.to_owned() + &" ".repeat(MAX_BYTES - order.len())
    });
    let mut order = cases.order();
    let item = order["items"][0].clone();
    order["items"] = json!(vec![item.clone(); 1_000]);
    // The message omits the optional fields. Otherwise 1,000 items would be too many bytes.
    let mut message = order.clone();
    for item in message["items"].as_array_mut().unwrap() {
        item.as_object_mut().unwrap().remove("size");
        item["track_number"] = Value::Null;
    }
    for item in order["items"].as_array_mut().unwrap() {
        item["size"] = json!("");
        item["track_number"] = json!("");
    }
    cases.push("1,000 items", message.to_string(), Expected::Stored(order));

    cases.bad("/items", json!(vec![item.clone(); 1_001]));
    cases.bad("/items", json!(vec![json!({}); 10_000]));
    cases.bad("/items", json!([]));
    cases.bad("/items", json!({"0": item}));
    cases.bad("/delivery", json!(["name", "+123456"]));
    let (reason, document) = ("invalid_order", "");
    cases.bad_text("an array in the order's place", reason, document, |order| {
        format!("[{order}]").into_bytes()
    });
    cases.bad_text("the order's fields by position", reason, document, |_| {
        br#"["uid", "track", "entry"]"#.to_vec()
    });
    cases.bad_text("a known field 50,000 deep", reason, "/entry", |order| {
        let entry = format!("\"entry\":{deep}");
        order.replacen("\"entry\":\"WBIL\"", &entry, 1).into_bytes()
    });
    cases.bad_text("a field twice", reason, document, |order| {
        with_member(order, "\"entry\": \"a\"").into_bytes()
    });
    cases.bad_text("a field twice, once escaped", reason, document, |order| {
        with_member(order, "\"\\u0065ntry\": \"a\"").into_bytes()
    });
    for scalar in ["null", "1", "\"text\"", "true"] {
        cases.push(scalar, scalar, Expected::Refused(reason, document));
    }
    let no_json = "not_json";
    cases.bad_text("two documents", no_json, document, |order| {
        format!("{order}{order}").into_bytes()
    });
    cases.bad_text("a byte behind the document", no_json, document, |order| {
        format!("{order}x").into_bytes()
    });
    cases.bad_text("half a document", no_json, document, |order| {
        order.as_bytes()[..order.len() / 2].to_vec()
    });
    cases.push("nothing", "", Expected::Refused(no_json, document));
    cases.push("one byte", "\0", Expected::Refused(no_json, document));
    let unclosed = "[".repeat(MAX_BYTES);
    cases.push("unclosed", unclosed, Expected::Refused(no_json, document));
    cases.bad_text("a byte too many", "too_large", document, |order| {
        (order.to_owned() + &" ".repeat(MAX_BYTES + 1 - order.len())).into_bytes()
    });
}

#[test]
fn each_message_is_stored_whole_or_kept_as_a_dead_letter() {
    let mut scene = Scene::new(1);
    let mut cases = Cases {
        scene: &mut scene,
        cases: Vec::new(),
    };
    texts(&mut cases);
    numbers_and_times(&mut cases);
    structures(&mut cases);
    let cases = cases.cases;
    for case in &cases {
        scene.send(Some(&case.name), Some(&case.message));
    }
    scene.flush();

    let daemon = scene.start_daemon();
    scene.wait_until_settled(i64::try_from(cases.len()).unwrap());
    let api = Api::start(&scene.database);
    wait_until("the api is ready", PATIENCE, || {
        api.get("/readyz").status == 200
    });
    for (offset, case) in cases.iter().enumerate() {
        let name = &case.name;
        let letters = scene.database.texts(&format!(
            "SELECT concat_ws('|', reason, encode(payload, 'hex'), detail) AS value
               FROM dead_letters WHERE \"offset\" = {offset}"
        ));
        match &case.expected {
            Expected::Stored(order) => {
                assert_eq!(letters.len(), 0, "{name}: {letters:?}");
                let answer = api.order(order["order_uid"].as_str().unwrap());
                assert_eq!(answer.status, 200, "{name}");
                assert_eq!(answer.json(), *order, "{name}");
            }
            Expected::Refused(reason, detail) => {
                let [letter] = &letters[..] else {
                    panic!("{name} was not refused");
                };
                let parts: Vec<&str> = letter.splitn(3, '|').collect();
                assert_eq!(parts[0], *reason, "{name}: {}", parts[2]);
                assert!(parts[1] == hex(&case.message), "{name}: not its bytes");
                assert!(parts[2].contains(detail), "{name}: {}", parts[2]);
            }
        }
    }
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    assert!(daemon.stop().success());
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[test]
fn keys_and_headers_are_no_reason_to_refuse_or_to_fail() {
    let mut scene = Scene::new(1);
    let orders: Vec<_> = (0..7).map(|n| scene.later(&format!("order-{n}"))).collect();
    let good: Vec<Vec<u8>> = orders
        .iter()
        .map(|order| serde_json::to_vec(order).unwrap())
        .collect();
    let thousand: Vec<RawHeader<'_>> = vec![(b"h", Some(b"\xff")); 1_000];
    let not_utf8: [RawHeader<'_>; 2] = [(b"fine", Some(b"1")), (b"\xff\xfe", None)];
    let flood: Vec<RawHeader<'_>> = vec![(b"", None); 50_000];
    let long_key = vec![b'k'; 500_000];
    let keys_and_headers: [(Option<&[u8]>, &[RawHeader<'_>]); 7] = [
        (None, &[]),
        (Some(b""), &[(b"", Some(b""))]),
        (Some(b"\0\xff"), &[(b"null", None)]),
        (Some(&long_key), &[]),
        (Some(b"k"), &thousand),
        (Some(b"k"), &not_utf8),
        (Some(b"k"), &flood),
    ];
    let (brokers, topic) = (scene.brokers().to_owned(), scene.topic.clone());
    for ((key, headers), order) in keys_and_headers.into_iter().zip(&good) {
        for value in [Some(&order[..]), Some(b"bad"), None] {
            let record = RawRecord {
                key,
                value,
                headers,
            };
            record.send(&brokers, &topic);
        }
    }

    let daemon = scene.start_daemon();
    scene.wait_until_settled(21);
    let stored = scene
        .database
        .texts("SELECT order_uid AS value FROM orders ORDER BY 1");
    let expected: Vec<&str> = orders
        .iter()
        .map(|order| order.order_uid.as_str())
        .collect();
    assert_eq!(stored, expected);
    let reasons = scene
        .database
        .texts("SELECT string_agg(reason, ' ' ORDER BY \"offset\") AS value FROM dead_letters");
    assert_eq!(reasons, [["not_json tombstone"; 7].join(" ")]);
    let letters = scene.database.texts(
        "SELECT concat_ws('|', octet_length(key), jsonb_array_length(headers), left(headers::text, 60)) AS value
           FROM dead_letters WHERE reason = 'tombstone' ORDER BY \"offset\"",
    );
    assert_eq!(
        letters,
        [
            "0|[]",
            r#"0|1|[{"key": "", "value": ""}]"#,
            r#"2|1|[{"key": "null", "value": null}]"#,
            "500000|0|[]",
            r#"1|1000|[{"key": "h", "value": "/w=="}, {"key": "h", "value": "/w==""#,
            r#"1|2|[{"key": "fine", "value": "MQ=="}, {"key": "ingestor.headers"#,
            r#"1|1001|[{"key": "", "value": null}, {"key": "", "value": null}, {"k"#,
        ]
    );
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    assert!(daemon.stop().success());
}

#[test]
fn gaps_that_compaction_leaves_are_passed() {
    const KEYS: usize = 20;
    const ROUNDS: usize = 10;
    // A broker of its own, because the cleaner of the shared one runs only every 15 s.
    let kafka = PrivateKafka::start_with(None, &[("log.cleaner.backoff.ms", "100")]).unwrap();
    let settings = [
        ("cleanup.policy", "compact"),
        // Every batch gets a segment of its own, and the last one is never cleaned.
        ("segment.ms", "1"),
        ("min.cleanable.dirty.ratio", "0.001"),
    ];
    let database = TestDatabase::create();
    let mut scene = Scene::with_servers(1, database, kafka.bootstrap(), &settings);
    let mut latest = scene.produce_orders(KEYS);
    for _ in 1..ROUNDS {
        latest = latest
            .iter()
            .map(|order| scene.later(order.order_uid.as_str()))
            .collect();
        scene.produce(&latest);
    }
    wait_until("records were compacted away", PATIENCE, || {
        offsets_left(&scene).len() <= 2 * KEYS
    });

    let _daemon = scene.start_daemon();
    scene.wait_until_settled(i64::try_from(KEYS * ROUNDS).unwrap());
    let stored = scene.database.texts(
        "SELECT concat_ws(' ', order_uid, payment_amount) AS value FROM orders ORDER BY order_uid",
    );
    let mut expected: Vec<String> = latest
        .iter()
        .map(|order| format!("{} {}", order.order_uid, order.payment.amount))
        .collect();
    expected.sort();
    assert_eq!(stored, expected);
    assert_eq!(scene.dead_letters(), 0);
}

/// The offsets of the records that partition 0 still holds.
fn offsets_left(scene: &Scene) -> Vec<i64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", scene.brokers())
        .set("group.id", "offsets-left")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let mut start = TopicPartitionList::new();
    start
        .add_partition_offset(&scene.topic, 0, Offset::Beginning)
        .unwrap();
    consumer.assign(&start).unwrap();
    let mut offsets = Vec::new();
    loop {
        match consumer.poll(PATIENCE).expect("the end is not reached") {
            Ok(message) => offsets.push(message.offset()),
            Err(KafkaError::PartitionEOF(_)) => return offsets,
            Err(error) => panic!("{error}"),
        }
    }
}
