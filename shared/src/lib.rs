//! What the two processes have in common, and the map of the workspace.
//!
//! ```text
//! producers -> Kafka "orders" -> ingestor -> PostgreSQL
//!                                              |  NOTIFY order_events, in the same transaction
//! browser, curl  <- HTTP -  api  <-------------+  LISTEN; the cache fills by reads of the primary
//! ```
//!
//! - [`order`]: the order in JSON and its rules; the only way from bytes to an order.
//! - [`db`]: connections, TLS, schema, rows, migrations.
//! - [`events`]: the contract between writers and caches.
//! - [`config`], [`telemetry`], [`shutdown`], [`backoff`], [`throttle`]: how a process of ours is set up, logs, stops,
//!   retries, and reports what goes on failing.
//!
//! Nothing stands here that only one process uses.

pub mod backoff;
pub mod config;
pub mod db;
pub mod events;
pub mod order;
pub mod shutdown;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod throttle;
