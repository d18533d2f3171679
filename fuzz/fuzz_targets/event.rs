//! A notification is an event of the contract or is refused. What we write ourselves is read back equal.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shared::events::{MAX_PAYLOAD_BYTES, encode, parse};
use shared::order::OrderUid;

fuzz_target!(|payload: &str| {
    let Ok(event) = parse(payload) else { return };
    if event.uids.iter().all(|uid| OrderUid::is_valid(uid)) {
        let payloads = encode(event.operation, event.uids.iter().map(String::as_str));
        let mut uids = Vec::new();
        for payload in payloads {
            assert!(payload.len() <= MAX_PAYLOAD_BYTES);
            let read = parse(&payload).expect("what we write can be read");
            assert_eq!(read.operation, event.operation);
            uids.extend(read.uids);
        }
        assert_eq!(uids, event.uids);
    }
});
