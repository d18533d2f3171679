//! The stream of orders, of which a few are watched from their sending on.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use shared::order::Order;

use super::watcher::{Awaited, Lane, Start};
use crate::orders::{Kind, Message, Messages, Mix};
use crate::producer::{self, Target};

/// How long before its sending a message is made: meanwhile the caches are asked for its order.
const AHEAD: Duration = Duration::from_millis(20);

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub messages_per_second: u32,
    pub update_percent: u8,
    /// Of each kind.
    pub samples_per_second: u32,
    /// Without samples, at the beginning.
    pub settling: Duration,
    pub duration: Duration,
}

/// What was handed over.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sent {
    pub messages: u32,
    pub seconds: f64,
}

/// Sends to the end.
pub(super) fn send<'scope>(
    target: &Target,
    pace: Pace,
    new_orders: &mut Lane<'scope>,
    updates: &mut Lane<'scope>,
) -> anyhow::Result<Sent> {
    let producer = producer::connect(target)?;
    let mut messages = Messages::new(Mix {
        invalid_percent: 0,
        update_percent: pace.update_percent,
        seed: None,
    });
    let rate = f64::from(pace.messages_per_second);
    let ahead = (AHEAD.as_secs_f64() * rate).ceil() as usize;
    let mut made: VecDeque<(Message, bool)> = VecDeque::new();
    let started_at = Instant::now();
    let sampling_at = started_at + pace.settling;
    let mut lanes = [(Kind::New, new_orders), (Kind::Update, updates)];
    let mut sample_at = [sampling_at; 2];
    let mut sent = 0_u32;
    while started_at.elapsed() < pace.duration {
        while made.len() <= ahead {
            let message = messages.next_message()?;
            let mut is_sample = false;
            for ((kind, lane), due_at) in lanes.iter_mut().zip(&mut sample_at) {
                if *kind == message.kind && Instant::now() >= *due_at && lane.is_idle() {
                    lane.prepare(&message.key, *kind == Kind::Update);
                    *due_at = Instant::now()
                        + Duration::from_secs_f64(1.0 / f64::from(pace.samples_per_second));
                    is_sample = true;
                }
            }
            made.push_back((message, is_sample));
        }
        let (message, is_sample) = made.pop_front().context("no message was made")?;
        // From the start, not from the last one: a late message does not slow the stream down.
        let due = Duration::from_secs_f64(f64::from(sent) / rate);
        thread::sleep(due.saturating_sub(started_at.elapsed()));
        let at = Instant::now();
        producer::send(&producer, &target.topic, &message)?;
        sent += 1;
        if is_sample {
            let order = Order::decode(&message.payload)
                .map_err(|fault| anyhow::anyhow!("a message is invalid: {fault}"))?;
            let start = Start {
                begun_at: at,
                at,
                awaited: Awaited::Order(Box::new(order)),
            };
            for (_, lane) in lanes.iter_mut().filter(|(kind, _)| *kind == message.kind) {
                lane.start(&start);
            }
        }
        if lanes.iter().any(|(_, lane)| lane.has_failed()) {
            break;
        }
    }
    let seconds = started_at.elapsed().as_secs_f64();
    for (_, lane) in &mut lanes {
        lane.cancel();
    }
    producer::finish(&producer)?;
    Ok(Sent {
        messages: sent,
        seconds,
    })
}
