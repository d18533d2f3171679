//! The load generator, which sends orders to Kafka like the producers of a shop, and the benchmarks.
//!
//! | module | what it is for | uses |
//! |---|---|---|
//! | [`orders`] | the messages of a stream: new orders, updates, invalid ones | |
//! | [`producer`] | sends messages to Kafka, at a pace | [`orders`] |
//! | [`mock_broker`] | librdkafka's in-process broker, in place of Apache Kafka | |
//! | [`benchmarks`] | throughput and delays, compared with rivals in the same run | [`orders`], [`producer`] |

mod benchmarks;
mod mock_broker;
mod orders;
mod producer;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::producer::Target;

/// Sends orders to Kafka.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Sends the sample order
    Sample {
        #[command(flatten)]
        target: Target,
    },
    /// Sends varied orders: new ones, updates of earlier ones, and invalid ones
    Produce {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        mix: orders::Mix,
        /// Messages per second; 0 sends as fast as Kafka takes them
        #[arg(long, default_value_t = 0, value_name = "NUMBER")]
        rate: u32,
        /// How many messages to send; 0 never ends
        #[arg(long, default_value_t = 0, value_name = "NUMBER")]
        count: usize,
    },
    /// Measures how fast the ingestor drains a backlog, compared with bare COPY (see `cargo xtask bench ingest`)
    ///
    /// Sends messages to a new topic, for each number of partitions and each share of repeated orders. Then measures two
    /// sides in turn, each on a fresh database of the server that the DB_* variables name: COPY BINARY of the same rows
    /// over two connections with 1,000 orders per transaction, and `ingestor run` from its first claim to the last stored
    /// message. Prints messages per second and their ratio, the CPU time of each process, the ingestor's peak memory,
    /// statements and commits. Fails if a side has not stored every row.
    BenchIngest(benchmarks::ingest::Options),
    /// Measures how fast the api answers, compared with nginx, bare hyper and pgbench (see `cargo xtask bench read`)
    ///
    /// Needs wrk, nginx and pgbench. Measures in turn: one cached order over 64 connections, from the api, from nginx with
    /// a file and from hyper in memory; orders that are not cached over 8 and 64 connections, from the api and with
    /// pgbench; random orders from a small and a large cache. Prints requests per second, p50, p99 and ratios, the memory
    /// of an entry and the rate of the warm-up. Fails if the bytes differ, if hits were misses, or if misses were hits.
    BenchRead(benchmarks::read::Options),
    /// Serves one answer with hyper alone, as a rival of the api in `bench-read`
    BareHyper {
        /// A file with the header fields and the body
        #[arg(long)]
        answer: PathBuf,
        /// The port to listen on
        #[arg(long)]
        port: u16,
    },
    /// Measures how soon the caches answer with what was produced or committed (see `cargo xtask bench freshness`)
    ///
    /// Needs a durable PostgreSQL and a Kafka that have nothing else to do. Runs the ingestor and two api on a new database
    /// and a new topic, sends a stream of orders at a fixed pace, and requests some of them from both api until they answer
    /// with the new state. Prints p50, p99 and the longest time, compared with those of a session that only LISTENs. Fails
    /// if a state does not come, is wrong, or goes back.
    BenchFreshness(benchmarks::freshness::Options),
    /// Measures what a purge costs reads and ingestion beside it (see `cargo xtask bench purge`)
    BenchPurge(benchmarks::purge::Options),
    /// Runs librdkafka's in-process broker and prints its address, for machines without Apache Kafka
    MockBroker {
        /// The topic to create
        #[arg(long, env = "KAFKA_TOPIC", default_value = "orders")]
        topic: String,
        /// The number of its partitions
        #[arg(long, default_value_t = 4, value_name = "NUMBER")]
        partitions: i32,
    },
}

/// The allocator of the api. Its rival `bare-hyper` must have the same one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Sample { target } => producer::send_sample(&target),
        Command::Produce {
            target,
            mix,
            rate,
            count,
        } => producer::produce(&target, mix, rate, count),
        Command::BenchIngest(options) => benchmarks::ingest::run(&options),
        Command::BenchRead(options) => benchmarks::read::run(&options),
        Command::BenchFreshness(options) => benchmarks::freshness::run(&options),
        Command::BenchPurge(options) => benchmarks::purge::run(&options),
        Command::BareHyper { answer, port } => benchmarks::read::serve_bare_hyper(&answer, port),
        Command::MockBroker { topic, partitions } => mock_broker::run(&topic, partitions),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
