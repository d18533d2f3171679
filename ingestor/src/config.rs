//! Command line and environment of the ingestor.

mod dead_letters;
mod kafka;
mod offsets;

use std::net::IpAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use shared::config::{
    DatabaseArgs, DatabaseSettings, LogSettings, ShownSettings, ShutdownSettings,
};

pub use dead_letters::{DeadLettersCommand, DecideArgs, FilterArgs};
use kafka::KafkaArgs;
pub use kafka::KafkaSettings;
pub use offsets::{OffsetsCommand, Start, Which};

/// Stores the orders of a Kafka topic in PostgreSQL, each exactly once
#[derive(Parser, Debug)]
#[command(name = "ingestor", version, subcommand_required = false)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Print the effective settings, secrets hidden, and end
    #[arg(long)]
    pub check_config: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// What the program can do.
#[derive(Subcommand, Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Run the daemon
    Run {
        /// Refuse to start where migrations are pending, in place of running them
        #[arg(long)]
        no_migrate: bool,
    },
    /// Bring the database's schema up to date
    Migrate,
    /// Look at the offsets of the group and topic, and mend them
    #[command(subcommand)]
    Offsets(OffsetsCommand),
    /// Look at messages that were refused, and decide on them
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
}

#[derive(Args, Debug)]
struct SettingsArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    kafka: KafkaArgs,
    #[command(flatten)]
    ingest: IngestArgs,
    #[command(flatten)]
    log: LogSettings,
    #[command(flatten)]
    shutdown: ShutdownSettings,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Ingestion")]
struct IngestArgs {
    /// Most records of a batch, 1..=10000
    #[arg(long, env = "BATCH_MAX_RECORDS", default_value_t = 1000, value_name = "BATCH_MAX_RECORDS",
          value_parser = clap::value_parser!(u32).range(1..=10_000), global = true)]
    batch_max_records: u32,
    /// Most milliseconds that a record waits for its batch to fill, 0..=10000
    #[arg(long, env = "BATCH_MAX_AGE_MS", default_value_t = 10, value_name = "BATCH_MAX_AGE_MS",
          value_parser = clap::value_parser!(u64).range(0..=10_000), global = true)]
    batch_max_age_ms: u64,
    /// Bad messages in a row beyond which a partition halts, 1..=1000000000
    #[arg(long, env = "DEAD_LETTER_MAX_CONSECUTIVE", default_value_t = 1000, value_name = "DEAD_LETTER_MAX_CONSECUTIVE",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000_000), global = true)]
    dead_letter_max_consecutive: u32,
    /// Memory of the whole process to aim at, in MiB, 64..=65536
    #[arg(long, env = "INGEST_MEMORY_MB", default_value_t = 96, value_name = "INGEST_MEMORY_MB",
          value_parser = clap::value_parser!(u64).range(64..=65_536), global = true)]
    ingest_memory_mb: u64,
    /// Address of the port for operators: /livez /readyz /health /metrics
    #[arg(
        long,
        env = "INGESTOR_HOST",
        default_value = "127.0.0.1",
        value_name = "INGESTOR_HOST",
        global = true
    )]
    ingestor_host: IpAddr,
    /// Port for operators
    #[arg(
        long,
        env = "INGESTOR_PORT",
        default_value_t = 8082,
        value_name = "INGESTOR_PORT",
        global = true
    )]
    ingestor_port: u16,
}

/// Every setting, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How to reach PostgreSQL.
    pub database: DatabaseSettings,
    /// How to reach Kafka.
    pub kafka: KafkaSettings,
    /// When a batch closes.
    pub batch: BatchSettings,
    /// Memory to stay within.
    pub memory: MemorySettings,
    /// Where operators ask.
    pub ops_address: (IpAddr, u16),
    /// How to log.
    pub log: LogSettings,
    /// How to stop.
    pub shutdown: ShutdownSettings,
}

/// What the daemon needs.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// How to reach PostgreSQL.
    pub database: DatabaseSettings,
    /// How to reach Kafka.
    pub kafka: KafkaSettings,
    /// When a batch closes.
    pub batch: BatchSettings,
    /// Memory to stay within.
    pub memory: MemorySettings,
    /// How to stop.
    pub shutdown: ShutdownSettings,
    /// Whether to run pending migrations, or to refuse to start.
    pub migrate: bool,
}

/// When a batch closes, on the first bound that it meets, and when its partition halts.
#[derive(Clone, Copy, Debug)]
pub struct BatchSettings {
    /// Most records.
    pub max_records: usize,
    /// Most time since its first record.
    pub max_age: Duration,
    /// Bad messages in a row beyond which a partition halts.
    pub max_consecutive_bad: i64,
}

/// How much memory to aim at, and how it is shared out.
#[derive(Clone, Copy, Debug)]
pub struct MemorySettings {
    /// Memory of the whole process in bytes.
    pub total_bytes: usize,
}

impl MemorySettings {
    /// librdkafka's queue of fetched messages. It counts the messages' own bytes, and takes some four times as many: the
    /// fetched buffers stay as long as one of their messages does.
    pub fn kafka_queue_kbytes(self) -> usize {
        self.total_bytes / 24 / 1024
    }

    /// All batches together, being built and being written: a quarter.
    pub fn batches_bytes(self) -> usize {
        self.total_bytes / 4
    }

    /// One batch: small enough that eight of them fit, so that writers work while others fill.
    pub fn batch_bytes(self) -> usize {
        self.batches_bytes() / 8
    }
}

impl Cli {
    /// Checks the settings and reads the files that they name.
    ///
    /// # Errors
    /// Fails with one line that names the setting.
    pub fn settings(self) -> anyhow::Result<Settings> {
        let SettingsArgs {
            database,
            kafka,
            ingest,
            log,
            shutdown,
        } = self.settings;
        Ok(Settings {
            database: database.resolve()?,
            kafka: kafka.resolve()?,
            batch: BatchSettings {
                max_records: ingest.batch_max_records as usize,
                max_age: Duration::from_millis(ingest.batch_max_age_ms),
                max_consecutive_bad: ingest.dead_letter_max_consecutive.into(),
            },
            memory: MemorySettings {
                total_bytes: usize::try_from(ingest.ingest_memory_mb)? * 1024 * 1024,
            },
            ops_address: (ingest.ingestor_host, ingest.ingestor_port),
            log,
            shutdown,
        })
    }
}

impl Settings {
    /// Effective settings, secrets hidden.
    pub fn shown(&self) -> ShownSettings {
        let mut shown = self.database.shown();
        shown.extend(self.kafka.shown());
        shown.extend([
            ("BATCH_MAX_RECORDS", self.batch.max_records.to_string()),
            (
                "BATCH_MAX_AGE_MS",
                self.batch.max_age.as_millis().to_string(),
            ),
            (
                "DEAD_LETTER_MAX_CONSECUTIVE",
                self.batch.max_consecutive_bad.to_string(),
            ),
            (
                "INGEST_MEMORY_MB",
                (self.memory.total_bytes / 1024 / 1024).to_string(),
            ),
            ("INGESTOR_HOST", self.ops_address.0.to_string()),
            ("INGESTOR_PORT", self.ops_address.1.to_string()),
        ]);
        shown.extend(self.log.shown());
        shown.extend(self.shutdown.shown());
        shown
    }

    /// The part that the daemon needs.
    pub fn into_run_config(self, migrate: bool) -> RunConfig {
        let Self {
            database,
            kafka,
            batch,
            memory,
            shutdown,
            ..
        } = self;
        RunConfig {
            database,
            kafka,
            batch,
            memory,
            shutdown,
            migrate,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn settings(arguments: &[&str]) -> anyhow::Result<Settings> {
        shared::testing::parse_arguments::<Cli>(arguments)?.settings()
    }

    #[test]
    fn clap_accepts_the_command_line() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_on_offsets_take_one_partition_or_all_and_an_offset_from_0() {
        for (arguments, good) in [
            (&["offsets", "show", "--json"][..], true),
            (&["offsets", "init", "--from", "latest"], true),
            (&["offsets", "init", "--from", "-1"], false),
            (&["offsets", "init"], false),
            (&["offsets", "accept-gap"], false),
            (&["offsets", "accept-gap", "--partition", "-1"], false),
            (&["offsets", "rewind", "--all", "--to", "earliest"], true),
            (&["offsets", "rewind", "--all", "--to", "latest"], false),
            (&["offsets", "rewind", "--to", "5"], false),
            (
                &[
                    "offsets",
                    "rewind",
                    "--all",
                    "--partition",
                    "0",
                    "--to",
                    "5",
                ],
                false,
            ),
            (&["offsets", "resume"], false),
            (&["offsets", "resume", "--partition", "0", "--yes"], true),
        ] {
            assert_eq!(settings(arguments).is_ok(), good, "{arguments:?}");
        }
    }

    #[test]
    fn numbers_have_bounds() {
        for arguments in [
            ["--batch-max-records", "0"],
            ["--ingest-memory-mb", "1"],
            ["--batch-max-age-ms", "-1"],
        ] {
            assert!(settings(&arguments).is_err(), "{arguments:?}");
        }
        assert!(settings(&["--kafka-topic", " "]).is_err());
    }
}
