//! What is published of a letter: all of it, or as much as a topic of a small limit takes.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chrono::SecondsFormat;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::BaseRecord;

use crate::config::APPLICATION_NAME;
use crate::dead_letters::stored::StoredLetter;
use crate::record::{Consumer, Reason};

/// How much of a letter is tried, in bytes, after the topic has refused all of it as too large.
const BOUNDS: [usize; 11] = [
    512 << 10,
    256 << 10,
    128 << 10,
    64 << 10,
    32 << 10,
    16 << 10,
    8 << 10,
    4 << 10,
    2 << 10,
    1 << 10,
    0,
];

/// A letter, and how much of it is published.
pub(super) struct Outgoing<'a> {
    letter: &'a StoredLetter,
    own_headers: Vec<OwnHeader<'a>>,
    /// The most bytes of key, own headers, detail and payload together.
    bound: usize,
}

/// A header of the message itself.
struct OwnHeader<'a> {
    key: &'a str,
    value: Option<Vec<u8>>,
}

impl OwnHeader<'_> {
    fn size_bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Vec::len)
    }
}

/// How much of each part is published: a number of headers, and bytes of the rest.
struct Shares {
    key: usize,
    headers: usize,
    detail: usize,
    payload: usize,
}

impl<'a> Outgoing<'a> {
    /// The letter within a bound that [`Self::shrink`] has returned before; whole without one.
    pub(super) fn new(letter: &'a StoredLetter, bound: Option<usize>) -> Self {
        let own_header = |header: &'a serde_json::Value| {
            let value = header["value"].as_str();
            Some(OwnHeader {
                key: header["key"].as_str()?,
                value: value.and_then(|value| BASE64_STANDARD.decode(value).ok()),
            })
        };
        let headers = letter.headers.as_array().into_iter().flatten();
        Self {
            letter,
            own_headers: headers.filter_map(own_header).collect(),
            bound: bound.unwrap_or(usize::MAX),
        }
    }

    pub(super) fn id(&self) -> i64 {
        self.letter.summary.id
    }

    /// Makes it smaller, and returns the new bound; `None` if nothing is left to cut.
    pub(super) fn shrink(&mut self) -> Option<usize> {
        let size_bytes = length(self.letter.key.as_ref())
            + length(self.letter.payload.as_ref())
            + self.letter.summary.detail.len()
            + self
                .own_headers
                .iter()
                .map(OwnHeader::size_bytes)
                .sum::<usize>();
        let limit = self.bound.min(size_bytes);
        self.bound = BOUNDS.into_iter().find(|bound| *bound < limit)?;
        Some(self.bound)
    }

    /// Returns what is sent to the topic. The time is the present one: the topic can refuse an old time or a time to come, and
    /// its retention would delete an old letter at once.
    pub(super) fn record<'b>(
        &'b self,
        topic: &'b str,
        consumer: &Consumer,
    ) -> BaseRecord<'b, [u8], [u8], usize> {
        let shares = self.shares();
        let id = usize::try_from(self.id()).unwrap_or_default();
        let mut record = BaseRecord::with_opaque_to(topic, id);
        record.key = self.letter.key.as_deref().map(|key| &key[..shares.key]);
        let payload = self.letter.payload.as_deref();
        record.payload = payload.map(|payload| &payload[..shares.payload]);
        record.headers = Some(self.headers(&shares, consumer));
        record
    }

    /// Key, headers and detail get a quarter of the bound each at most, and the payload gets the rest.
    fn shares(&self) -> Shares {
        let quarter = self.bound / 4;
        let key = length(self.letter.key.as_ref()).min(quarter);
        let (mut headers, mut header_bytes) = (0, 0);
        for header in &self.own_headers {
            if header_bytes + header.size_bytes() > quarter {
                break;
            }
            headers += 1;
            header_bytes += header.size_bytes();
        }
        let detail = self.letter.summary.detail.floor_char_boundary(quarter);
        let rest = self.bound - key - header_bytes - detail;
        Shares {
            key,
            headers,
            detail,
            payload: length(self.letter.payload.as_ref()).min(rest),
        }
    }

    /// The message's own headers, those of Kafka Connect (where the message came from and what was wrong with it), its time,
    /// and what is cut.
    fn headers(&self, shares: &Shares, consumer: &Consumer) -> OwnedHeaders {
        let summary = &self.letter.summary;
        let mut headers = OwnedHeaders::new();
        for header in &self.own_headers[..shares.headers] {
            headers = headers.insert(Header {
                key: header.key,
                value: header.value.as_deref(),
            });
        }
        // A constraint rejects the order when its row is written. Every other fault is found when the value is read.
        let stage = if summary.reason == <&str>::from(Reason::RefusedByDatabase) {
            "TASK_PUT"
        } else {
            "VALUE_CONVERTER"
        };
        let (partition, offset) = (summary.partition.to_string(), summary.offset.to_string());
        for (name, value) in [
            ("topic", summary.topic.as_str()),
            ("partition", &partition),
            ("offset", &offset),
            ("connector.name", &consumer.group_id),
            ("task.id", "0"),
            ("stage", stage),
            ("class.name", APPLICATION_NAME),
            ("exception.class.name", &summary.reason),
            ("exception.message", &summary.detail[..shares.detail]),
        ] {
            headers = insert(headers, &format!("__connect.errors.{name}"), value);
        }
        if let Some(time) = summary.message_timestamp {
            let time = time.to_rfc3339_opts(SecondsFormat::Millis, true);
            headers = insert(headers, "orders.timestamp", &time);
        }
        for (name, size) in self.cut(shares) {
            headers = insert(headers, name, &size.to_string());
        }
        headers
    }

    /// The headers that tell what is not published whole, with the number or size in bytes of the whole.
    fn cut(&self, shares: &Shares) -> Vec<(&'static str, i64)> {
        let summary = &self.letter.summary;
        let key = length(self.letter.key.as_ref());
        let parts = [
            ("orders.key.size", shares.key, key),
            (
                "orders.headers.count",
                shares.headers,
                self.own_headers.len(),
            ),
            ("orders.detail.size", shares.detail, summary.detail.len()),
        ];
        // The size of the message's payload, of which the table may not have all either.
        let payload = ("orders.payload.size", shares.payload, summary.payload_size);
        let parts = parts.map(|(name, kept, whole)| (name, kept, signed(whole)));
        (parts.into_iter().chain([payload]))
            .filter(|(_, kept, whole)| signed(*kept) < *whole)
            .map(|(name, _, whole)| (name, whole))
            .collect()
    }
}

fn length(bytes: Option<&Vec<u8>>) -> usize {
    bytes.map_or(0, Vec::len)
}

fn signed(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

fn insert(headers: OwnedHeaders, key: &str, value: &str) -> OwnedHeaders {
    headers.insert(Header {
        key,
        value: Some(value),
    })
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use serde_json::{Value, json};

    use super::*;
    use crate::dead_letters::stored::LetterSummary;
    use crate::record::{Incarnation, Offset, Partition};

    fn letter(key: usize, payload: usize, headers: Value, detail: &str) -> StoredLetter {
        let time = DateTime::UNIX_EPOCH;
        StoredLetter {
            summary: LetterSummary {
                id: 1,
                topic: "orders".to_owned(),
                incarnation: Incarnation(0),
                partition: Partition(0),
                offset: Offset(0),
                payload_size: i64::try_from(payload).unwrap(),
                message_timestamp: None,
                reason: "not_json".to_owned(),
                detail: detail.to_owned(),
                state: "new".to_owned(),
                created_at: time,
                updated_at: time,
                relayed_at: None,
                relay_error: None,
                blanked_at: None,
                blanked_why: None,
            },
            key: Some(vec![b'k'; key]),
            payload: Some(vec![b'p'; payload]),
            headers,
        }
    }

    /// Kept bytes of key and payload, number of headers, bytes of the detail.
    fn kept(outgoing: &Outgoing<'_>) -> (usize, usize, usize, usize) {
        let shares = outgoing.shares();
        (shares.key, shares.payload, shares.headers, shares.detail)
    }

    #[test]
    fn only_what_is_large_is_cut_and_the_cut_parts_are_named() {
        let headers = json!([{"key": "trace", "value": "QUJD"}]);
        let huge_key = letter(900_000, 100, headers, "bad");
        let mut outgoing = Outgoing::new(&huge_key, None);
        assert_eq!(kept(&outgoing), (900_000, 100, 1, 3));
        assert_eq!(outgoing.cut(&outgoing.shares()), []);
        assert_eq!(outgoing.shrink(), Some(512 << 10));
        assert_eq!(kept(&outgoing), (128 << 10, 100, 1, 3));
        let named = [("orders.key.size", 900_000)];
        assert_eq!(outgoing.cut(&outgoing.shares()), named);
    }

    #[test]
    fn a_letter_is_cut_until_nothing_is_left_and_never_within_a_character() {
        let whole = letter(
            10,
            5_000,
            json!([{"key": "h", "value": null}]),
            &"\u{e9}".repeat(700),
        );
        let mut outgoing = Outgoing::new(&whole, None);
        let mut bounds = Vec::new();
        while let Some(bound) = outgoing.shrink() {
            bounds.push(bound);
            let (key, payload, headers, detail) = kept(&outgoing);
            assert!(key + payload + headers + detail <= bound, "{bound}");
            assert!(whole.summary.detail.is_char_boundary(detail));
        }
        assert_eq!(bounds, [4 << 10, 2 << 10, 1 << 10, 0]);
        assert_eq!(kept(&outgoing), (0, 0, 0, 0));
        let named: Vec<&str> = (outgoing.cut(&outgoing.shares()).iter())
            .map(|(name, _)| *name)
            .collect();
        let all = [
            "orders.key.size",
            "orders.headers.count",
            "orders.detail.size",
            "orders.payload.size",
        ];
        assert_eq!(named, all);
        // A later page continues where the former one has stopped.
        assert_eq!(Outgoing::new(&whole, Some(2 << 10)).shrink(), Some(1 << 10));
    }
}
