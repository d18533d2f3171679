//! Finds the orders and customers that a message names which is no valid order.

use serde_json::Value;

/// The most characters of an `order_uid` and of a `customer_id`.
const MAX_UID_CHARS: usize = 64;
const MAX_CUSTOMER_CHARS: usize = 256;

/// What a message names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Texts that are `order_uid`s, or may be.
    pub orders: Vec<String>,
    /// Texts that are `customer_id`s, or may be.
    pub customers: Vec<String>,
    /// Whether the value is not JSON. Then every word of it is among the texts.
    pub is_guess: bool,
}

/// Returns what a message names by its key and its value.
///
/// In JSON the members `order_uid` and `customer_id` count, however deep they are, and in JSON within a text as well. In
/// anything else every word counts that may be one.
pub fn find(key: Option<&[u8]>, payload: Option<&[u8]>) -> Names {
    let mut names = Names::default();
    if let Some(key) = key.and_then(|key| str::from_utf8(key).ok()) {
        names.orders.push(key.to_owned());
    }
    let payload = payload.unwrap_or_default();
    match parse(payload) {
        Some((before, value)) => {
            names.add_words(before);
            names.add_members(&value);
        }
        None => {
            names.is_guess = true;
            names.add_words(payload);
        }
    }
    for texts in [&mut names.orders, &mut names.customers] {
        texts.sort_unstable();
        texts.dedup();
    }
    names
}

/// Parses JSON, and returns what precedes it as well: a byte order mark, or the Schema Registry's header.
fn parse(payload: &[u8]) -> Option<(&[u8], Value)> {
    let start = payload
        .iter()
        .position(|byte| matches!(byte, b'{' | b'['))?;
    let (before, json) = payload.split_at(start);
    Some((before, serde_json::from_slice(json).ok()?))
}

impl Names {
    fn add_members(&mut self, value: &Value) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    match name.as_str() {
                        "order_uid" => self.orders.extend(text_of(value)),
                        "customer_id" => self.customers.extend(text_of(value)),
                        _ => {}
                    }
                    self.add_members(value);
                }
            }
            Value::Array(elements) => {
                for element in elements {
                    self.add_members(element);
                }
            }
            Value::String(text) => {
                if let Some((_, inner)) = parse(text.as_bytes()) {
                    self.add_members(&inner);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Adds words, and texts between quotation marks. UTF-16 becomes readable without its zeros.
    fn add_words(&mut self, payload: &[u8]) {
        let bytes: Vec<u8> = payload.iter().copied().filter(|byte| *byte != 0).collect();
        let text = String::from_utf8_lossy(&bytes);
        let is_of_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let words = text.split(|c| !is_of_word(c));
        let words = words.filter(|word| (1..=MAX_UID_CHARS).contains(&word.len()));
        for word in words {
            self.orders.push(word.to_owned());
            self.customers.push(word.to_owned());
        }
        let quoted = text
            .split('"')
            .filter(|part| part.chars().any(char::is_alphanumeric));
        let short = quoted.filter(|part| part.chars().nth(MAX_CUSTOMER_CHARS).is_none());
        self.customers.extend(short.map(str::to_owned));
    }
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(payload: &[u8]) -> (Vec<String>, Vec<String>) {
        let names = find(None, Some(payload));
        (names.orders, names.customers)
    }

    #[test]
    fn members_of_json_are_found_wherever_they_are() {
        for payload in [
            r#"{"order_uid":"u1","customer_id":"c 1","locale":"x"}"#,
            r#"{"schema":{},"payload":{"order_uid":"u1","customer_id":"c 1"}}"#,
            r#"[{"order_uid":"u1"},{"customer_id":"c 1"}]"#,
            "\0\0\0\0\u{7}{\"order_uid\":\"u1\",\"customer_id\":\"c 1\"}",
            "\u{feff}{\"order_uid\":\"u1\",\"customer_id\":\"c 1\"}",
            r#"{"value":"{\"order_uid\":\"u1\",\"customer_id\":\"c 1\"}"}"#,
        ] {
            let expected = (vec!["u1".to_owned()], vec!["c 1".to_owned()]);
            assert_eq!(names(payload.as_bytes()), expected, "{payload}");
        }
        assert_eq!(
            names(br#"{"order_uid":7,"customer_id":null}"#),
            (vec!["7".to_owned()], Vec::new())
        );
        assert_eq!(names(br#"{"locale":"u1"}"#), (Vec::new(), Vec::new()));
    }

    #[test]
    fn in_anything_else_every_word_counts() {
        let utf_16: Vec<u8> = (r#"{"order_uid":"u1""#.encode_utf16())
            .flat_map(u16::to_le_bytes)
            .collect();
        for payload in [
            &b"{\"order_uid\": \"u1\", \"customer_id\": \"c 1\", \"del"[..],
            b"u1;\"c 1\"",
            b"\x00\xffu1\x02\"c 1\"",
            &utf_16,
        ] {
            let (orders, customers) = names(payload);
            assert!(orders.contains(&"u1".to_owned()), "{orders:?}");
            assert!(
                customers.contains(&"c 1".to_owned()) || payload == utf_16,
                "{customers:?}"
            );
        }
    }

    #[test]
    fn the_key_may_be_an_order() {
        assert_eq!(find(Some(b"u1"), None).orders, ["u1"]);
        assert_eq!(find(Some(b"\xff"), None).orders, [""; 0]);
    }
}
