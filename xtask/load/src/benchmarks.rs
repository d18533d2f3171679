//! Benchmarks. Their results are ratios to a named rival in the same run, because machines differ and are not always idle.
//!
//! - [`ingest`]: the ingestor drains a backlog in Kafka; the rival writes the same rows with COPY.
//! - [`read`]: the api answers with orders over HTTP; the rivals are nginx and bare hyper with the same bytes, and pgbench.
//! - [`freshness`]: how soon the caches answer with what was produced or committed; the rival is a session that LISTENs.
//! - [`purge`]: what a purge costs the reads and the ingestion beside it; the rival is one DELETE.
//!
//! `cargo xtask bench` starts the servers. Each table begins and ends with the load average of the machine: if others
//! compile at the same time, the figures of single rounds mean little. Nothing here asserts a time. It is only asserted that
//! both sides have done the whole work.

mod beside;
mod clock;
mod connection;
mod copy;
pub(crate) mod freshness;
pub(crate) mod ingest;
pub(crate) mod purge;
pub(crate) mod read;
mod services;
mod times;
mod topic;
mod traces;

use anyhow::anyhow;
use clap::Args;
use servers::proc;

/// Makes the triggers of a session's changes emit the events. Our own connections promise to emit them themselves.
const AS_FOREIGN_WRITER: &str = "SET orders.emits = 'off'";

/// The Kafka to use, and the processes of private servers. `cargo xtask bench` passes them.
#[derive(Args, Debug)]
struct ServerOptions {
    /// Bootstrap servers of Kafka
    #[arg(long, env = "KAFKA_BROKERS")]
    brokers: String,
    /// Process id of a private broker, whose CPU time is shown
    #[arg(long, value_name = "PID")]
    broker_pid: Option<u32>,
    /// Process id of the first process of a private PostgreSQL, whose CPU time is shown
    #[arg(long, value_name = "PID")]
    postgres_pid: Option<u32>,
}

/// Returns what a thread has returned; a panic becomes an error.
fn joined<T>(outcome: std::thread::Result<anyhow::Result<T>>) -> anyhow::Result<T> {
    outcome.map_err(|_| anyhow!("a thread of the benchmark panicked"))?
}

fn print_load_average() {
    // Only Linux has it. The figures are useful without it too.
    if let Ok([one, five, fifteen]) = proc::load_averages() {
        println!("load average {one:.2} {five:.2} {fifteen:.2}");
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
