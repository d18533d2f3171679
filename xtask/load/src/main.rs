//! The load generator: orders into Kafka, as a shop's producers would send them. And the benchmarks.

mod benchmarks;
mod mock_broker;
mod orders;
mod producer;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

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
        target: TargetArgs,
    },
    /// Sends varied orders: new ones, updates of earlier ones, and invalid ones
    Produce {
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        mix: orders::Mix,
        /// Messages a second; 0 sends as fast as Kafka takes them
        #[arg(long, default_value_t = 0, value_name = "NUMBER")]
        rate: u32,
        /// How many messages; 0 never ends
        #[arg(long, default_value_t = 0, value_name = "NUMBER")]
        count: u64,
    },
    /// Drains a backlog with the ingestor, beside bare COPY (see `cargo xtask bench ingest`)
    ///
    /// For each number of partitions and each share of repeated orders: sends messages to a new topic, then measures in
    /// turn, each on a fresh database of the server that the DB_* variables name: COPY BINARY of the same rows over two
    /// connections, 1,000 orders a transaction; and `ingestor run` from its first claim to the last message stored. Prints
    /// messages a second and their ratio, CPU time of each process, the ingestor's peak memory, statements and commits.
    /// Fails where either has not stored every row.
    BenchIngest(benchmarks::ingest::Options),
    /// Asks the api for orders, beside nginx, bare hyper and pgbench (see `cargo xtask bench read`)
    ///
    /// Needs wrk, nginx and pgbench. Measures in turn: one cached order over 64 connections, of the api, of nginx from a
    /// file and of hyper from memory; orders that are not cached over 8 and 64, of the api and by pgbench; orders at random
    /// out of a small and a large cache. Prints requests a second, p50, p99 and ratios, memory of an entry and the rate of
    /// warm-up. Fails where the bytes differ, or where hits were misses or misses hits.
    BenchRead(benchmarks::read::Options),
    /// Serves one answer by hyper alone, a rival of the api in `bench-read`
    BareHyper {
        /// A file with head and body
        #[arg(long)]
        answer: PathBuf,
        /// The port
        #[arg(long)]
        port: u16,
    },
    /// Tells how soon the caches answer what was produced or committed (see `cargo xtask bench freshness`)
    ///
    /// Needs a durable PostgreSQL and a Kafka with nothing else to do. Runs the ingestor and two api on a database and a
    /// topic of its own, sends a paced stream of orders, and asks both api for a sample of them until they answer the new
    /// state. Prints p50, p99 and the longest time, beside those of a session that only LISTENs. Fails where a state does
    /// not come, comes wrong, or goes back.
    BenchFreshness(benchmarks::freshness::Options),
    /// Runs librdkafka's in-process broker and prints its address; for machines without Apache Kafka
    MockBroker {
        /// The topic to make
        #[arg(long, env = "KAFKA_TOPIC", default_value = "orders")]
        topic: String,
        /// Its partitions
        #[arg(long, default_value_t = 4, value_name = "NUMBER")]
        partitions: i32,
    },
}

/// Where orders are sent to; the variables are those of the services.
#[derive(Args, Debug)]
struct TargetArgs {
    /// Bootstrap servers
    #[arg(long, env = "KAFKA_BROKERS", default_value = "localhost:9092")]
    brokers: String,
    /// The topic
    #[arg(long, env = "KAFKA_TOPIC", default_value = "orders")]
    topic: String,
    /// Settings of librdkafka's: key=value, comma-separated
    #[arg(long, env = "KAFKA_CONFIG", default_value = "", hide_env_values = true)]
    kafka_config: String,
}

/// The api's: its rival among the commands must not lack it.
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
        Command::Sample { target } => producer::send_sample(&target.into()),
        Command::Produce {
            target,
            mix,
            rate,
            count,
        } => producer::produce(&target.into(), mix, rate, count),
        Command::BenchIngest(options) => benchmarks::ingest::run(&options),
        Command::BenchRead(options) => benchmarks::read::run(&options),
        Command::BenchFreshness(options) => benchmarks::freshness::run(&options),
        Command::BareHyper { answer, port } => benchmarks::read::serve_bare_hyper(&answer, port),
        Command::MockBroker { topic, partitions } => mock_broker::run(&topic, partitions),
    }
}

impl From<TargetArgs> for Target {
    fn from(args: TargetArgs) -> Self {
        Self {
            brokers: args.brokers,
            topic: args.topic,
            settings: args.kafka_config,
        }
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
