//! Whatever is accepted as an order is written back as one that is accepted and equal.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shared::order::{MAX_ORDER_BYTES, Order};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(order) = Order::decode(bytes) {
        let written = serde_json::to_vec(&order).expect("an order can be written");
        // Fields that were left out are written, too: a large order may grow beyond the bound.
        if written.len() <= MAX_ORDER_BYTES {
            assert_eq!(Order::decode(&written).as_ref(), Ok(&order));
        }
    }
});
