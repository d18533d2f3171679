//! Everything that works beside the poll thread is started here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use anyhow::Context;
use rdkafka::consumer::Consumer as _;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::memory::MemoryBudget;
use super::{Poller, WRITERS};
use crate::config::RunConfig;
use crate::consumer::Clients;
use crate::current::Current;
use crate::dead_letters::relay::Relay;
use crate::metrics::Metrics;
use crate::observer::Observer;
use crate::offsets::Consumer;
use crate::status::Status;
use crate::watch::Watch;
use crate::writer::{Session, Writer};

impl Poller {
    /// Subscribes and starts the writers.
    ///
    /// # Errors
    /// Fails where a thread cannot be started or the topic's name is refused.
    pub fn start(
        config: RunConfig,
        clients: Clients,
        status: Arc<Status>,
        metrics: Arc<Metrics>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        let current = Arc::new(Current::default());
        let (reports_tx, reports_rx) = mpsc::channel();
        let consumer = Consumer::of(&config.kafka);
        let mut writers = Vec::new();
        let mut writer_threads = Vec::new();
        for number in 0..WRITERS {
            let writer = Writer {
                number,
                consumer: consumer.clone(),
                database: config.database.clone(),
                max_consecutive_bad: config.batch.max_consecutive_bad,
                probe: clients.probe.clone(),
                current: current.clone(),
                status: status.clone(),
                metrics: metrics.clone(),
                reports_tx: reports_tx.clone(),
                session: Session::default(),
            };
            let (tasks_tx, tasks_rx) = mpsc::channel();
            let thread = std::thread::Builder::new().name(format!("writer-{number}"));
            writer_threads.push(
                thread
                    .spawn(move || writer.run(&tasks_rx))
                    .context("cannot start a writer")?,
            );
            writers.push(tasks_tx);
        }
        Observer::new(
            config.database.clone(),
            consumer.clone(),
            status.clone(),
            metrics.clone(),
        )
        .start(shutdown.clone())?;
        if let Some(topic) = config.kafka.dlq_topic.clone() {
            Relay::new(
                topic,
                &config.kafka,
                consumer.clone(),
                config.database.clone(),
                metrics.clone(),
                shutdown.clone(),
            )?
            .start()?;
        }
        // A channel of its own: the writers' must close when they have died.
        let (suspicions_tx, suspicions_rx) = mpsc::channel();
        let watch = Watch {
            status: status.clone(),
            probe: clients.probe,
            metrics: metrics.clone(),
            topic: config.kafka.topic.clone(),
            suspicions_tx,
        };
        watch.start(shutdown.clone())?;
        clients
            .group
            .subscribe(&[&config.kafka.topic])
            .context("cannot subscribe")?;
        status.set_running();
        info!(kafka.topic = config.kafka.topic, kafka.group = config.kafka.group_id, owner = %consumer.owner, "subscribed");
        Ok(Self {
            consumer: clients.group,
            topic: config.kafka.topic,
            batch: config.batch,
            partitions: BTreeMap::new(),
            current,
            budget: MemoryBudget::new(config.memory),
            writers,
            writer_threads,
            reports_rx,
            suspicions_rx,
            status,
            metrics,
            shutdown,
            last_mirror_at: Instant::now(),
            last_trouble_report: None,
        })
    }
}
