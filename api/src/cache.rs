//! The cache of orders: ready-made answers that the database's events keep true.
//!
//! - [`core`]: who may store what; pure. [`counters`]: what happened.
//! - [`loader`]: readers; one load a key at a time. `batches`: loads that share a statement. [`warmup`]: loads that nobody
//!   asked for yet. `revalidation`: what was cached before the listener was away.
//! - [`listener`]: LISTEN, evictions, the proof of being alive. [`status`]: its state as readers and operators see it.
//!   [`audit`]: what no event told of.
//!   `clock`: time that goes on while the machine sleeps.
//!
//! Nothing here knows HTTP but the ready-made `ETag`.

pub mod audit;
mod batches;
mod clock;
pub mod core;
pub mod counters;
pub mod listener;
pub mod loader;
mod revalidation;
pub mod status;
pub mod warmup;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shared::db::models::VersionedOrder;
use shared::order::Order;
use warp::http::HeaderValue;

use crate::config::CacheSettings;
use crate::feed::Feed;
use crate::repository::Repository;
use audit::AuditStatus;
use batches::LoadQueue;
use core::{Core, Versioned};
use loader::{LoadSender, LoadWaiter};
use status::ListenerStatus;
use warmup::Warmup;

/// Room for the text of nearly every order, so that it is written without being moved.
const TYPICAL_TEXT_BYTES: usize = 2048;
/// What an entry takes beside its text: nodes of list and map, the count of its users.
const ENTRY_OVERHEAD_BYTES: usize = 192;
const ETAG_IS_VALUE: &str = "digits and quotes may stand in a header";

/// An order as it is answered.
#[derive(Clone, Debug)]
pub struct ReadyOrder {
    /// Its `ETag`, which is its version in quotes, then its JSON. In one piece: a large cache lies outside of the
    /// processor's own caches, and every further piece is waited for.
    text: Bytes,
    etag_bytes: usize,
    /// Its version.
    pub version: i64,
}

impl ReadyOrder {
    /// Makes the answer for an order.
    pub fn new(order: &Order, version: i64) -> Self {
        let mut text = Vec::with_capacity(TYPICAL_TEXT_BYTES);
        text.extend_from_slice(etag_text(version).as_bytes());
        let etag_bytes = text.len();
        serde_json::to_writer(&mut text, order)
            .expect("an order has string keys only and nothing that can fail to serialise");
        text.push(b'\n');
        Self {
            // A copy of just its size: the vector has room for as much again, and an entry may stay for days.
            text: Bytes::copy_from_slice(&text),
            etag_bytes,
            version,
        }
    }

    /// Its `ETag` and its JSON.
    pub fn into_parts(mut self) -> (HeaderValue, Bytes) {
        let etag = self.text.split_to(self.etag_bytes);
        let etag = HeaderValue::from_maybe_shared(etag).expect(ETAG_IS_VALUE);
        (etag, self.text)
    }

    fn weight_bytes(&self) -> usize {
        self.text.len() + ENTRY_OVERHEAD_BYTES
    }
}

impl Versioned for ReadyOrder {
    fn version(&self) -> i64 {
        self.version
    }
}

impl From<VersionedOrder> for ReadyOrder {
    fn from(versioned: VersionedOrder) -> Self {
        Self::new(&versioned.order, versioned.version)
    }
}

/// The `ETag` of a version.
pub fn version_etag(version: i64) -> HeaderValue {
    HeaderValue::try_from(etag_text(version)).expect(ETAG_IS_VALUE)
}

fn etag_text(version: i64) -> String {
    format!("\"{version}\"")
}

/// The cache with all that it needs to fill itself.
#[derive(Debug)]
pub struct OrderCache {
    core: Core<ReadyOrder, LoadWaiter, LoadSender>,
    repository: Repository,
    queue: LoadQueue,
    listener: ListenerStatus,
    audit: AuditStatus,
    lease: Duration,
    warmup: Warmup,
    feed: Arc<Feed>,
}

impl OrderCache {
    /// Makes an empty cache, which serves nothing before its listener is live.
    pub fn new(settings: &CacheSettings, repository: Repository) -> Self {
        Self {
            core: Core::new(settings.capacity),
            repository,
            queue: LoadQueue::new(),
            listener: ListenerStatus::new(),
            audit: AuditStatus::default(),
            lease: settings.lease,
            warmup: Warmup::default(),
            feed: Arc::default(),
        }
    }

    /// An order may have changed: the next reader asks the database.
    pub fn invalidate(&self, uid: &str) {
        self.core.invalidate(uid);
    }

    /// A reader was shown this version past the cache, or that there is no order: no older one is to follow.
    pub fn supersede(&self, uid: &str, version: Option<i64>) {
        self.core.supersede(uid, version);
    }

    /// Drops every entry.
    pub fn clear(&self) {
        self.core.clear();
    }

    /// The slots and their counters.
    pub fn core(&self) -> &Core<ReadyOrder, LoadWaiter, LoadSender> {
        &self.core
    }

    /// The listener's state.
    pub fn listener(&self) -> &ListenerStatus {
        &self.listener
    }

    /// What the auditor has seen.
    pub fn audit_status(&self) -> &AuditStatus {
        &self.audit
    }

    /// Who is told of what the listener hears.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// How old the listener's proof may be for hits to be served.
    pub fn lease(&self) -> Duration {
        self.lease
    }
}
