//! The real `ingestor` program against a real PostgreSQL and a real Kafka. One file a behaviour.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod bad_configuration;
mod database_outage;
mod end_to_end;
mod exactly_once;
mod metrics;
mod offsets;
mod poison_messages;
mod rebalances;
mod support;
