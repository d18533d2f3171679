//! The mix of messages: new orders, updates, and invalid messages.

use chrono::Utc;
use clap::Args;
use shared::order::Order;
use shared::testing::{InvalidKind, OrderGenerator};

/// How many of the latest orders can be updated.
const UPDATABLE_ORDERS: usize = 1_000;

/// What a stream consists of.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Mix {
    /// Percentage of invalid messages, of every kind
    #[arg(long, default_value_t = 0, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub invalid_percent: u8,
    /// Percentage of valid messages that update an earlier order
    #[arg(long, default_value_t = 5, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub update_percent: u8,
    /// The same seed sends the same orders, except for their dates; by default the seed is random
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
}

impl Mix {
    /// Only new orders, with a random seed.
    pub(crate) fn only_new() -> Self {
        Self {
            invalid_percent: 0,
            update_percent: 0,
            seed: None,
        }
    }
}

/// The kind of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    New,
    Update,
    Invalid,
}

/// A message to send.
#[derive(Debug)]
pub(crate) struct Message {
    pub kind: Kind,
    /// The order's uid. Messages of one order keep their order only within a partition.
    pub key: String,
    pub payload: Vec<u8>,
    /// The header by which the sender's trace goes on.
    pub traceparent: Option<String>,
}

impl Message {
    pub(crate) fn new(kind: Kind, order: &Order) -> anyhow::Result<Self> {
        Ok(Self {
            kind,
            key: order.order_uid.to_string(),
            payload: serde_json::to_vec(order)?,
            traceparent: None,
        })
    }
}

/// Makes the messages of a stream.
#[derive(Debug)]
pub(crate) struct Messages {
    mix: Mix,
    random: fastrand::Rng,
    orders: OrderGenerator,
    sent_uids: Vec<String>,
}

impl Messages {
    pub(crate) fn new(mix: Mix) -> Self {
        let seed = mix.seed.unwrap_or_else(|| fastrand::u64(..));
        Self {
            mix,
            // Not the series of random numbers of the generator.
            random: fastrand::Rng::with_seed(!seed),
            orders: OrderGenerator::new(seed, Utc::now()),
            sent_uids: Vec::new(),
        }
    }

    pub(crate) fn next_message(&mut self) -> anyhow::Result<Message> {
        if self.happens(self.mix.invalid_percent) {
            let order = self.orders.next_order();
            let kind = InvalidKind::ALL[self.random.usize(..InvalidKind::ALL.len())];
            let (payload, _) = kind.of(&order);
            return Ok(Message {
                kind: Kind::Invalid,
                key: order.order_uid.to_string(),
                payload,
                traceparent: None,
            });
        }
        if !self.sent_uids.is_empty() && self.happens(self.mix.update_percent) {
            let uid = &self.sent_uids[self.random.usize(..self.sent_uids.len())];
            let order = self.orders.order_with_uid(uid);
            return message(Kind::Update, order);
        }
        let order = self.orders.next_order();
        let uid = order.order_uid.to_string();
        if self.sent_uids.len() < UPDATABLE_ORDERS {
            self.sent_uids.push(uid);
        } else {
            let replaced = self.random.usize(..UPDATABLE_ORDERS);
            self.sent_uids[replaced] = uid;
        }
        message(Kind::New, order)
    }

    fn happens(&mut self, percent: u8) -> bool {
        self.random.u8(..100) < percent
    }
}

/// The date of the order is now. In a slow stream the generator's dates, a millisecond apart, would fall behind. But the
/// latest order must be the newest one on the page.
fn message(kind: Kind, mut order: Order) -> anyhow::Result<Message> {
    order.date_created = Utc::now();
    order.payment.payment_dt = order.date_created.timestamp();
    Message::new(kind, &order)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(mix: Mix, count: usize) -> Vec<(Kind, String)> {
        let mut messages = Messages::new(mix);
        (0..count)
            .map(|_| {
                let message = messages.next_message().unwrap();
                assert_eq!(
                    Order::decode(&message.payload).is_ok(),
                    message.kind != Kind::Invalid
                );
                (message.kind, message.key)
            })
            .collect()
    }

    #[test]
    fn the_mix_is_as_asked_and_the_same_for_a_seed() {
        let mix = Mix {
            invalid_percent: 20,
            update_percent: 50,
            seed: Some(7),
        };
        let first = kinds(mix, 1_000);
        let share = |kind| first.iter().filter(|(found, _)| *found == kind).count();
        assert!((150..250).contains(&share(Kind::Invalid)));
        assert!((350..450).contains(&share(Kind::Update)));
        assert_eq!(first, kinds(mix, 1_000));
    }

    #[test]
    fn a_stream_of_new_orders_never_repeats_a_uid() {
        let mut keys: Vec<String> = kinds(Mix::only_new(), 2_000)
            .into_iter()
            .map(|(_, key)| key)
            .collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 2_000);
    }
}
