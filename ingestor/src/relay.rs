//! Publishes dead letters to `KAFKA_DLQ_TOPIC`, each at least once, on a thread of its own.
//!
//! A letter waits until `relayed_at` is set, which happens once Kafka has acknowledged it. Remembering the highest
//! published number instead would miss letters: a transaction that commits late adds a letter with a lower number.
//!
//! A letter that Kafka refuses for its size is cut until the topic takes it (`outgoing`). What Kafka refuses even then is
//! marked with the reason and passed over, so that it holds nothing up. Trouble that is not the letter's marks nothing: it
//! shows in the log and in `/health`, and the letters wait until it has ended.

mod outgoing;
mod publisher;

use std::sync::Arc;
use std::time::Duration;

use diesel::Connection as _;
use shared::backoff::Backoff;
use shared::config::DatabaseSettings;
use shared::throttle::Throttle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::board::Board;
use crate::config::KafkaSettings;
use crate::database::Connection;
use crate::dead_letters::stored;
use crate::metrics::Metrics;
use crate::periodic;
use crate::record::Consumer;
use publisher::{Published, Publisher};

/// The time between two looks at the table while no letter waits.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The longest wait between two tries while something is wrong.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// The most letters of one transaction, and the most bytes of them: a letter may have a mebibyte.
const LETTERS_PER_PAGE: i64 = 100;
const BYTES_PER_PAGE: i64 = 2 * 1024 * 1024;
/// A page's statements find their rows by a key.
const SESSION: &str = "SET statement_timeout = '10s'";

/// What the relay's thread needs.
pub struct Relay {
    publisher: Publisher,
    connection: Connection,
    shutdown: CancellationToken,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    backoff: Backoff,
    reports: Throttle,
}

impl Relay {
    /// Makes the producer; nothing is connected yet. `topic` is where letters are published.
    ///
    /// # Errors
    /// Returns an error if librdkafka rejects a setting.
    pub fn new(
        topic: String,
        kafka: &KafkaSettings,
        consumer: Consumer,
        database: DatabaseSettings,
        board: Arc<Board>,
        metrics: Arc<Metrics>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            publisher: Publisher::new(topic, kafka, consumer, shutdown.clone())?,
            connection: Connection::new(database, SESSION),
            shutdown,
            board,
            metrics,
            backoff: Backoff::new(LOOK_INTERVAL, MAX_RETRY_INTERVAL),
            reports: Throttle::for_reports(),
        })
    }

    /// Publishes from now on until shutdown.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub fn start(mut self) -> anyhow::Result<()> {
        info!(
            kafka.topic = self.publisher.topic(),
            "relaying dead letters"
        );
        let shutdown = self.shutdown.clone();
        periodic::start("relay", shutdown, move || self.relay())
    }

    /// Relays a page, and returns the time until the next one.
    fn relay(&mut self) -> Duration {
        let page = match self.relay_page() {
            Ok(page) => page,
            Err(error) => {
                self.connection.close();
                let trouble = "the database cannot be used; the log says why".to_owned();
                return self.retry_after(trouble, &format!("{error:#}"));
            }
        };
        self.count(&page);
        let is_progress = !page.delivered.is_empty() || !page.refused.is_empty();
        if is_progress {
            self.backoff.reset();
        }
        if let Some(trouble) = page.trouble {
            return self.retry_after(trouble.clone(), &trouble);
        }
        if self.reports.has_reported() {
            info!("dead letters are relayed again");
            self.reports.reset();
        }
        self.board.set_relay_trouble(None);
        self.metrics.dead_letters_relay_stuck.set(0);
        if is_progress {
            Duration::ZERO
        } else {
            LOOK_INTERVAL
        }
    }

    /// Publishes some letters and marks those on which Kafka has decided. Other processes relay other letters meanwhile.
    fn relay_page(&mut self) -> anyhow::Result<Published> {
        let publisher = &mut self.publisher;
        self.connection.get()?.transaction(|connection| {
            let page = stored::lock_unrelayed(
                connection,
                publisher.consumer(),
                LETTERS_PER_PAGE,
                BYTES_PER_PAGE,
            )?;
            let published = publisher.publish(&page);
            stored::mark_relayed(connection, &published.delivered)?;
            for (id, reason) in &published.refused {
                stored::mark_refused(connection, *id, reason)?;
            }
            Ok(published)
        })
    }

    fn count(&self, page: &Published) {
        let metrics = &self.metrics;
        metrics
            .dead_letters_relayed
            .inc_by(page.delivered.len() as u64);
        metrics
            .dead_letters_relay_refused
            .inc_by(page.refused.len() as u64);
        if let Some((id, reason)) = page.refused.first() {
            warn!(
                kafka.topic = self.publisher.topic(),
                letter.id = id,
                "KAFKA_DLQ_TOPIC has refused {} dead letters, see `ingestor dead-letters list --relay-refused`; the first one: {reason}",
                page.refused.len()
            );
        }
    }

    /// Reports trouble, and returns the time until the next try.
    fn retry_after(&mut self, trouble: String, detail: &str) -> Duration {
        self.board.set_relay_trouble(Some(trouble));
        self.metrics.dead_letters_relay_stuck.set(1);
        if self.reports.is_due() {
            warn!(
                kafka.topic = self.publisher.topic(),
                "cannot relay dead letters, retrying: {detail}"
            );
        }
        self.backoff.next_delay()
    }
}
