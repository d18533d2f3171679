//! The spans of a batch: its own, those of its attempts, and those of its messages. The attributes are those of OpenTelemetry's
//! conventions for messaging, where these have one. None names an order.
//!
//! A batch has a trace of its own, because its messages come from many. Its span links to the spans of the messages' senders.
//! A message has a span in the trace of its sender, with a link to the batch. So either leads to the other.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use shared::order::OrderUid;
use shared::traces::{NewSpan, Origin, Span, SpanKind, Traces};

use super::attempt::Step;
use super::transaction::Stored;
use super::trouble::Trouble;
use crate::batch::{Batch, TracedMessage};
use crate::record::{Consumer, Offset, Partition};

/// The span of a batch that is traced.
#[derive(Debug)]
pub(super) struct BatchTrace {
    span: Span,
    traces: Traces,
}

impl BatchTrace {
    /// Begins the span of a batch; `None` if neither one of its messages nor the batch itself is sampled.
    pub(super) fn begin(traces: &Traces, consumer: &Consumer, batch: &Batch) -> Option<Self> {
        if batch.traced.is_empty() && !traces.samples_new() {
            return None;
        }
        let now = SystemTime::now();
        let started_at = now.checked_sub(batch.opened_at().elapsed());
        let senders = batch.traced.iter().map(|message| message.sender.clone());
        let span = traces.begin(
            Origin::NONE,
            NewSpan {
                name: ["store", &consumer.topic].join(" "),
                kind: SpanKind::Consumer,
                started_at: started_at.unwrap_or(now),
                links: senders.collect(),
            },
        );
        set_place(&span, "store", consumer, batch.reading.partition);
        span.set("messaging.batch.message_count", count(batch.records()));
        span.set("orders.offset.first", batch.old_next_offset.0);
        if let Some(last) = batch.last_record {
            span.set("orders.offset.last", last.offset.0);
        }
        Some(Self {
            span,
            traces: traces.clone(),
        })
    }

    /// Gives the lines of the log the trace's id until the value is dropped.
    pub(super) fn enter_log(&self) -> tracing::span::EnteredSpan {
        self.span.log_span().entered()
    }

    /// Begins the span of an attempt.
    pub(super) fn attempt(&self, settles: bool) -> Span {
        let name = if settles {
            "look whether the batch is stored"
        } else {
            "transaction"
        };
        let span = self.span.child(name, SpanKind::Client);
        span.set("db.system.name", "postgresql");
        span
    }

    /// Notes why the batch is tried again.
    pub(super) fn retried(&self, trouble: &Trouble) {
        let class: &'static str = trouble.class().into();
        self.span.event("retry", "error.type", class);
    }

    /// Ends the span of a batch that is not stored.
    pub(super) fn dropped(&self, reason: &'static str) {
        self.span.fail(reason);
        self.span.end();
    }

    /// Ends the span of a batch that is stored, and adds the spans of its messages.
    pub(super) fn stored(&self, consumer: &Consumer, batch: &Batch, stored: &Stored) {
        let letters = batch.dead_letters.len() + stored.held_back.len();
        self.span.set("orders.stored", count(stored.written));
        self.span.set("orders.dead_letters", count(letters));
        self.span.set("orders.left_out", count(batch.left_out));
        if !batch.traced.is_empty() {
            let fates = Fates::new(batch, stored);
            for message in &batch.traced {
                self.message(consumer, batch.reading.partition, message, &fates);
            }
        }
        self.span.end();
    }

    fn message(
        &self,
        consumer: &Consumer,
        partition: Partition,
        message: &TracedMessage,
        fates: &Fates<'_>,
    ) {
        let span = self.traces.begin(
            Origin::sender(message.sender.clone()),
            NewSpan {
                name: ["process", &consumer.topic].join(" "),
                kind: SpanKind::Consumer,
                started_at: message.read_at,
                links: vec![self.span.context()],
            },
        );
        set_place(&span, "process", consumer, partition);
        span.set("messaging.kafka.offset", message.offset.0);
        let (fate, reason) = fates.of(message.offset);
        span.set("orders.fate", fate);
        if let Some(reason) = reason {
            span.set("error.type", reason);
            span.fail("");
        }
        span.end();
    }
}

/// Ends the span of an attempt.
pub(super) fn end_attempt(span: &Span, step: &Result<Step, Trouble>) {
    let failure = match step {
        Ok(Step::Stored(_)) => None,
        Ok(Step::NotStored) => Some("not stored"),
        Ok(Step::BringsBack(_)) => Some("a message would bring back what was removed"),
        Ok(Step::Refused(_)) => Some("a constraint rejects a message"),
        Ok(Step::Lost) => Some("fenced"),
        Ok(Step::NoRow) => Some("the partition's row is locked or missing"),
        Err(trouble) => Some(trouble.class().into()),
    };
    if let Some(failure) = failure {
        span.fail(failure);
    }
    span.end();
}

fn set_place(span: &Span, operation: &'static str, consumer: &Consumer, partition: Partition) {
    span.set("messaging.system", "kafka");
    span.set("messaging.operation.type", "process");
    span.set("messaging.operation.name", operation);
    span.set("messaging.destination.name", consumer.topic.clone());
    span.set(
        "messaging.destination.partition.id",
        partition.0.to_string(),
    );
    span.set("messaging.consumer.group.name", consumer.group_id.clone());
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What became of the messages of a batch that is stored.
struct Fates<'a> {
    batch: &'a Batch,
    stored: &'a Stored,
    /// The offsets of those that count, of several of one order the last.
    winners: HashSet<Offset>,
}

impl<'a> Fates<'a> {
    fn new(batch: &'a Batch, stored: &'a Stored) -> Self {
        let orders = batch.orders.iter();
        let latest: HashMap<&OrderUid, Offset> = orders
            .map(|incoming| (&incoming.order.order_uid, incoming.offset()))
            .collect();
        Self {
            batch,
            stored,
            winners: latest.into_values().collect(),
        }
    }

    /// Returns what became of the message at an offset, and why it was refused.
    fn of(&self, offset: Offset) -> (&'static str, Option<&'static str>) {
        let letters = &self.batch.dead_letters;
        if let Ok(index) = letters.binary_search_by_key(&offset, |letter| letter.position.offset) {
            return ("dead_letter", Some(letters[index].refusal.reason.into()));
        }
        if self.stored.held_back.contains(&offset) {
            return ("held_back", None);
        }
        match self.batch.message_at(offset) {
            Some(_) if self.winners.contains(&offset) => ("stored", None),
            Some(_) => ("superseded", None),
            None => ("left_out", None),
        }
    }
}
