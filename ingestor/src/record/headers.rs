//! The headers of a refused message, in the form in which `dead_letters.headers` keeps them.
//!
//! Producers control the number of headers, their size and the bytes of their names, so everything is bounded.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rdkafka::message::{Header, Headers, Message};
use serde_json::{Value, json};

/// The most headers that are kept of a message. librdkafka accepts up to 100,000.
pub const MAX_HEADERS: usize = 1_000;
/// The most bytes of names and values that are kept of a message.
pub const MAX_HEADER_BYTES: usize = 256 * 1024;

/// The name of the header that replaces what could not be kept. Its value is the reason.
const NOTE: &str = "ingestor.headers";

/// The memory of one header in addition to its bytes: a JSON object with two members.
const HEADER_OVERHEAD_BYTES: usize = 512;

/// The memory of one header of a copied message in addition to its bytes.
const COPY_OVERHEAD_BYTES: usize = 64;

thread_local! {
    /// Whether this thread is about to catch a panic and report it in another way.
    static PANIC_IS_EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Silences the panics that are expected while reading headers: a producer could fill the log with them.
pub fn silence_expected_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !PANIC_IS_EXPECTED.get() {
            print(info);
        }
    }));
}

/// Returns the headers of a message as `[{"key", "value"}]`, with values in base64.
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

/// Returns the value of the first header with a name; `None` if there is none among those that are kept.
pub fn find<'a>(message: &'a impl Message, name: &str) -> Option<&'a [u8]> {
    let headers = message.headers()?;
    (0..headers.count().min(MAX_HEADERS))
        .filter_map(|index| read(headers, index))
        .find(|header| header.key == name)?
        .value
}

/// Estimates the memory that a message's headers take in a copy of the message.
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

/// Estimates the memory that headers take as JSON.
pub fn size_bytes(headers: &Value) -> usize {
    let text = |value: &Value| value.as_str().map_or(0, str::len);
    headers.as_array().map_or(0, |headers| {
        headers
            .iter()
            .map(|header| text(&header["key"]) + text(&header["value"]) + HEADER_OVERHEAD_BYTES)
            .sum()
    })
}

/// Reads one header. rdkafka panics if the header's name is not UTF-8.
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
