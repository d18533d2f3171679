//! The orders: in Kafka for the drain, and in memory for the rival.

use std::collections::HashMap;

use anyhow::ensure;
use shared::order::Order;
use shared::testing::{OrderGenerator, TestDatabase};

use crate::benchmarks::topic::Topic;
use crate::producer::{self, Target};

/// Seed of the orders. Their uids begin with it.
const SEED: u64 = 1;

/// A topic full of orders.
pub(super) struct Backlog {
    pub topic: Topic,
    pub messages: usize,
    /// What the drain must have stored at the end.
    pub drained: Contents,
    /// As many rows as there are messages, each with a different uid, so that COPY can write them.
    pub rows: Vec<Order>,
}

impl Backlog {
    /// Creates a topic and sends `count` orders to it, of which `repeated_percent` are later states of earlier ones. The senders
    /// trace a share of them.
    pub(super) fn send(
        brokers: &str,
        partitions: i32,
        count: usize,
        repeated_percent: usize,
        traced_share: Option<f64>,
    ) -> anyhow::Result<Self> {
        let topic = Topic::create(brokers, partitions)?;
        let target = Target {
            brokers: brokers.to_owned(),
            topic: topic.name.clone(),
            kafka_config: String::new(),
        };
        let mut orders = make_orders(count, repeated_percent);
        producer::send_orders(&target, &orders, traced_share)?;
        let latest: HashMap<&str, &Order> = orders
            .iter()
            .map(|order| (order.order_uid.as_str(), order))
            .collect();
        let drained = Contents::of(latest.into_values());
        make_uids_unique(&mut orders)?;
        Ok(Self {
            topic,
            messages: count,
            drained,
            rows: orders,
        })
    }
}

/// The repeated orders are spread evenly. Each repeats any earlier order, so most of them repeat an order of an earlier
/// batch.
fn make_orders(count: usize, repeated_percent: usize) -> Vec<Order> {
    let mut generator = OrderGenerator::new(SEED, chrono::Utc::now());
    let mut random = fastrand::Rng::with_seed(1);
    let mut uids: Vec<String> = Vec::new();
    (0..count)
        .map(|index| {
            let repeated_before = index * repeated_percent / 100;
            if (index + 1) * repeated_percent / 100 > repeated_before && !uids.is_empty() {
                return generator.order_with_uid(&uids[random.usize(..uids.len())]);
            }
            let order = generator.next_order();
            uids.push(order.order_uid.to_string());
            order
        })
        .collect()
}

fn make_uids_unique(orders: &mut [Order]) -> anyhow::Result<()> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    for order in orders {
        let times = seen.entry(order.order_uid.to_string()).or_default();
        *times += 1;
        if *times > 1 {
            order.order_uid = format!("{}-{times}", order.order_uid)
                .parse()
                .map_err(|fault| anyhow::anyhow!("a uid is invalid: {fault:?}"))?;
        }
    }
    Ok(())
}

/// Sums over the tables, which show a wrong or a missing row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    orders: i64,
    items: i64,
    /// The sum of `payment_amount`.
    amount: i64,
}

impl Contents {
    pub(super) fn of<'a>(orders: impl Iterator<Item = &'a Order>) -> Self {
        orders.fold(Self::default(), |sum, order| Self {
            orders: sum.orders + 1,
            items: sum.items + order.items.len() as i64,
            amount: sum.amount + order.payment.amount,
        })
    }

    /// Checks that a side has stored every order and every item. Otherwise its rate would mean nothing.
    pub(super) fn ensure_stored(self, database: &TestDatabase) -> anyhow::Result<()> {
        let integer = |expression: &str, table: &str| {
            let query = format!(
                "SELECT {expression} AS value FROM {table} WHERE {}",
                is_stored()
            );
            database.integer(&query)
        };
        let stored = Self {
            orders: integer("count(*)", "orders"),
            items: integer("count(*)", "order_items"),
            amount: integer("coalesce(sum(payment_amount), 0)::bigint", "orders"),
        };
        ensure!(
            stored == self,
            "the database has {stored:?}, but must have {self:?}"
        );
        Ok(())
    }
}

/// Returns the condition for the orders of a backlog. Other orders do not meet it.
fn is_stored() -> String {
    format!("order_uid LIKE '{SEED:x}-%'")
}

/// Returns the statement that deletes the orders of a backlog.
pub(super) fn delete_stored() -> String {
    format!("DELETE FROM orders WHERE {}", is_stored())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_share_of_repeated_orders_is_as_asked_and_the_rows_of_the_rival_have_none() {
        for (percent, distinct) in [(0, 200), (10, 180), (50, 100)] {
            let mut orders = make_orders(200, percent);
            let uids = |orders: &[Order]| -> HashSet<String> {
                orders
                    .iter()
                    .map(|order| order.order_uid.to_string())
                    .collect()
            };
            assert_eq!(uids(&orders).len(), distinct, "{percent} %");
            make_uids_unique(&mut orders).unwrap();
            assert_eq!(uids(&orders).len(), 200);
        }
    }
}
