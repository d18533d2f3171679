//! The real `ingestor` program against a real PostgreSQL and a real Kafka. One file per behaviour.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod announcements;
mod bad_configuration;
mod cancelled_migrations;
mod checker_rules;
mod completions;
mod cut_connections;
mod cut_logs;
mod damaged_log;
mod database_outage;
mod dead_letter_commands;
mod dead_letter_relay;
mod doctor;
mod end_to_end;
mod exactly_once;
mod guard_model;
mod held_up_partitions;
mod hostile_messages;
mod import;
mod incidents;
mod isolation;
mod kills;
mod life_of_data;
mod livez;
mod metrics;
mod mirror;
mod new_history;
mod offset_commands;
mod offsets;
mod oidc;
mod ops_port;
mod planted_faults;
mod poison_messages;
mod rebalances;
mod removed_orders;
mod sick_database;
mod support;
mod traces;
mod write_paths;
