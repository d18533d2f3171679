//! The real `ingestor` program against a real PostgreSQL and a real Kafka. One file a behaviour.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod bad_configuration;
mod checker_rules;
mod cut_connections;
mod database_outage;
mod end_to_end;
mod exactly_once;
mod isolation;
mod kills;
mod offsets;
mod planted_faults;
mod poison_messages;
mod rebalances;
mod support;
