//! How to reach Kafka, and what to read there.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use shared::config::{Secret, ShownSettings};
use shared::order::Envelope;
use uuid::Uuid;

use crate::record::Consumer;

/// Settings on which exactly-once storage depends, and those that variables of our own set.
const PROTECTED_SETTINGS: &[&str] = &[
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.partition.eof",
    "group.id",
    "group.protocol",
    "isolation.level",
    "metadata.broker.list",
    "partition.assignment.strategy",
];

// Each variable has its field's name in upper case.
#[derive(Args, Debug)]
#[command(next_help_heading = "Kafka")]
pub(super) struct KafkaArgs {
    /// Brokers to connect to first, host:port, comma-separated
    #[arg(long, env, default_value = "localhost:9092", global = true)]
    kafka_brokers: String,
    /// Topic to read
    #[arg(long, env, default_value = "orders", global = true)]
    kafka_topic: String,
    /// What encloses the order in a message's value
    #[arg(long, env, default_value = "none", global = true)]
    pub(super) kafka_value_envelope: Envelope,
    /// Consumer group; its offsets are stored in PostgreSQL under this name
    #[arg(long, env, default_value = "order-service", global = true)]
    kafka_group_id: String,
    /// Topic to which dead letters are published as well; empty: none
    #[arg(long, env, global = true)]
    kafka_dlq_topic: Option<String>,
    /// Settings of librdkafka, key=value, comma-separated, applied last; those that exactly-once storage needs are refused
    #[arg(long, env, hide_env_values = true, global = true)]
    kafka_config: Option<Secret>,
    /// File with more settings of librdkafka, one per line (for SASL passwords)
    #[arg(long, env, global = true)]
    kafka_config_file: Option<PathBuf>,
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
    /// Topic to which dead letters are published as well.
    pub dlq_topic: Option<String>,
    /// Settings of librdkafka, which are applied last.
    pub overrides: Vec<(String, Secret)>,
}

impl KafkaArgs {
    /// Checks the settings and reads the file that they name.
    pub(super) fn resolve(self) -> anyhow::Result<KafkaSettings> {
        let overrides = kafka_overrides(self.kafka_config, self.kafka_config_file)?;
        for (name, value) in [
            ("KAFKA_BROKERS", &self.kafka_brokers),
            ("KAFKA_TOPIC", &self.kafka_topic),
            ("KAFKA_GROUP_ID", &self.kafka_group_id),
        ] {
            if value.trim().is_empty() {
                bail!("{name} must not be empty");
            }
        }
        let dlq_topic = self.kafka_dlq_topic.filter(|topic| !topic.is_empty());
        if dlq_topic.as_ref() == Some(&self.kafka_topic) {
            bail!(
                "KAFKA_DLQ_TOPIC must differ from KAFKA_TOPIC: dead letters would be read as orders"
            );
        }
        Ok(KafkaSettings {
            brokers: self.kafka_brokers,
            topic: self.kafka_topic,
            group_id: self.kafka_group_id,
            dlq_topic,
            overrides,
        })
    }
}

impl KafkaSettings {
    /// This process as a new reader of the topic.
    pub fn new_consumer(&self) -> Consumer {
        Consumer {
            group_id: self.group_id.clone(),
            topic: self.topic.clone(),
            owner: Uuid::new_v4(),
        }
    }

    pub(super) fn shown(&self) -> ShownSettings {
        let overrides: Vec<String> = (self.overrides.iter())
            .map(|(key, value)| format!("{key}={}", shown_override(key, value)))
            .collect();
        let dlq_topic = self.dlq_topic.clone().unwrap_or_default();
        vec![
            ("KAFKA_BROKERS", self.brokers.clone()),
            ("KAFKA_TOPIC", self.topic.clone()),
            ("KAFKA_GROUP_ID", self.group_id.clone()),
            ("KAFKA_DLQ_TOPIC", dlq_topic),
            ("KAFKA_CONFIG", overrides.join(",")),
        ]
    }
}

/// Hides the values of settings whose names show that they hold a password, a secret or a private key.
fn shown_override(key: &str, value: &Secret) -> String {
    let is_secret = ["password", "secret", "key", "pem", "config", "token"]
        .iter()
        .any(|part| key.contains(part));
    if is_secret {
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
    // The message does not quote the entry, which may hold a password.
    let (key, value) = pair
        .split_once('=')
        .context("KAFKA_CONFIG: an entry has no '='; write key=value,key=value")?;
    let key = key.trim();
    if PROTECTED_SETTINGS.contains(&key) {
        bail!("KAFKA_CONFIG: {key} may not be set: exactly-once storage depends on it");
    }
    Ok((key.to_owned(), Secret::new(value.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Cli;

    fn kafka(arguments: &[&str]) -> anyhow::Result<KafkaSettings> {
        let settings = shared::testing::parse_arguments::<Cli>(arguments)?.settings()?;
        Ok(settings.kafka)
    }

    #[test]
    fn kafka_config_takes_any_setting_except_protected_ones() {
        let good = kafka(&[
            "--kafka-config",
            "session.timeout.ms=6000, sasl.password=canary=1",
        ])
        .unwrap();
        assert_eq!(
            good.overrides[0],
            ("session.timeout.ms".to_owned(), Secret::new("6000"))
        );
        assert_eq!(
            good.overrides[1],
            ("sasl.password".to_owned(), Secret::new("canary=1"))
        );
        assert!(!format!("{:?} {good:?}", good.shown()).contains("canary"));
        for key in PROTECTED_SETTINGS {
            let message = kafka(&["--kafka-config", &format!("{key}=x")])
                .unwrap_err()
                .to_string();
            assert!(message.contains(key), "{message}");
        }
        assert!(kafka(&["--kafka-config", "nonsense"]).is_err());
    }

    #[test]
    fn the_topic_of_dead_letters_must_differ_from_the_topic_that_is_read() {
        let topic = |arguments: &[&str]| kafka(arguments).map(|settings| settings.dlq_topic);
        assert_eq!(topic(&[]).unwrap(), None);
        assert_eq!(
            topic(&["--kafka-dlq-topic", "dead"]).unwrap(),
            Some("dead".to_owned())
        );
        assert!(topic(&["--kafka-dlq-topic", "orders"]).is_err());
    }
}
