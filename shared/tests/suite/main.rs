//! What both processes share, against a real PostgreSQL. One file a behaviour.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod concurrent_indexes;
mod foreign_writes;
mod migrations;
mod migrations_under_load;
mod rights;
mod roundtrip;
mod startup;
mod tls;
