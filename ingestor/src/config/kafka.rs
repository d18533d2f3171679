//! How to reach Kafka, and what to read there.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use shared::config::{Secret, ShownSettings};

use crate::consumer::PROTECTED_SETTINGS;

#[derive(Args, Debug)]
#[command(next_help_heading = "Kafka")]
pub(super) struct KafkaArgs {
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
                "KAFKA_DLQ_TOPIC must be another topic than KAFKA_TOPIC: its letters would come back as messages"
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
    pub(super) fn shown(&self) -> ShownSettings {
        let overrides: Vec<String> = self
            .overrides
            .iter()
            .map(|(key, value)| format!("{key}={}", shown_override(key, value)))
            .collect();
        vec![
            ("KAFKA_BROKERS", self.brokers.clone()),
            ("KAFKA_TOPIC", self.topic.clone()),
            ("KAFKA_GROUP_ID", self.group_id.clone()),
            (
                "KAFKA_DLQ_TOPIC",
                self.dlq_topic.clone().unwrap_or_default(),
            ),
            ("KAFKA_CONFIG", overrides.join(",")),
        ]
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
    use super::*;
    use crate::config::Cli;

    fn kafka(arguments: &[&str]) -> anyhow::Result<KafkaSettings> {
        let settings = shared::testing::parse_arguments::<Cli>(arguments)?.settings()?;
        Ok(settings.kafka)
    }

    #[test]
    fn kafka_config_takes_any_setting_but_those_of_safety() {
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
    fn dead_letters_go_to_another_topic_than_the_one_that_is_read() {
        let topic = |arguments: &[&str]| kafka(arguments).map(|settings| settings.dlq_topic);
        assert_eq!(topic(&[]).unwrap(), None);
        assert_eq!(
            topic(&["--kafka-dlq-topic", "dead"]).unwrap(),
            Some("dead".to_owned())
        );
        assert!(topic(&["--kafka-dlq-topic", "orders"]).is_err());
    }
}
