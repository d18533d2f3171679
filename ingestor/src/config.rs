//! Command line and environment of the ingestor.

mod dead_letters;
mod offsets;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use shared::config::{
    DatabaseArgs, DatabaseSettings, LogSettings, Secret, ShownSettings, ShutdownSettings,
};

use crate::consumer::PROTECTED_SETTINGS;
pub use dead_letters::{DeadLettersCommand, DecideArgs, FilterArgs};
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
#[command(next_help_heading = "Kafka")]
struct KafkaArgs {
    /// Brokers to start from, host:port, comma-separated
    #[arg(
        long,
        env = "KAFKA_BROKERS",
        default_value = "localhost:9092",
        value_name = "KAFKA_BROKERS",
        global = true
    )]
    kafka_brokers: String,
    /// Topic to read
    #[arg(
        long,
        env = "KAFKA_TOPIC",
        default_value = "orders",
        value_name = "KAFKA_TOPIC",
        global = true
    )]
    kafka_topic: String,
    /// Consumer group; its offsets in PostgreSQL are kept under this name
    #[arg(
        long,
        env = "KAFKA_GROUP_ID",
        default_value = "order-service",
        value_name = "KAFKA_GROUP_ID",
        global = true
    )]
    kafka_group_id: String,
    /// Topic to which dead letters are published as well; empty: none
    #[arg(
        long,
        env = "KAFKA_DLQ_TOPIC",
        value_name = "KAFKA_DLQ_TOPIC",
        global = true
    )]
    kafka_dlq_topic: Option<String>,
    /// Settings of librdkafka, key=value, comma-separated, applied last; those that keep orders safe are refused
    #[arg(
        long,
        env = "KAFKA_CONFIG",
        value_name = "KAFKA_CONFIG",
        hide_env_values = true,
        global = true
    )]
    kafka_config: Option<Secret>,
    /// File with more of them, one a line (for SASL passwords)
    #[arg(
        long,
        env = "KAFKA_CONFIG_FILE",
        value_name = "KAFKA_CONFIG_FILE",
        global = true
    )]
    kafka_config_file: Option<PathBuf>,
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

/// How to reach Kafka, and what to read.
#[derive(Clone, Debug)]
pub struct KafkaSettings {
    /// Bootstrap brokers, comma-separated.
    pub brokers: String,
    /// Topic to read.
    pub topic: String,
    /// Consumer group.
    pub group_id: String,
    /// Where dead letters are published as well.
    pub dlq_topic: Option<String>,
    /// librdkafka's settings by name, applied last.
    pub overrides: Vec<(String, Secret)>,
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
        let overrides = kafka_overrides(kafka.kafka_config, kafka.kafka_config_file)?;
        for (name, value) in [
            ("KAFKA_BROKERS", &kafka.kafka_brokers),
            ("KAFKA_TOPIC", &kafka.kafka_topic),
            ("KAFKA_GROUP_ID", &kafka.kafka_group_id),
        ] {
            if value.trim().is_empty() {
                bail!("{name} must not be empty");
            }
        }
        let dlq_topic = kafka.kafka_dlq_topic.filter(|topic| !topic.is_empty());
        if dlq_topic.as_ref() == Some(&kafka.kafka_topic) {
            bail!(
                "KAFKA_DLQ_TOPIC must be another topic than KAFKA_TOPIC: its letters would come back as messages"
            );
        }
        Ok(Settings {
            database: database.resolve()?,
            kafka: KafkaSettings {
                brokers: kafka.kafka_brokers,
                topic: kafka.kafka_topic,
                group_id: kafka.kafka_group_id,
                dlq_topic,
                overrides,
            },
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
        let overrides: Vec<String> = self
            .kafka
            .overrides
            .iter()
            .map(|(key, value)| format!("{key}={}", shown_override(key, value)))
            .collect();
        let mut shown = self.database.shown();
        shown.extend([
            ("KAFKA_BROKERS", self.kafka.brokers.clone()),
            ("KAFKA_TOPIC", self.kafka.topic.clone()),
            ("KAFKA_GROUP_ID", self.kafka.group_id.clone()),
            (
                "KAFKA_DLQ_TOPIC",
                self.kafka.dlq_topic.clone().unwrap_or_default(),
            ),
            ("KAFKA_CONFIG", overrides.join(",")),
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

/// Passwords, secrets and private keys are not shown; librdkafka names them so.
fn shown_override(key: &str, value: &Secret) -> String {
    let secret = ["password", "secret", "key", "pem", "config", "token"]
        .iter()
        .any(|part| key.contains(part));
    if secret {
        format!("{value:?}")
    } else {
        value.expose().to_owned()
    }
}

fn kafka_overrides(
    direct: Option<Secret>,
    file: Option<PathBuf>,
) -> anyhow::Result<Vec<(String, Secret)>> {
    let from_file = match file {
        Some(path) => std::fs::read_to_string(&path)
            .with_context(|| format!("KAFKA_CONFIG_FILE: cannot read {}", path.display()))?,
        None => String::new(),
    };
    let direct = direct.unwrap_or_else(|| Secret::new(""));
    let pairs = from_file.lines().chain(direct.expose().split(','));
    pairs
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
        .map(kafka_override)
        .collect()
}

fn kafka_override(pair: &str) -> anyhow::Result<(String, Secret)> {
    // The pair itself is not quoted: it may hold a password.
    let (key, value) = pair
        .split_once('=')
        .context("KAFKA_CONFIG: an entry has no '=', write key=value,key=value")?;
    let key = key.trim();
    if PROTECTED_SETTINGS.contains(&key) {
        bail!("KAFKA_CONFIG: {key} may not be set, exactly-once storage depends on it");
    }
    Ok((key.to_owned(), Secret::new(value.trim())))
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
    fn kafka_config_takes_any_setting_but_those_of_safety() {
        let good = settings(&[
            "--kafka-config",
            "session.timeout.ms=6000, sasl.password=canary=1",
        ])
        .unwrap();
        assert_eq!(
            good.kafka.overrides[0],
            ("session.timeout.ms".to_owned(), Secret::new("6000"))
        );
        assert_eq!(
            good.kafka.overrides[1],
            ("sasl.password".to_owned(), Secret::new("canary=1"))
        );
        assert!(!format!("{:?} {good:?}", good.shown()).contains("canary"));
        for key in PROTECTED_SETTINGS {
            let message = settings(&["--kafka-config", &format!("{key}=x")])
                .unwrap_err()
                .to_string();
            assert!(message.contains(key), "{message}");
        }
        assert!(settings(&["--kafka-config", "nonsense"]).is_err());
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
