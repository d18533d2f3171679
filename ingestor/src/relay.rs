//! Publishes dead letters to `KAFKA_DLQ_TOPIC`, each at least once, on a thread of its own.
//!
//! A letter waits until `relayed_at` is set, which happens once Kafka has acknowledged it. Remembering the highest
//! published number instead would miss letters: a transaction that commits late adds a letter with a lower number.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use diesel::Connection as _;
use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use shared::backoff::Backoff;
use shared::config::DatabaseSettings;
use shared::throttle::Throttle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::config::{APPLICATION_NAME, KafkaSettings};
use crate::database::Connection;
use crate::dead_letters::stored::{self, StoredLetter};
use crate::kafka::apply_overrides;
use crate::metrics::Metrics;
use crate::periodic;
use crate::record::{Consumer, Reason};

/// The time between two looks at the table while no letter waits.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The longest wait between two tries while something is wrong.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// How long one poll of the producer waits for acknowledgements.
const ACKNOWLEDGEMENT_POLL: Duration = Duration::from_millis(100);
/// The most letters of one transaction, and the most bytes of them: a letter may have a mebibyte.
const LETTERS_PER_PAGE: i64 = 100;
const BYTES_PER_PAGE: usize = 2 * 1024 * 1024;
/// The most time that Kafka has to acknowledge a page. The transaction is open meanwhile, and the server ends it after
/// 30 s.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(15);
/// How much is published of a letter that is too large for the brokers together with its headers.
const CUT_PAYLOAD_BYTES: usize = 64 * 1024;
/// The header with the size of a message that is not published whole.
const CUT_HEADER: &str = "orders.payload.size";
/// A page's statements find their rows by a key.
const SESSION: &str = "SET statement_timeout = '10s'";

/// What the relay's thread needs.
pub struct Relay {
    publisher: Publisher,
    connection: Connection,
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
        metrics: Arc<Metrics>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &kafka.brokers)
            .set("client.id", APPLICATION_NAME)
            .set_log_level(RDKafkaLogLevel::Warning);
        apply_overrides(&mut config, kafka);
        let delivery_timeout_ms = DELIVERY_TIMEOUT.as_millis().to_string();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("compression.type", "lz4")
            .set("message.max.bytes", "4194304")
            .set("delivery.timeout.ms", delivery_timeout_ms);
        let producer = config
            .create_with_context(Deliveries::default())
            .context("KAFKA_CONFIG: cannot create the producer of dead letters")?;
        Ok(Self {
            publisher: Publisher {
                topic,
                consumer,
                producer,
                shutdown,
            },
            connection: Connection::new(database, SESSION),
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
        info!(kafka.topic = self.publisher.topic, "relaying dead letters");
        let shutdown = self.publisher.shutdown.clone();
        periodic::start("relay", shutdown, move || self.relay())
    }

    /// Relays a page, and returns the time until the next one.
    fn relay(&mut self) -> Duration {
        match self.relay_page() {
            Ok(0) => LOOK_INTERVAL,
            Ok(relayed) => {
                self.backoff.reset();
                self.reports.reset();
                self.metrics.dead_letters_relayed.inc_by(relayed);
                Duration::ZERO
            }
            Err(error) => {
                self.connection.close();
                if self.reports.is_due() {
                    warn!(
                        kafka.topic = self.publisher.topic,
                        "cannot relay dead letters, retrying: {error:#}"
                    );
                }
                self.backoff.next_delay()
            }
        }
    }

    /// Publishes some letters and marks those that Kafka has acknowledged. Other processes relay other letters meanwhile.
    fn relay_page(&mut self) -> anyhow::Result<u64> {
        let publisher = &self.publisher;
        let (delivered, trouble) = self.connection.get()?.transaction(|connection| {
            let page = stored::lock_unrelayed(
                connection,
                &publisher.consumer,
                LETTERS_PER_PAGE,
                BYTES_PER_PAGE,
            )?;
            let (delivered, trouble) = publisher.publish(&page);
            stored::mark_relayed(connection, &delivered)?;
            Ok::<_, anyhow::Error>((delivered, trouble))
        })?;
        match trouble {
            Some(error) if delivered.is_empty() => Err(error.into()),
            _ => Ok(delivered.len() as u64),
        }
    }
}

struct Publisher {
    topic: String,
    consumer: Consumer,
    producer: BaseProducer<Deliveries>,
    shutdown: CancellationToken,
}

impl Publisher {
    /// Returns the letters that Kafka has now, and an error if it has not all of them.
    fn publish(&self, letters: &[StoredLetter]) -> (Vec<i64>, Option<KafkaError>) {
        let mut trouble = None;
        let mut too_large: HashSet<i64> = HashSet::new();
        for letter in letters {
            trouble = self.send(letter, None).err().or(trouble);
        }
        let mut delivered = self.delivered(&mut trouble, &mut too_large);
        if !too_large.is_empty() {
            let cut = letters
                .iter()
                .filter(|letter| too_large.contains(&letter.summary.id));
            for letter in cut {
                trouble = self.send(letter, Some(CUT_PAYLOAD_BYTES)).err().or(trouble);
            }
            delivered.extend(self.delivered(&mut trouble, &mut HashSet::new()));
        }
        (delivered, trouble)
    }

    fn send(&self, letter: &StoredLetter, max_bytes: Option<usize>) -> Result<(), KafkaError> {
        let payload = letter.payload.as_deref().map(|payload| {
            let kept = max_bytes.map_or(payload.len(), |max| payload.len().min(max));
            &payload[..kept]
        });
        let is_whole =
            !letter.is_cut() && payload.map(<[u8]>::len) == letter.payload.as_ref().map(Vec::len);
        let id = letter.summary.id;
        let mut record: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(&self.topic, usize::try_from(id).unwrap_or_default())
                .headers(headers(letter, &self.consumer, is_whole));
        record.key = letter.key.as_deref();
        record.payload = payload;
        record.timestamp = letter
            .summary
            .message_timestamp
            .map(|time| time.timestamp_millis());
        match self.producer.send(record) {
            Err((
                KafkaError::MessageProduction(code @ RDKafkaErrorCode::MessageSizeTooLarge),
                _,
            )) => {
                self.producer.context().0.lock().push((id, Err(code)));
                Ok(())
            }
            Err((error, _)) => Err(error),
            Ok(()) => Ok(()),
        }
    }

    /// Waits for Kafka's acknowledgements; a shutdown cuts the wait short.
    fn delivered(
        &self,
        trouble: &mut Option<KafkaError>,
        too_large: &mut HashSet<i64>,
    ) -> Vec<i64> {
        let started_at = Instant::now();
        while self.producer.in_flight_count() > 0
            && started_at.elapsed() < DELIVERY_TIMEOUT + LOOK_INTERVAL
            && !self.shutdown.is_cancelled()
        {
            self.producer.poll(ACKNOWLEDGEMENT_POLL);
        }
        self.producer.poll(Duration::ZERO);
        let mut delivered = Vec::new();
        for (id, result) in std::mem::take(&mut *self.producer.context().0.lock()) {
            match result {
                Ok(()) => delivered.push(id),
                Err(RDKafkaErrorCode::MessageSizeTooLarge) => {
                    too_large.insert(id);
                }
                Err(code) => *trouble = Some(KafkaError::MessageProduction(code)),
            }
        }
        delivered
    }
}

/// The message's own headers, and those of Kafka Connect: where the message came from and what was wrong with it.
fn headers(letter: &StoredLetter, consumer: &Consumer, is_whole: bool) -> OwnedHeaders {
    let summary = &letter.summary;
    let mut headers = OwnedHeaders::new();
    for header in letter.headers.as_array().into_iter().flatten() {
        let Some(key) = header["key"].as_str() else {
            continue;
        };
        let value = header["value"]
            .as_str()
            .and_then(|value| BASE64_STANDARD.decode(value).ok());
        headers = headers.insert(Header {
            key,
            value: value.as_deref(),
        });
    }
    // A constraint rejects the order when its row is written. Every other fault is found when the value is read.
    let stage = if summary.reason == <&str>::from(Reason::RefusedByDatabase) {
        "TASK_PUT"
    } else {
        "VALUE_CONVERTER"
    };
    let (partition, offset) = (summary.partition.to_string(), summary.offset.to_string());
    for (name, value) in [
        ("topic", summary.topic.as_str()),
        ("partition", &partition),
        ("offset", &offset),
        ("connector.name", &consumer.group_id),
        ("task.id", "0"),
        ("stage", stage),
        ("class.name", APPLICATION_NAME),
        ("exception.class.name", &summary.reason),
        ("exception.message", &summary.detail),
    ] {
        headers = headers.insert(Header {
            key: &format!("__connect.errors.{name}"),
            value: Some(value),
        });
    }
    if !is_whole {
        headers = headers.insert(Header {
            key: CUT_HEADER,
            value: Some(&summary.payload_size.to_string()),
        });
    }
    headers
}

type Delivery = (i64, Result<(), RDKafkaErrorCode>);

/// Kafka's answers, with the letters' numbers.
#[derive(Default)]
struct Deliveries(Mutex<Vec<Delivery>>);

impl ClientContext for Deliveries {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        // librdkafka warns once for every setting that is for consumers only. What matters comes with a delivery.
        debug!(target: "librdkafka", facility, "relay: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!("error of the relay's producer: {error}: {reason}");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, id: usize) {
        let result = match result {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(error
                .rdkafka_error_code()
                .unwrap_or(RDKafkaErrorCode::Unknown)),
        };
        let id = i64::try_from(id).unwrap_or_default();
        self.0.lock().push((id, result));
    }
}
