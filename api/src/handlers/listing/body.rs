//! The JSON of a page, made while its orders are read.

use std::ops::ControlFlow;

use serde::Serialize;
use warp::http::HeaderValue;
use warp::http::header::CONTENT_TYPE;
use warp::reply::Response;

/// The largest body of a page. One order is always on it, however large that order is.
const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
/// The part of it for what follows the orders: a cursor, or the ids of a hundred orders that are not on the page.
const END_BYTES: usize = 16 * 1024;
const BEGINNING: &[u8] = b"{\"orders\":[";

/// A body that takes orders for as long as it has room for them.
pub(super) struct PageBody {
    text: Vec<u8>,
}

impl PageBody {
    pub(super) fn new() -> Self {
        Self {
            text: BEGINNING.to_vec(),
        }
    }

    /// Adds an order, or breaks if it has no place.
    pub(super) fn add(&mut self, order: &impl Serialize) -> ControlFlow<()> {
        self.add_by(|text| {
            serde_json::to_writer(text, order)
                .expect("orders have only string keys, and serialising their fields cannot fail");
        })
    }

    /// Does the same with the JSON of an order.
    pub(super) fn add_text(&mut self, order: &[u8]) -> ControlFlow<()> {
        self.add_by(|text| text.extend_from_slice(order))
    }

    fn add_by(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> ControlFlow<()> {
        let end = self.text.len();
        let is_first = end == BEGINNING.len();
        if !is_first {
            self.text.push(b',');
        }
        write(&mut self.text);
        if is_first || self.text.len() <= MAX_BODY_BYTES - END_BYTES {
            return ControlFlow::Continue(());
        }
        self.text.truncate(end);
        ControlFlow::Break(())
    }

    /// Returns the answer, in which the members of `end` follow the orders.
    pub(super) fn response(self, end: &impl Serialize) -> Response {
        let mut text = self.text;
        let members = serde_json::to_vec(end)
            .expect("answers have only string keys and cannot fail to serialise");
        text.extend_from_slice(b"],");
        // Without the brace that opens the object.
        text.extend_from_slice(&members[1..]);
        text.push(b'\n');
        // The spare room of a large page would be held for as long as a slow client reads.
        text.shrink_to_fit();
        let mut response = Response::new(text.into());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}
