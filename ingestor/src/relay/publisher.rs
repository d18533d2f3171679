//! Publishes a page of letters: what the topic refuses is tried again, smaller each time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::outgoing::Outgoing;
use crate::config::{APPLICATION_NAME, KafkaSettings};
use crate::dead_letters::stored::StoredLetter;
use crate::kafka::apply_overrides;
use crate::record::Consumer;

/// How long one poll of the producer waits for acknowledgements.
const ACKNOWLEDGEMENT_POLL: Duration = Duration::from_millis(100);
/// The most time that Kafka has to acknowledge what was sent. No letter of the page is sent again after it. The page's
/// transaction is open meanwhile, and the server ends it after 30 s.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);
/// How much longer the client may take to say that the time is over.
const ANSWER_MARGIN: Duration = Duration::from_secs(1);

/// The producer, and where it publishes.
pub(super) struct Publisher {
    topic: String,
    consumer: Consumer,
    config: ClientConfig,
    /// None after trouble: a client can give itself up for ever, for example without authority.
    producer: Option<BaseProducer<Deliveries>>,
    shutdown: CancellationToken,
    /// The bounds of letters that were refused in the last page, and for whose next attempt there was no time.
    bounds: HashMap<i64, usize>,
}

/// What became of a page. Letters that are in neither list are to be published later.
#[derive(Default)]
pub(super) struct Published {
    /// The letters that Kafka has.
    pub delivered: Vec<i64>,
    /// The letters that Kafka refuses for what they are, each with the reason.
    pub refused: Vec<(i64, String)>,
    /// Why others could not be published now.
    pub trouble: Option<String>,
}

/// Whose fault a refusal is.
enum Fault {
    /// The letter is too large for the topic.
    Size,
    /// The letter is not what the topic takes, for example it lacks a key.
    Letter,
    /// The topic, the brokers or the client are in trouble.
    Other,
}

fn fault(code: RDKafkaErrorCode) -> Fault {
    match code {
        RDKafkaErrorCode::MessageSizeTooLarge
        | RDKafkaErrorCode::MessageBatchTooLarge
        | RDKafkaErrorCode::InvalidMessageSize => Fault::Size,
        RDKafkaErrorCode::InvalidRecord => Fault::Letter,
        // Among these is InvalidTimestamp: letters have the present time, so the clocks differ, and every letter meets it.
        _ => Fault::Other,
    }
}

impl Publisher {
    /// Makes the producer; nothing is connected yet.
    ///
    /// # Errors
    /// Returns an error if librdkafka rejects a setting.
    pub(super) fn new(
        topic: String,
        kafka: &KafkaSettings,
        consumer: Consumer,
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
            // A topic's limit is one for batches, and all of a batch are refused together.
            .set("batch.num.messages", "1")
            // Says that the topic is missing before the time is over, which would say less.
            .set("topic.metadata.propagation.max.ms", "5000")
            .set("delivery.timeout.ms", delivery_timeout_ms);
        let producer =
            create(&config).context("KAFKA_CONFIG: cannot create the producer of dead letters")?;
        Ok(Self {
            topic,
            consumer,
            config,
            producer: Some(producer),
            shutdown,
            bounds: HashMap::new(),
        })
    }

    pub(super) fn topic(&self) -> &str {
        &self.topic
    }

    pub(super) fn consumer(&self) -> &Consumer {
        &self.consumer
    }

    /// Publishes letters in their order. One that is refused as too large follows later, cut.
    pub(super) fn publish(&mut self, letters: &[StoredLetter]) -> Published {
        let mut published = Published::default();
        if letters.is_empty() {
            return published;
        }
        let producer = match self
            .producer
            .take()
            .map_or_else(|| create(&self.config), Ok)
        {
            Ok(producer) => producer,
            Err(error) => {
                published.trouble = Some(format!("cannot create the producer: {error}"));
                return published;
            }
        };
        let started_at = Instant::now();
        let bounds = std::mem::take(&mut self.bounds);
        let mut waiting: Vec<Outgoing<'_>> = letters
            .iter()
            .map(|letter| Outgoing::new(letter, bounds.get(&letter.summary.id).copied()))
            .collect();
        while !waiting.is_empty() && started_at.elapsed() < DELIVERY_TIMEOUT {
            let mut answers = self.attempt(&producer, &waiting);
            self.bounds.clear();
            waiting.retain_mut(|outgoing| {
                let answer = answers.remove(&outgoing.id());
                self.settle(outgoing, answer, &mut published)
            });
        }
        if let Some(trouble) = &mut published.trouble {
            if let Some(cause) = producer.context().last_error.lock().take() {
                *trouble = format!("{trouble} ({cause})");
            }
        } else {
            self.producer = Some(producer);
        }
        published
    }

    /// Sends letters, and returns Kafka's answers. A shutdown cuts the wait for them short.
    fn attempt(
        &self,
        producer: &BaseProducer<Deliveries>,
        letters: &[Outgoing<'_>],
    ) -> HashMap<i64, Result<(), RDKafkaErrorCode>> {
        let mut answers = HashMap::new();
        for letter in letters {
            if let Err((error, _)) = producer.send(letter.record(&self.topic, &self.consumer)) {
                answers.insert(letter.id(), Err(code(&error)));
            }
        }
        let sent_at = Instant::now();
        while producer.in_flight_count() > 0
            && sent_at.elapsed() < DELIVERY_TIMEOUT + ANSWER_MARGIN
            && !self.shutdown.is_cancelled()
        {
            producer.poll(ACKNOWLEDGEMENT_POLL);
        }
        producer.poll(Duration::ZERO);
        answers.extend(producer.context().answers.lock().drain(..));
        answers
    }

    /// Acts on the answer to a letter, and returns whether the letter must be sent again.
    fn settle(
        &mut self,
        outgoing: &mut Outgoing<'_>,
        answer: Option<Result<(), RDKafkaErrorCode>>,
        published: &mut Published,
    ) -> bool {
        let id = outgoing.id();
        let code = match answer {
            Some(Ok(())) => {
                published.delivered.push(id);
                return false;
            }
            Some(Err(code)) => code,
            None => RDKafkaErrorCode::MessageTimedOut,
        };
        let reason = || format!("{}: {code}", self.topic);
        match fault(code) {
            Fault::Size => {
                if let Some(bound) = outgoing.shrink() {
                    self.bounds.insert(id, bound);
                    return true;
                }
                let reason = format!("{}, even with everything cut", reason());
                published.refused.push((id, reason));
            }
            Fault::Letter => published.refused.push((id, reason())),
            Fault::Other if self.shutdown.is_cancelled() => {}
            Fault::Other => published.trouble = Some(reason()),
        }
        false
    }
}

fn create(config: &ClientConfig) -> KafkaResult<BaseProducer<Deliveries>> {
    config.create_with_context(Deliveries::default())
}

fn code(error: &KafkaError) -> RDKafkaErrorCode {
    error
        .rdkafka_error_code()
        .unwrap_or(RDKafkaErrorCode::Unknown)
}

/// Kafka's answers, with the letters' numbers, and the last error of the client itself.
#[derive(Default)]
struct Deliveries {
    answers: Mutex<Vec<(i64, Result<(), RDKafkaErrorCode>)>>,
    last_error: Mutex<Option<String>>,
}

impl ClientContext for Deliveries {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        // librdkafka warns once for every setting that is for consumers only. What matters comes with a delivery.
        debug!(target: "librdkafka", facility, "relay: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!("error of the relay's producer: {error}: {reason}");
        // This one follows an error that says why, such as a refused connection or a wrong password.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self.last_error.lock() = Some(reason.to_owned());
        }
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, id: usize) {
        let answer = match result {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(code(error)),
        };
        let id = i64::try_from(id).unwrap_or_default();
        self.answers.lock().push((id, answer));
    }
}
