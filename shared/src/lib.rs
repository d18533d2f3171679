//! What the two processes have in common, and the map of the workspace.
//!
//! ```text
//! producers -> Kafka "orders" -> ingestor -> PostgreSQL
//!                                              |  NOTIFY order_events, in the same transaction
//! browser, curl  <- HTTP -  api  <-------------+  LISTEN; the cache fills by reads of the primary
//! ```
//!
//! Only what both processes use belongs here. A module uses only modules that stand above it:
//!
//! | module | what it is for | uses |
//! |---|---|---|
//! | [`backoff`] | random waits between attempts | |
//! | [`throttle`] | limits repeated reports in the log | |
//! | [`shutdown`] | stops the process on a signal | |
//! | [`files`] | the limit on file descriptors | |
//! | [`server`] | the HTTP server around what answers the requests | [`throttle`], [`files`] |
//! | [`order`] | the order as JSON, and its rules | |
//! | [`events`] | the contract between writers and caches | |
//! | [`config`] | the shared settings, and how settings are read | [`order`] |
//! | [`telemetry`] | sets up the log | [`config`] |
//! | [`traces`] | spans, and their way to an OpenTelemetry collector | [`throttle`], [`config`] |
//! | [`db`] | connections, TLS, pool, migrations, schema, rows, the upsert, the ledger of removed orders | [`backoff`], [`throttle`], [`order`], [`config`] |
//! | [`commands`] | what both programs can do besides their work | |
//! | [`doctor`] | checks of what a program needs: machine and database | [`files`], [`config`], [`db`], [`commands`] |
//! | [`testing`] | helpers for tests (feature `testing`) | [`order`], [`events`], [`config`], [`db`] |

pub mod backoff;
pub mod commands;
pub mod config;
pub mod db;
pub mod doctor;
pub mod events;
pub mod files;
pub mod order;
pub mod server;
pub mod shutdown;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod throttle;
pub mod traces;
