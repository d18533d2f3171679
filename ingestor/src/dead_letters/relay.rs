//! Publishes dead letters to `KAFKA_DLQ_TOPIC`, at least once each, on a thread of its own.
//!
//! A letter waits until `relayed_at` says that Kafka has it. Rising numbers would not do: a letter whose transaction
//! commits late has a lower one than those that are published already.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use diesel::connection::SimpleConnection;
use diesel::dsl::now;
use diesel::prelude::*;
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use shared::backoff::Backoff;
use shared::config::DatabaseSettings;
use shared::db;
use shared::db::schema::dead_letters;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::MAX_PAYLOAD_BYTES;
use super::stored::StoredLetter;
use crate::APPLICATION_NAME;
use crate::config::KafkaSettings;
use crate::consumer::apply_overrides;
use crate::metrics::Metrics;
use crate::offsets::Consumer;

/// Between two looks at the table while nothing waits.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks at whether the process stops.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Most letters of one transaction, and most bytes of them: a letter may have a mebibyte.
const LETTERS_PER_PAGE: i64 = 100;
const BYTES_PER_PAGE: usize = 2 * 1024 * 1024;
/// Most time for Kafka to take a page; the transaction is open meanwhile, and the server ends it after 30 s.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(15);
/// What is published of a letter that the brokers find too large with its headers.
const CUT_PAYLOAD_BYTES: usize = 64 * 1024;
/// How often trouble is reported while it lasts.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// Tells the size of a message that is not published whole.
const CUT_HEADER: &str = "orders.payload.size";

/// The thread that publishes.
pub struct Relay {
    topic: String,
    consumer: Consumer,
    database: DatabaseSettings,
    producer: BaseProducer<Deliveries>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    connection: Option<PgConnection>,
    last_trouble_report: Option<Instant>,
}

impl Relay {
    /// Nothing is connected yet. `topic` is where letters go.
    ///
    /// # Errors
    /// Fails where librdkafka refuses a setting.
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
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("compression.type", "lz4")
            .set("message.max.bytes", "4194304")
            .set(
                "delivery.timeout.ms",
                DELIVERY_TIMEOUT.as_millis().to_string(),
            );
        let producer = config
            .create_with_context(Deliveries::default())
            .context("KAFKA_CONFIG: cannot make the producer of dead letters")?;
        Ok(Self {
            topic,
            consumer,
            database,
            producer,
            metrics,
            shutdown,
            connection: None,
            last_trouble_report: None,
        })
    }

    /// Publishes from now on until shutdown.
    ///
    /// # Errors
    /// Fails where the thread cannot be started.
    pub fn start(mut self) -> anyhow::Result<()> {
        let thread = std::thread::Builder::new().name("relay".to_owned());
        thread
            .spawn(move || self.run())
            .map(drop)
            .context("cannot start the thread that relays dead letters")
    }

    fn run(&mut self) {
        info!(kafka.topic = self.topic, "dead letters are relayed");
        let mut backoff = Backoff::new(LOOK_INTERVAL, Duration::from_secs(30));
        while !self.shutdown.is_cancelled() {
            let delay = match self.relay_page() {
                Ok(0) => LOOK_INTERVAL,
                Ok(relayed) => {
                    backoff.reset();
                    self.last_trouble_report = None;
                    self.metrics.dead_letters_relayed.inc_by(relayed);
                    Duration::ZERO
                }
                Err(error) => {
                    self.connection = None;
                    self.report(&error);
                    backoff.next_delay()
                }
            };
            let until = Instant::now() + delay;
            while Instant::now() < until && !self.shutdown.is_cancelled() {
                std::thread::sleep(STOP_POLL_INTERVAL);
            }
        }
    }

    fn report(&mut self, error: &anyhow::Error) {
        let due = |at: Instant| at.elapsed() >= REPORT_INTERVAL;
        if self.last_trouble_report.is_none_or(due) {
            self.last_trouble_report = Some(Instant::now());
            warn!(
                "cannot relay dead letters to topic {}, going on trying: {error:#}",
                self.topic
            );
        }
    }

    /// Publishes some letters and notes it; other processes that relay take others meanwhile.
    fn relay_page(&mut self) -> anyhow::Result<u64> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let mut connection = db::connect_blocking(&self.database, APPLICATION_NAME)?;
                connection.batch_execute("SET statement_timeout = '10s'")?;
                connection
            }
        };
        let (delivered, trouble) = connection.transaction(|connection| {
            let (delivered, trouble) = self.publish(&lock_page(connection, &self.consumer)?);
            diesel::update(dead_letters::table.filter(dead_letters::id.eq_any(&delivered)))
                .set(dead_letters::relayed_at.eq(now))
                .execute(connection)?;
            Ok::<_, anyhow::Error>((delivered, trouble))
        })?;
        self.connection = Some(connection);
        match trouble {
            Some(error) if delivered.is_empty() => Err(error.into()),
            _ => Ok(delivered.len() as u64),
        }
    }

    /// The letters that Kafka has now, and why it has not all of them.
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
        let mut record: BaseRecord<'_, [u8], [u8], usize> = BaseRecord::with_opaque_to(
            &self.topic,
            usize::try_from(letter.summary.id).unwrap_or_default(),
        )
        .headers(headers(letter, &self.consumer, is_whole));
        record.key = letter.key.as_deref();
        record.payload = payload;
        record.timestamp = letter
            .summary
            .message_timestamp
            .map(|time| time.timestamp_millis());
        match self.producer.send(record) {
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge), _)) => {
                self.producer.context().note(
                    letter.summary.id,
                    Err(RDKafkaErrorCode::MessageSizeTooLarge),
                );
                Ok(())
            }
            Err((error, _)) => Err(error),
            Ok(()) => Ok(()),
        }
    }

    /// Waits for Kafka's answers; on shutdown not to the end.
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
            self.producer.poll(STOP_POLL_INTERVAL);
        }
        self.producer.poll(Duration::ZERO);
        let mut delivered = Vec::new();
        for (id, result) in self.producer.context().take() {
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

/// Locks the next letters that nobody else is publishing.
fn lock_page(connection: &mut PgConnection, consumer: &Consumer) -> QueryResult<Vec<StoredLetter>> {
    let sizes: Vec<(i64, i64)> = dead_letters::table
        .filter(dead_letters::group_id.eq(&consumer.group_id))
        .filter(dead_letters::topic.eq(&consumer.topic))
        .filter(dead_letters::relayed_at.is_null())
        .select((dead_letters::id, dead_letters::payload_size))
        .order(dead_letters::id)
        .limit(LETTERS_PER_PAGE)
        .for_update()
        .skip_locked()
        .load(connection)?;
    let mut bytes = 0;
    let mut page = Vec::new();
    for (id, payload_size) in sizes {
        let kept = usize::try_from(payload_size)
            .map_or(MAX_PAYLOAD_BYTES, |size| size.min(MAX_PAYLOAD_BYTES));
        if !page.is_empty() && bytes + kept > BYTES_PER_PAGE {
            break;
        }
        bytes += kept;
        page.push(id);
    }
    dead_letters::table
        .filter(dead_letters::id.eq_any(page))
        .select(StoredLetter::as_select())
        .order(dead_letters::id)
        .load(connection)
}

/// The message's own headers, and Kafka Connect's of where it came from and what was wrong.
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
    // A constraint refuses where rows are put; all else is found where the value is read.
    let stage = if summary.reason == crate::batch::REFUSED_BY_DATABASE {
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

/// What Kafka answered, by the letter's number.
#[derive(Default)]
struct Deliveries(Mutex<Vec<Delivery>>);

impl Deliveries {
    fn note(&self, id: i64, result: Result<(), RDKafkaErrorCode>) {
        self.lock().push((id, result));
    }

    fn take(&self) -> Vec<Delivery> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Delivery>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Deliveries {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        // Settings for consumers are named among them, one warning each; what matters comes with a delivery.
        debug!(target: "librdkafka", facility, "relay: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!("the relay's producer: {error}: {reason}");
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
        self.note(i64::try_from(id).unwrap_or_default(), result);
    }
}
