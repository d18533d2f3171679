//! Rewrites integral numbers of a JSON text as plain integers: `1817.0` and `1.817e3` as `1817`.
//!
//! RFC 8259 gives a number no form: what counts is its value. `serde_json` reads a number with a fraction or an exponent as
//! `f64`, which rounds. So the value is taken from the digits here.

/// More digits than the largest integer of an order has.
const MAX_DIGITS: usize = 20;

/// Returns the text with its integral numbers written plainly, or `None` if there is nothing to rewrite.
///
/// The text must be valid JSON. Other numbers are left as they are.
pub(super) fn with_plain_integers(text: &str) -> Option<String> {
    let mut written = String::new();
    let mut copied = 0;
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => at = end_of_string(bytes, at),
            b'-' | b'0'..=b'9' => {
                let end = end_of_number(bytes, at);
                if let Some(integer) = plain_integer(&text[at..end]) {
                    written.push_str(&text[copied..at]);
                    written.push_str(&integer);
                    copied = end;
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    (copied > 0).then(|| written + &text[copied..])
}

fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn end_of_number(bytes: &[u8], start: usize) -> usize {
    let length = bytes[start..]
        .iter()
        .take_while(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))
        .count();
    start + length
}

/// The plain form of a number that is an integer of at most [`MAX_DIGITS`] digits in another form.
fn plain_integer(number: &str) -> Option<String> {
    let (sign, unsigned) = match number.strip_prefix('-') {
        Some(unsigned) => ("-", unsigned),
        None => ("", number),
    };
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [whole, fraction].concat();
    let significant = digits.trim_start_matches('0');
    if significant.is_empty() {
        // Zero in any form, `-0` included, which serde_json reads as a fraction.
        return (number != "0").then(|| "0".to_owned());
    }
    let point = i64::try_from(whole.len())
        .ok()?
        .checked_add(exponent.parse().ok()?)?;
    let point = usize::try_from(point).ok().filter(|point| {
        // Leading zeros stand before the point, too.
        *point <= MAX_DIGITS + digits.len() - significant.len()
    })?;
    let fraction = digits.get(point..).unwrap_or_default();
    if fraction.bytes().any(|digit| digit != b'0') {
        return None;
    }
    let kept = &digits[..point.min(digits.len())];
    let padded = format!("{kept:0<point$}");
    let plain = [sign, padded.trim_start_matches('0')].concat();
    (plain != number).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integral_numbers_are_written_plainly_by_their_value() {
        for (number, plain) in [
            ("1817.0", "1817"),
            ("1.817e3", "1817"),
            ("1.817E+3", "1817"),
            ("18170e-1", "1817"),
            ("0.0018e5", "180"),
            ("-0", "0"),
            ("-0.0", "0"),
            ("0e999999999999", "0"),
            ("-1.0", "-1"),
            ("9007199254740991.000", "9007199254740991"),
            ("1e0", "1"),
        ] {
            assert_eq!(plain_integer(number).as_deref(), Some(plain), "{number}");
        }
    }

    #[test]
    fn what_is_no_integer_or_is_plain_stays() {
        for number in [
            "0",
            "7",
            "-7",
            "18.17",
            "1e-1",
            "9007199254740990.5",
            "1.00000000000000000001",
            "1e30",
            "1e99999999999999999999",
            "1e-99999999999999999999",
        ] {
            assert_eq!(plain_integer(number), None, "{number}");
        }
    }

    #[test]
    fn texts_are_left_alone() {
        let text = r#"{"a\"1.0":"2.0","b":[3.0,{"c\\":4e0}],"d":"\\"}"#;
        assert_eq!(
            with_plain_integers(text).unwrap(),
            r#"{"a\"1.0":"2.0","b":[3,{"c\\":4}],"d":"\\"}"#
        );
        assert_eq!(with_plain_integers(r#"{"a":1,"b":"1.0"}"#), None);
    }
}
