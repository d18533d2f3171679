//! Asks the brokers about the topic and the group. Nothing is changed, and the group is not joined.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::KafkaResult;
use shared::doctor::Fault;
use tokio::task::spawn_blocking;

use crate::config::KafkaSettings;
use crate::kafka::{self, Member, Probe, Watermarks};
use crate::record::{Offset, Partition};

const BROKER_TIMEOUT: Duration = Duration::from_secs(10);

/// What the brokers tell.
pub(super) struct Survey {
    pub(super) topic: String,
    pub(super) group_id: String,
    /// What members of the group that are ours call themselves.
    pub(super) client_id: String,
    /// The partitions without a leader.
    pub(super) leaderless: Vec<Partition>,
    /// The settings of the topic, or why the brokers do not tell them.
    pub(super) settings: Result<HashMap<String, String>, String>,
    /// The offsets that each partition holds.
    pub(super) watermarks: HashMap<Partition, Watermarks>,
    /// The members of the group.
    pub(super) members: Vec<Member>,
    /// What the group has committed to Kafka.
    pub(super) committed: Vec<(Partition, Offset)>,
    /// The topic for dead letters, and whether it exists.
    pub(super) dlq_topic: Option<(String, bool)>,
}

impl Survey {
    /// Asks. The outer error is about our own settings.
    pub(super) async fn make(settings: &KafkaSettings) -> anyhow::Result<Result<Self, Fault>> {
        let probe = Probe::new(settings)?;
        let asked = settings.clone();
        let asking = spawn_blocking(move || Self::ask(&probe, &asked));
        let survey = asking.await.context("asking the brokers panicked")?;
        let topic_settings = topic_settings(settings).await;
        Ok(match survey {
            Ok(survey) => Ok(Self {
                settings: topic_settings.map_err(|error| format!("{error:#}")),
                ..survey
            }),
            Err(error) => Err(not_reached(settings, &error)),
        })
    }

    fn ask(probe: &Probe, settings: &KafkaSettings) -> anyhow::Result<Self> {
        let partitions = probe.partitions()?;
        let leaderless = probe.leaderless_partitions()?;
        let with_leader = partitions
            .iter()
            .filter(|partition| !leaderless.contains(partition));
        let watermarks =
            with_leader.map(|partition| Ok((*partition, probe.watermarks(*partition)?)));
        let dlq_topic = settings.dlq_topic.clone();
        Ok(Self {
            topic: settings.topic.clone(),
            group_id: settings.group_id.clone(),
            client_id: kafka::client_id(settings),
            watermarks: watermarks.collect::<KafkaResult<_>>()?,
            leaderless,
            settings: Ok(HashMap::new()),
            members: probe.members(&settings.group_id)?,
            committed: probe.committed_offsets(&partitions)?,
            dlq_topic: match dlq_topic {
                Some(topic) => {
                    let exists = probe.exists(&topic)?;
                    Some((topic, exists))
                }
                None => None,
            },
        })
    }
}

fn not_reached(settings: &KafkaSettings, error: &anyhow::Error) -> Fault {
    Fault::error(
        format!(
            "topic {} at {}: {error:#}",
            settings.topic, settings.brokers
        ),
        "no order can be read",
        "correct KAFKA_BROKERS, KAFKA_TOPIC and the authentication in KAFKA_CONFIG_FILE, start the brokers, or create the topic",
    )
}

async fn topic_settings(settings: &KafkaSettings) -> anyhow::Result<HashMap<String, String>> {
    let admin: AdminClient<DefaultClientContext> = kafka::client_config(settings).create()?;
    let options = AdminOptions::new().request_timeout(Some(BROKER_TIMEOUT));
    let topic = ResourceSpecifier::Topic(&settings.topic);
    let answers = admin.describe_configs([&topic], &options).await?;
    let resource = answers.into_iter().next().context("no answer")?;
    let resource = resource.map_err(|code| anyhow::anyhow!("{code}"))?;
    let entries = resource.entries.into_iter();
    Ok(entries
        .filter_map(|entry| Some((entry.name, entry.value?)))
        .collect())
}
