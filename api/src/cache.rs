//! The cache of orders: ready-made answers that the database's events keep true.
//!
//! - [`core`]: who may store what; pure. [`counters`]: what happened.
//! - [`loader`]: readers; one load a key at a time. [`warmup`]: loads that nobody asked for yet.
//!   `revalidation`: what was cached before the listener was away.
//! - [`listener`]: LISTEN, evictions, the proof of being alive. [`status`]: its state as readers and operators see it.
//!   [`audit`]: what no event told of.
//!   `clock`: time that goes on while the machine sleeps.
//!
//! Nothing here knows HTTP but the ready-made `ETag`.

pub mod audit;
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
use core::{Core, Versioned};
use loader::{LoadSender, LoadWaiter};
use status::ListenerStatus;
use warmup::Warmup;

/// Room for the JSON of nearly every order, so that it is written without being moved.
const TYPICAL_JSON_BYTES: usize = 2048;
/// What an entry takes beside its JSON: key, header value, list and map nodes.
const ENTRY_OVERHEAD_BYTES: usize = 256;

/// An order as it is answered.
#[derive(Debug)]
pub struct ReadyOrder {
    /// Its JSON.
    pub body: Bytes,
    /// Its version, quoted.
    pub etag: HeaderValue,
    /// Its version.
    pub version: i64,
}

impl ReadyOrder {
    /// Makes the answer for an order.
    pub fn new(order: &Order, version: i64) -> Self {
        let mut json = Vec::with_capacity(TYPICAL_JSON_BYTES);
        serde_json::to_writer(&mut json, order)
            .expect("an order has string keys only and nothing that can fail to serialise");
        json.push(b'\n');
        Self {
            // A copy of just its size: the vector has room for as much again, and an entry may stay for days.
            body: Bytes::copy_from_slice(&json),
            etag: version_etag(version),
            version,
        }
    }

    fn weight_bytes(&self) -> usize {
        self.body.len() + ENTRY_OVERHEAD_BYTES
    }
}

impl Versioned for Arc<ReadyOrder> {
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
    HeaderValue::try_from(format!("\"{version}\""))
        .expect("digits and quotes may stand in a header")
}

/// The cache with all that it needs to fill itself.
#[derive(Debug)]
pub struct OrderCache {
    core: Core<Arc<ReadyOrder>, LoadWaiter, LoadSender>,
    repository: Repository,
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
    pub fn core(&self) -> &Core<Arc<ReadyOrder>, LoadWaiter, LoadSender> {
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
