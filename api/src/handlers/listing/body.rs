//! The JSON of a page, made while its orders are read, and its `ETag`.
//!
//! The tag is weak, because the body may be sent compressed. It hashes the revisions of the orders, which stand for their
//! content, and what follows them. So it changes whenever the body does, and the body itself need not be hashed.

use std::hash::Hasher;
use std::ops::ControlFlow;

use fnv::FnvHasher;
use serde::Serialize;
use warp::http::header::{CONTENT_TYPE, ETAG};
use warp::http::{HeaderValue, Method, StatusCode};
use warp::reply::Response;

use crate::http::request::Head;
use crate::http::{conditional, empty};
use crate::repository::{Revision, View};

/// The largest body of a page. One order is always on it, however large that order is.
const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
/// The part of it for what follows the orders: a cursor, or the ids of a hundred orders that are not on the page.
const END_BYTES: usize = 16 * 1024;
const BEGINNING: &[u8] = b"{\"orders\":[";

/// A body that takes orders for as long as it has room for them.
pub(super) struct PageBody {
    text: Vec<u8>,
    tag: FnvHasher,
}

impl PageBody {
    pub(super) fn new(view: View) -> Self {
        let mut tag = FnvHasher::default();
        tag.write_u8(view as u8);
        Self {
            text: BEGINNING.to_vec(),
            tag,
        }
    }

    /// Adds an order with this revision, or breaks if it has no place.
    pub(super) fn add(&mut self, revision: Revision, order: &impl Serialize) -> ControlFlow<()> {
        self.add_by(revision, |text| {
            serde_json::to_writer(text, order)
                .expect("orders have only string keys, and serialising their fields cannot fail");
        })
    }

    /// Does the same with the JSON of an order.
    pub(super) fn add_text(&mut self, revision: Revision, order: &[u8]) -> ControlFlow<()> {
        self.add_by(revision, |text| text.extend_from_slice(order))
    }

    fn add_by(&mut self, revision: Revision, write: impl FnOnce(&mut Vec<u8>)) -> ControlFlow<()> {
        let end = self.text.len();
        let is_first = end == BEGINNING.len();
        if !is_first {
            self.text.push(b',');
        }
        write(&mut self.text);
        if is_first || self.text.len() <= MAX_BODY_BYTES - END_BYTES {
            let Revision { version, history } = revision;
            self.tag.write(&version.to_be_bytes());
            self.tag.write(&history.0.to_be_bytes());
            return ControlFlow::Continue(());
        }
        self.text.truncate(end);
        ControlFlow::Break(())
    }

    /// Returns the answer, in which the members of `end` follow the orders. A client that has it already gets 304.
    ///
    /// The answer to a POST has no tag: it would stand for something else than what the path names.
    pub(super) fn response(mut self, head: &Head, end: &impl Serialize) -> Response {
        let members = serde_json::to_vec(end)
            .expect("answers have only string keys and cannot fail to serialise");
        self.tag.write(&members);
        let etag = format!("W/\"{:016x}\"", self.tag.finish());
        let has_tag = head.method != Method::POST;
        let mut response = if has_tag && conditional::is_known(&head.headers, &etag) {
            empty(StatusCode::NOT_MODIFIED)
        } else {
            json(self.text, &members)
        };
        if has_tag {
            let etag = HeaderValue::try_from(etag).expect("digits are allowed in a header");
            response.headers_mut().insert(ETAG, etag);
        }
        response
    }
}

fn json(mut text: Vec<u8>, members: &[u8]) -> Response {
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
