//! If a cursor is accepted, it is exactly the cursor that we would make for its place in the list.

#![no_main]

use api::handlers::listing::{decode_cursor, encode_cursor};
use api::repository::{OrderFilter, View};
use chrono::DateTime;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, Option<String>, i64, &str)| {
    let (cursor, customer_id, micros, uid) = input;
    let filter = OrderFilter {
        customer_id,
        ..OrderFilter::default()
    };
    if let Ok(position) = decode_cursor(cursor, &filter, View::Whole) {
        assert_eq!(encode_cursor(&position, &filter, View::Whole), cursor);
    }
    let time = DateTime::from_timestamp_micros(micros);
    if let (Some(time), Ok(uid)) = (time, api::http::request::order_uid(uid)) {
        let position = (time, uid.to_string());
        let cursor = encode_cursor(&position, &filter, View::Whole);
        assert_eq!(decode_cursor(&cursor, &filter, View::Whole), Ok(position));
        let other = OrderFilter {
            track_number: Some("other".to_owned()),
            ..filter
        };
        assert!(decode_cursor(&cursor, &other, View::Whole).is_err());
    }
});
