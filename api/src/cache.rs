//! The cache of orders: ready-made answers that the events of the database keep true.
//!
//! - [`core`]: the rules, without I/O. `sync`: the locks and atomics of the core. [`counters`]: what happened.
//! - [`loader`]: readers, and one load per key at a time. `batches`: loads that share a statement. [`warmup`]: loads before
//!   anybody asks. `revalidation`: comparing the entries from before a loss of the listener.
//! - [`listener`]: LISTEN, evictions, and the proof. `proof`: what proves something. [`status`]: the listener's state, for
//!   readers and operators. [`audit`]: changes without an event. `clock`: time that includes the sleep of the machine.
//!
//! Nothing here knows HTTP except for the ready-made `ETag`.

pub mod audit;
mod batches;
mod clock;
pub mod core;
pub mod counters;
pub mod listener;
pub mod loader;
mod proof;
mod revalidation;
pub mod status;
mod sync;
pub mod warmup;

// Not a module of `core`, whose files `api/model` compiles as well.
#[cfg(test)]
#[path = "cache/core/tests.rs"]
mod core_tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shared::db::HistoryId;
use shared::db::models::VersionedOrder;
use shared::order::Order;
use warp::http::HeaderValue;

use crate::feed::Feed;
use crate::repository::{Repository, Revision};
use audit::AuditStatus;
use batches::LoadQueue;
use core::{Capacity, Core, Versioned};
use loader::{LoadSender, LoadWaiter};
use status::ListenerStatus;
use warmup::Warmup;

/// Room for the text of nearly every order, so that the text is not moved while it is written.
const TYPICAL_TEXT_BYTES: usize = 2048;
/// What an entry takes in addition to its text: nodes of a list and a map, and the count of its users.
const ENTRY_OVERHEAD_BYTES: usize = 192;
const ETAG_IS_VALUE: &str = "digits, letters, hyphens and quotes are allowed in a header";

/// A ready-made answer: an order with its revision.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadyOrder {
    /// The `ETag`, which is the revision in quotes, and then the JSON. Both are in one piece: a large cache lies outside the
    /// processor's own caches, and each further piece would be waited for.
    text: Bytes,
    etag_bytes: usize,
    /// The revision of the order.
    pub revision: Revision,
}

impl ReadyOrder {
    /// Makes the answer for an order.
    pub fn new(order: &Order, revision: Revision) -> Self {
        let mut text = Vec::with_capacity(TYPICAL_TEXT_BYTES);
        text.extend_from_slice(revision.etag().as_bytes());
        let etag_bytes = text.len();
        serde_json::to_writer(&mut text, order)
            .expect("an order has only string keys, and serialising its fields cannot fail");
        text.push(b'\n');
        Self {
            // A copy of exactly this size: the vector has spare room, and an entry may stay for days.
            text: Bytes::copy_from_slice(&text),
            etag_bytes,
            revision,
        }
    }

    /// Makes the answer for an order that was read in a history.
    pub fn read_in(history: HistoryId, versioned: &VersionedOrder) -> Self {
        let version = versioned.version;
        Self::new(&versioned.order, Revision { version, history })
    }

    /// Returns the `ETag` and the JSON.
    pub fn into_parts(mut self) -> (HeaderValue, Bytes) {
        let etag = self.text.split_to(self.etag_bytes);
        let etag = HeaderValue::from_maybe_shared(etag).expect(ETAG_IS_VALUE);
        (etag, self.text)
    }

    /// Returns the JSON, without the line's end.
    pub fn json(&self) -> &[u8] {
        self.text[self.etag_bytes..].trim_ascii_end()
    }

    fn weight_bytes(&self) -> usize {
        self.text.len() + ENTRY_OVERHEAD_BYTES
    }
}

impl Versioned for ReadyOrder {
    fn version(&self) -> i64 {
        self.revision.version
    }
}

/// Returns the `ETag` of a revision.
pub fn revision_etag(revision: Revision) -> HeaderValue {
    HeaderValue::try_from(revision.etag()).expect(ETAG_IS_VALUE)
}

/// The cache, with everything that it needs to fill itself.
#[derive(Debug)]
pub struct OrderCache {
    /// The entries and in-flight slots, with their counters.
    pub core: Core<ReadyOrder, LoadWaiter, LoadSender>,
    /// The listener's state.
    pub listener: ListenerStatus,
    /// What the auditor has seen.
    pub audit_status: AuditStatus,
    /// The live feed. The listener tells it of every change after it has told the core.
    pub feed: Arc<Feed>,
    repository: Repository,
    queue: LoadQueue,
    warmup: Warmup,
}

impl OrderCache {
    /// Makes an empty cache. It serves nothing before its listener is live, and no hit while the listener's proof is older than
    /// `lease`.
    pub fn new(capacity: Capacity, lease: Duration, repository: Repository) -> Self {
        Self {
            core: Core::new(capacity),
            listener: ListenerStatus::new(lease),
            audit_status: AuditStatus::default(),
            feed: Arc::default(),
            repository,
            queue: LoadQueue::new(),
            warmup: Warmup::default(),
        }
    }
}
