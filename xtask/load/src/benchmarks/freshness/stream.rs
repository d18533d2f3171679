//! The stream of orders. Some of them are watched from the moment when they are sent.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use shared::order::Order;

use super::watcher::{Awaited, Lane, Start};
use crate::orders::{Kind, Message, Messages, Mix};
use crate::producer::{Pace, Producer, Target};

/// How long before it is sent a message is made. Meanwhile the caches are asked for its order.
const AHEAD: Duration = Duration::from_millis(20);

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub messages_per_second: u32,
    pub update_percent: u8,
    /// The number of samples of each kind.
    pub samples_per_second: u32,
    /// The time without samples at the beginning.
    pub settling: Duration,
    pub duration: Duration,
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub messages: usize,
    pub seconds: f64,
}

/// The lane of one kind, and when its next sample is due.
struct Sampled<'a, 'scope> {
    kind: Kind,
    lane: &'a mut Lane<'scope>,
    due_at: Instant,
}

impl Sampled<'_, '_> {
    /// Prepares the watchers for a message if a sample is due, and returns whether it has done so.
    fn take(&mut self, message: &Message, interval: Duration) -> bool {
        let is_taken =
            self.kind == message.kind && Instant::now() >= self.due_at && self.lane.is_idle();
        if is_taken {
            self.lane.prepare(&message.key, self.kind == Kind::Update);
            self.due_at = Instant::now() + interval;
        }
        is_taken
    }
}

/// Sends orders until the duration of the plan has passed, or a watcher has failed.
pub(super) fn send<'scope>(
    target: &Target,
    plan: Plan,
    new_orders: &mut Lane<'scope>,
    updates: &mut Lane<'scope>,
) -> anyhow::Result<Sent> {
    let producer = Producer::connect(target)?;
    let mut messages = Messages::new(Mix {
        update_percent: plan.update_percent,
        ..Mix::only_new()
    });
    let ahead = AHEAD.as_secs_f64() * f64::from(plan.messages_per_second);
    let interval = Duration::from_secs_f64(1.0 / f64::from(plan.samples_per_second));
    let mut made: VecDeque<(Message, bool)> = VecDeque::new();
    let started_at = Instant::now();
    let pace = Pace::start(plan.messages_per_second);
    let mut lanes =
        [(Kind::New, new_orders), (Kind::Update, updates)].map(|(kind, lane)| Sampled {
            kind,
            lane,
            due_at: started_at + plan.settling,
        });
    let mut sent = 0;
    while started_at.elapsed() < plan.duration {
        while made.len() <= ahead.ceil() as usize {
            let message = messages.next_message()?;
            let mut lanes = lanes.iter_mut();
            let is_sample = lanes.any(|sampled| sampled.take(&message, interval));
            made.push_back((message, is_sample));
        }
        let (message, is_sample) = made.pop_front().context("no message was made")?;
        pace.wait_for(sent);
        let at = Instant::now();
        producer.send(&message)?;
        sent += 1;
        if is_sample {
            let order = Order::decode(&message.payload)
                .map_err(|fault| anyhow::anyhow!("a message is invalid: {fault}"))?;
            let start = Start {
                begun_at: at,
                at,
                awaited: Awaited::Order(Box::new(order)),
            };
            let of_kind = lanes
                .iter_mut()
                .find(|sampled| sampled.kind == message.kind);
            of_kind.context("a sample has no lane")?.lane.start(&start);
        }
        if lanes.iter().any(|sampled| sampled.lane.has_failed()) {
            break;
        }
    }
    let seconds = started_at.elapsed().as_secs_f64();
    for sampled in &mut lanes {
        sampled.lane.cancel();
    }
    producer.finish()?;
    Ok(Sent {
        messages: sent,
        seconds,
    })
}
