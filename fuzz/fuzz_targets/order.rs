//! Whatever is accepted as an order is written as JSON that is accepted, too, and is equal.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shared::order::{MAX_ORDER_BYTES, Order};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(order) = Order::decode(bytes) {
        let written = serde_json::to_vec(&order).expect("an order can be written");
        // Absent fields are written, too, so a large order may grow beyond the limit.
        if written.len() <= MAX_ORDER_BYTES {
            assert_eq!(Order::decode(&written).as_ref(), Ok(&order));
        }
    }
});
