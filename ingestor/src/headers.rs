//! The headers of a refused message, as `dead_letters.headers` keeps them.
//!
//! Whoever may produce decides over them: their number, their size and the bytes of their names.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rdkafka::message::{Header, Headers, Message};
use serde_json::{Value, json};

/// Most headers that are kept of a message; librdkafka reads up to 100,000.
pub const MAX_HEADERS: usize = 1_000;
/// Most bytes of names and values that are kept of a message.
pub const MAX_HEADER_BYTES: usize = 256 * 1024;

/// Stands among the headers in place of what could not be kept, with the reason as its value.
const NOTE: &str = "ingestor.headers";

/// Memory of one header beyond its bytes: a JSON object with two members.
const HEADER_OVERHEAD_BYTES: usize = 512;

/// Memory of one header of a copied message beyond its bytes.
const COPY_OVERHEAD_BYTES: usize = 64;

thread_local! {
    /// Whether a panic on this thread is one that we catch and say in another way.
    static PANIC_IS_EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Has panics that are part of reading headers print nothing: a producer could fill the log with them.
pub fn print_no_expected_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !PANIC_IS_EXPECTED.get() {
            print(info);
        }
    }));
}

/// The headers of a message: `[{"key", "value"}]`, values in base64.
pub fn to_json(message: &impl Message) -> Value {
    let Some(headers) = message.headers() else {
        return Value::Array(Vec::new());
    };
    let mut kept = Vec::new();
    let mut bytes = 0;
    for index in 0..headers.count() {
        let Some(header) = read(headers, index) else {
            kept.push(note("a name is not UTF-8"));
            continue;
        };
        bytes += header.key.len() + header.value.map_or(0, <[u8]>::len);
        if index >= MAX_HEADERS || bytes > MAX_HEADER_BYTES {
            kept.push(note("the rest is too much"));
            break;
        }
        kept.push(header_json(header.key, header.value));
    }
    Value::Array(kept)
}

/// Memory that the headers of a message take in a copy of it, about.
pub fn copied_bytes(message: &impl Message) -> usize {
    message.headers().map_or(0, |headers| {
        (0..headers.count())
            .filter_map(|index| read(headers, index))
            .map(|header| {
                header.key.len() + header.value.map_or(0, <[u8]>::len) + COPY_OVERHEAD_BYTES
            })
            .sum()
    })
}

/// Memory that headers take as JSON, about.
pub fn size_bytes(headers: &Value) -> usize {
    let text = |value: &Value| value.as_str().map_or(0, str::len);
    headers.as_array().map_or(0, |headers| {
        headers
            .iter()
            .map(|header| text(&header["key"]) + text(&header["value"]) + HEADER_OVERHEAD_BYTES)
            .sum()
    })
}

/// One header; rdkafka panics where its name is not UTF-8.
fn read<H: Headers>(headers: &H, index: usize) -> Option<Header<'_, &[u8]>> {
    PANIC_IS_EXPECTED.set(true);
    let header = catch_unwind(AssertUnwindSafe(|| headers.try_get(index)));
    PANIC_IS_EXPECTED.set(false);
    header.ok().flatten()
}

fn note(reason: &str) -> Value {
    header_json(NOTE, Some(reason.as_bytes()))
}

fn header_json(key: &str, value: Option<&[u8]>) -> Value {
    json!({"key": key, "value": value.map(|bytes| BASE64_STANDARD.encode(bytes))})
}
