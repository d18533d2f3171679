//! The Kafka clients: the group's consumer (`consumer`) and those that ask about partitions (`probe`).

mod consumer;
mod probe;

use std::sync::Arc;

use rdkafka::Offset as KafkaOffset;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::TopicPartitionList;

use crate::config::{KafkaSettings, MemorySettings};
use crate::record::{Offset, Partition};
pub use consumer::{GroupConsumer, RebalanceEvent, group_consumer};
pub(crate) use probe::client_config;
pub use probe::{LogRange, Member, Probe, Watermarks};

/// The Kafka clients of the process, except the relay's producer.
pub struct Clients {
    /// The member of the group. Only the poll thread polls it.
    pub group: GroupConsumer,
    /// Asks about partitions, from any thread.
    pub probe: Arc<Probe>,
}

impl Clients {
    /// Makes the clients. Nothing is connected or joined yet.
    ///
    /// # Errors
    /// Returns one line that names the setting if librdkafka rejects it.
    pub fn new(settings: &KafkaSettings, memory: MemorySettings) -> anyhow::Result<Self> {
        Ok(Self {
            group: group_consumer(settings, memory)?,
            probe: Arc::new(Probe::new(settings)?),
        })
    }
}

fn setting_refused(error: KafkaError) -> anyhow::Error {
    match error {
        KafkaError::ClientConfig(_, description, key, _) => {
            anyhow::anyhow!("KAFKA_CONFIG: {key}: {description}")
        }
        other => anyhow::anyhow!("KAFKA_CONFIG: {other}"),
    }
}

/// Applies what `KAFKA_CONFIG` sets.
pub(crate) fn apply_overrides(config: &mut ClientConfig, settings: &KafkaSettings) {
    for (key, value) in &settings.overrides {
        config.set(key, value.expose());
    }
}

/// The name that our clients give themselves.
pub fn client_id(settings: &KafkaSettings) -> String {
    let config = client_config(settings);
    config.get("client.id").unwrap_or_default().to_owned()
}

/// Makes a list of partitions, each with an offset if one is given.
///
/// # Errors
/// Returns an error if librdkafka rejects an offset.
pub fn partition_list(
    topic: &str,
    partitions: impl IntoIterator<Item = (Partition, Option<Offset>)>,
) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in partitions {
        let offset = offset.map_or(KafkaOffset::Invalid, |offset| KafkaOffset::Offset(offset.0));
        list.add_partition_offset(topic, partition.0, offset)?;
    }
    Ok(list)
}

/// Checks what an operation on several partitions did.
///
/// # Errors
/// Returns the error of the first partition on which the operation failed.
pub fn check_each(list: &TopicPartitionList) -> KafkaResult<()> {
    list.elements()
        .iter()
        .try_for_each(|element| element.error())
}

#[cfg(test)]
mod tests {
    use shared::config::Secret;

    use super::*;

    fn clients(overrides: &[(&str, &str)]) -> anyhow::Result<Clients> {
        let overrides = overrides
            .iter()
            .map(|(key, value)| ((*key).to_owned(), Secret::new(*value)))
            .collect();
        let settings = KafkaSettings {
            brokers: "localhost:1".to_owned(),
            topic: "orders".to_owned(),
            group_id: "group".to_owned(),
            dlq_topic: None,
            overrides,
        };
        Clients::new(
            &settings,
            MemorySettings {
                total_bytes: 96 << 20,
            },
        )
    }

    #[test]
    fn every_codec_and_sasl_mechanism_and_tls_are_compiled_in() {
        clients(&[
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", "u"),
            ("sasl.password", "p"),
        ])
        .unwrap();
        // A client would ask for a token at once. To check the settings is enough: without libcurl `oidc` is rejected.
        let oidc = ClientConfig::new()
            .set("sasl.mechanism", "OAUTHBEARER")
            .set("sasl.oauthbearer.method", "oidc")
            .create_native_config();
        assert!(oidc.is_ok());
        let (_, version) = rdkafka::util::get_rdkafka_version();
        assert!(!version.is_empty());
        for codec in ["gzip", "snappy", "lz4", "zstd"] {
            let producer: KafkaResult<rdkafka::producer::BaseProducer> =
                ClientConfig::new().set("compression.type", codec).create();
            assert!(producer.is_ok(), "{codec}");
        }
    }

    #[test]
    fn an_unknown_setting_is_named() {
        let message = clients(&[("no.such.setting", "1")])
            .err()
            .unwrap()
            .to_string();
        assert!(
            message.starts_with("KAFKA_CONFIG: no.such.setting"),
            "{message}"
        );
        let message = clients(&[("session.timeout.ms", "soon")])
            .err()
            .unwrap()
            .to_string();
        assert!(
            message.starts_with("KAFKA_CONFIG: session.timeout.ms"),
            "{message}"
        );
    }
}
