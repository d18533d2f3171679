//! Tests the api with a real PostgreSQL. The api runs in this process and is asked over TCP. There is one file per behaviour.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod audit;
mod audit_log;
mod authority;
mod both_paths;
mod cache_sync;
mod coherence_rules;
mod compression;
mod cors;
mod creating;
mod database_outage;
mod errors;
mod events;
mod export;
mod foreign_writes;
mod histories;
mod invalid_requests;
mod kept_connections;
mod list_tags;
mod listener;
mod listing;
mod malformed_requests;
mod memory;
mod named_orders;
mod openapi;
mod ops_port;
mod patching;
mod proxies;
mod proxy_samples;
mod rate_limit;
mod reading;
mod revalidation;
mod rights;
mod search;
mod server_limits;
mod sessions;
mod shared_statements;
mod startup;
mod stopping;
mod summaries;
mod support;
mod token_reload;
mod totals;
mod transcripts;
mod writing;
