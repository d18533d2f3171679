//! The command line and the environment: every setting, checked.

mod data;
mod dead_letters;
mod kafka;
mod offsets;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use shared::commands::Shell;
use shared::config::{
    DatabaseArgs, DatabaseSettings, LogSettings, OrderSettings, ShownSettings, ShutdownSettings,
    TraceArgs, TraceSettings, listen_host, name_of,
};
use shared::order::Decoder;

pub use data::{Days, EraseArgs, ImportArgs, PurgeArgs, Whose};
pub use dead_letters::{DeadLettersCommand, DecideArgs};
use kafka::KafkaArgs;
pub use kafka::KafkaSettings;
pub use offsets::{How, OffsetsCommand, Start, Which};

/// The name of our sessions in `pg_stat_activity`, of our clients in Kafka's logs, and of the program in traces.
pub const APPLICATION_NAME: &str = "orders-ingestor";

/// Stores the orders of a Kafka topic in PostgreSQL, each exactly once
#[derive(Parser, Debug)]
#[command(name = "ingestor", version, subcommand_required = false)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Print the effective settings without secrets, and exit
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
        /// Refuse to start if migrations are pending, instead of running them
        #[arg(long)]
        no_migrate: bool,
    },
    /// Run the pending migrations of the database
    Migrate,
    /// Give the database a new history after it was restored or copied, so that caches and clients drop what they have
    NewHistory,
    /// Say which orders of a file ingestion would accept; needs neither Kafka nor PostgreSQL
    Check {
        /// A file with one order per line, with a JSON array of orders, or with one order; `-` is standard input
        file: PathBuf,
    },
    /// Store the orders of a file, each exactly once; needs no Kafka
    Import(ImportArgs),
    /// Show and correct the offsets of the consumer group
    #[command(subcommand)]
    Offsets(OffsetsCommand),
    /// Show refused messages, and replay or drop them
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// Erase orders and every copy of them in the database; no older message brings them back
    Erase(EraseArgs),
    /// Remove old orders and old dead letters
    Purge(PurgeArgs),
    /// Check everything that the daemon needs: machine, PostgreSQL, Kafka; exit status 1 if something must be mended
    Doctor {
        /// Print one JSON document with every check
        #[arg(long)]
        json: bool,
        /// The longest time that the daemon may stand still, in days; the topic must keep its messages for longer
        #[arg(long, value_name = "DAYS", default_value = "3d")]
        longest_stop: Days,
    },
    /// Ask the running daemon whether it lives: exit status 0 or 1, for health checks; needs no other setting
    Livez(OpsArgs),
    /// Print the script by which a shell completes commands and flags
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Args, Debug)]
struct SettingsArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    kafka: KafkaArgs,
    #[command(flatten)]
    orders: OrderSettings,
    #[command(flatten)]
    ingest: IngestArgs,
    #[command(flatten)]
    log: LogSettings,
    #[command(flatten)]
    traces: TraceArgs,
    #[command(flatten)]
    shutdown: ShutdownSettings,
}

// Each variable has its field's name in upper case.
#[derive(Args, Debug)]
#[command(next_help_heading = "Ingestion")]
struct IngestArgs {
    /// Records that fill a batch, 1..=10000; up to 63 more that are read with them may be in it
    #[arg(long, env, default_value_t = 1000, global = true,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch_max_records: u32,
    /// The most milliseconds that a record waits for its batch to fill, 0..=10000
    #[arg(long, env, default_value_t = 10, global = true,
          value_parser = clap::value_parser!(u64).range(0..=10_000))]
    batch_max_age_ms: u64,
    /// A partition halts after more bad messages in a row than this, 1..=1000000000
    #[arg(long, env, default_value_t = 1000, global = true,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000_000))]
    dead_letter_max_consecutive: u32,
    /// Days after which a dead letter loses its key, its payload and its headers, 0..=36500; 0 keeps them for ever
    #[arg(long, env, default_value_t = 0, global = true,
          value_parser = clap::value_parser!(u32).range(0..=36_500))]
    dead_letter_retention_days: u32,
    /// The memory that the whole process aims at, in MiB, 64..=65536
    #[arg(long, env, default_value_t = 96, global = true,
          value_parser = clap::value_parser!(u64).range(64..=65_536))]
    ingest_memory_mb: u64,
    #[command(flatten)]
    ops: OpsArgs,
}

/// Where operators are served.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct OpsArgs {
    /// Host name or address of the operators' port: /livez /readyz /health /metrics
    #[arg(long, env, default_value = "127.0.0.1", global = true)]
    ingestor_host: String,
    /// Number of the operators' port
    #[arg(long, env, default_value_t = 8082, global = true)]
    ingestor_port: u16,
}

impl OpsArgs {
    /// Returns the host and the port to listen on.
    ///
    /// # Errors
    /// Returns one line that names the setting if the host is empty.
    pub fn resolve(self) -> anyhow::Result<(String, u16)> {
        Ok((
            listen_host("INGESTOR_HOST", self.ingestor_host)?,
            self.ingestor_port,
        ))
    }
}

/// Every setting, after its check.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How to reach PostgreSQL.
    pub database: DatabaseSettings,
    /// How to reach Kafka.
    pub kafka: KafkaSettings,
    /// How orders are read.
    pub decoder: Decoder,
    /// When a batch closes.
    pub batch: BatchSettings,
    /// How long the bytes of dead letters are kept; none: for ever.
    pub dead_letter_retention_days: Option<NonZeroU32>,
    /// Memory to stay within.
    pub memory: MemorySettings,
    /// Address of the operators' port.
    pub ops_address: (String, u16),
    /// How to log.
    pub log: LogSettings,
    /// Where traces are sent, and of what.
    pub traces: TraceSettings,
    /// How to stop.
    pub shutdown: ShutdownSettings,
}

/// What the daemon needs.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// The settings.
    pub settings: Settings,
    /// Whether pending migrations are run. If not, the daemon refuses to start.
    pub migrate: bool,
}

/// When a batch closes, which is at the first bound that it reaches, and when its partition halts.
#[derive(Clone, Copy, Debug)]
pub struct BatchSettings {
    /// The most records of a batch.
    pub max_records: usize,
    /// The most time since its first record.
    pub max_age: Duration,
    /// A partition halts after more bad messages in a row than this.
    pub max_consecutive_bad: i64,
}

/// How much memory the process aims at, and how it is divided.
#[derive(Clone, Copy, Debug)]
pub struct MemorySettings {
    /// Memory of the whole process in bytes.
    pub total_bytes: usize,
}

impl MemorySettings {
    /// The bound of librdkafka's queue of fetched messages. librdkafka counts only the messages' own bytes and takes
    /// about four times as many: a fetched buffer stays as long as one of its messages does.
    pub fn kafka_queue_kbytes(self) -> usize {
        self.total_bytes / 24 / 1024
    }

    /// The bound of all batches together, those that fill and those that are written: a quarter.
    pub fn batches_bytes(self) -> usize {
        self.total_bytes / 4
    }

    /// The bound of one batch. Eight batches fit, so that writers work on some while others fill.
    pub fn batch_bytes(self) -> usize {
        self.batches_bytes() / 8
    }
}

impl Cli {
    /// Checks the settings and reads the files that they name.
    ///
    /// # Errors
    /// Returns one line that names the setting if its value is not valid or its file cannot be read.
    pub fn settings(self) -> anyhow::Result<Settings> {
        let SettingsArgs {
            database,
            kafka,
            orders,
            ingest,
            log,
            traces,
            shutdown,
        } = self.settings;
        Ok(Settings {
            database: database.resolve()?,
            decoder: Decoder {
                rules: orders.order_rules,
                envelope: kafka.kafka_value_envelope,
            },
            kafka: kafka.resolve()?,
            batch: BatchSettings {
                max_records: ingest.batch_max_records as usize,
                max_age: Duration::from_millis(ingest.batch_max_age_ms),
                max_consecutive_bad: ingest.dead_letter_max_consecutive.into(),
            },
            dead_letter_retention_days: NonZeroU32::new(ingest.dead_letter_retention_days),
            memory: MemorySettings {
                total_bytes: usize::try_from(ingest.ingest_memory_mb)? * 1024 * 1024,
            },
            ops_address: ingest.ops.resolve()?,
            log,
            traces: traces.resolve(APPLICATION_NAME)?,
            shutdown,
        })
    }
}

impl Settings {
    /// The effective settings without secrets.
    pub fn shown(&self) -> ShownSettings {
        let (batch, (host, port)) = (self.batch, &self.ops_address);
        let memory_mb = self.memory.total_bytes / 1024 / 1024;
        let mut shown = self.database.shown();
        shown.extend(self.kafka.shown());
        shown.extend([
            ("KAFKA_VALUE_ENVELOPE", name_of(self.decoder.envelope)),
            ("ORDER_RULES", name_of(self.decoder.rules)),
            ("BATCH_MAX_RECORDS", batch.max_records.to_string()),
            ("BATCH_MAX_AGE_MS", batch.max_age.as_millis().to_string()),
            (
                "DEAD_LETTER_MAX_CONSECUTIVE",
                batch.max_consecutive_bad.to_string(),
            ),
            (
                "DEAD_LETTER_RETENTION_DAYS",
                self.dead_letter_retention_days
                    .map_or(0, NonZeroU32::get)
                    .to_string(),
            ),
            ("INGEST_MEMORY_MB", memory_mb.to_string()),
            ("INGESTOR_HOST", host.to_string()),
            ("INGESTOR_PORT", port.to_string()),
        ]);
        shown.extend(self.log.shown());
        shown.extend(self.traces.shown());
        shown.extend(self.shutdown.shown());
        shown
    }

    /// What the daemon needs.
    pub fn into_run_config(self, migrate: bool) -> RunConfig {
        RunConfig {
            settings: self,
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
    fn erase_takes_a_customer_or_orders_and_purge_an_age_in_days() {
        for (arguments, good) in [
            (&["erase", "--customer", "a"][..], true),
            (&["erase", "--order", "a", "b", "--order", "c"], true),
            (&["erase", "--customer", "a", "--order", "b"], false),
            (&["erase", "--customer", ""], false),
            (&["erase", "--order"], false),
            (&["erase"], false),
            (&["purge", "--older-than", "400d"], true),
            (&["purge", "--older-than", "1d", "--orders"], true),
            (&["purge", "--older-than", "1d", "--dead-letters"], true),
            (
                &["purge", "--older-than", "1d", "--orders", "--dead-letters"],
                false,
            ),
            (&["purge", "--older-than", "0d"], false),
            (&["purge", "--older-than", "400"], false),
            (&["purge", "--older-than", "99999d"], false),
            (&["purge"], false),
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
