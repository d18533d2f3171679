//! How fast a backlog is drained, beside bare COPY BINARY of such rows into the same schema.
//!
//! The rival is the ceiling: two connections, 1,000 orders a transaction, orders made beforehand; no Kafka, no JSON, no
//! offsets, no events.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use diesel::prelude::*;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use shared::db::models::{NewOrder, NewOrderItem};
use shared::db::schema::{order_items, orders};
use shared::order::Order;
use shared::testing::{OrderGenerator, TestDatabase};

use super::{Service, median, wait_for};
use crate::orders::Mix;
use crate::producer::{self, Target};

const PARTITIONS: i32 = 4;
const COPY_CONNECTIONS: usize = 2;
const ORDERS_PER_TRANSACTION: usize = 1_000;

/// Measures `rounds` times each, in turn, and prints a table.
pub(crate) fn run(ingestor: &str, brokers: &str, count: u64, rounds: usize) -> anyhow::Result<()> {
    let topic = format!("bench-{}", fastrand::u64(..));
    create_topic(brokers, &topic)?;
    let target = Target {
        brokers: brokers.to_owned(),
        topic: topic.clone(),
        settings: String::new(),
    };
    producer::produce(&target, Mix::only_new(), 0, count)?;
    let mut generator = OrderGenerator::new(1, chrono::Utc::now());
    let rows: Vec<Order> = (0..count).map(|_| generator.next_order()).collect();

    println!(
        "{count} orders, {PARTITIONS} partitions, in turn on fresh databases of one PostgreSQL:"
    );
    println!("round   COPY orders/s   drain orders/s   ratio   CPU us/order   peak RSS MiB");
    let mut ratios = Vec::new();
    for round in 1..=rounds {
        let ceiling = copy(&rows)?;
        let drain = drain(ingestor, brokers, &topic, count)?;
        let ratio = drain.orders_per_second / ceiling;
        println!(
            "{round:>5} {ceiling:>15.0} {:>16.0} {ratio:>7.2} {:>14.1} {:>14.0}",
            drain.orders_per_second, drain.cpu_us_per_order, drain.peak_mib
        );
        ratios.push(ratio);
    }
    println!("median ratio {:.2}", median(&mut ratios));
    Ok(())
}

fn create_topic(brokers: &str, topic: &str) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()?;
    let topics = [NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1))];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    for outcome in runtime.block_on(admin.create_topics(&topics, &AdminOptions::new()))? {
        outcome.map_err(|(name, code)| anyhow::anyhow!("cannot make topic {name}: {code}"))?;
    }
    Ok(())
}

/// Orders a second.
fn copy(rows: &[Order]) -> anyhow::Result<f64> {
    let database = TestDatabase::create();
    let started_at = Instant::now();
    std::thread::scope(|scope| {
        let shares = rows.chunks(rows.len().div_ceil(COPY_CONNECTIONS));
        let threads: Vec<_> = shares
            .map(|share| scope.spawn(|| copy_share(&mut database.connect(), share)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("COPY panicked"))?
        })
    })?;
    let seconds = started_at.elapsed().as_secs_f64();
    ensure!(database.integer("SELECT count(*) AS value FROM orders") == i64::try_from(rows.len())?);
    Ok(rows.len() as f64 / seconds)
}

fn copy_share(connection: &mut PgConnection, share: &[Order]) -> anyhow::Result<()> {
    for chunk in share.chunks(ORDERS_PER_TRANSACTION) {
        let new_orders: Vec<NewOrder<'_>> = chunk
            .iter()
            .map(|order| NewOrder::new(order, Some((0, 0))))
            .collect();
        let items: Vec<NewOrderItem<'_>> = chunk.iter().flat_map(NewOrderItem::all_of).collect();
        connection.transaction(|connection| {
            diesel::copy_from(orders::table)
                .from_insertable(&new_orders)
                .execute(connection)?;
            diesel::copy_from(order_items::table)
                .from_insertable(&items)
                .execute(connection)
        })?;
    }
    Ok(())
}

struct Drain {
    orders_per_second: f64,
    cpu_us_per_order: f64,
    peak_mib: f64,
}

/// From the first claim to the last order stored; joining the group comes before, and is not a matter of throughput.
fn drain(ingestor: &str, brokers: &str, topic: &str, count: u64) -> anyhow::Result<Drain> {
    let database = TestDatabase::create();
    let settings = database.settings();
    let service = Service::start(
        ingestor,
        &["run"],
        &[
            ("DB_HOST", settings.host.clone()),
            ("DB_PORT", settings.port.to_string()),
            ("DB_USER", settings.user.clone()),
            ("DB_PASSWORD", settings.password.expose().to_owned()),
            ("DB_NAME", settings.name.clone()),
            ("KAFKA_BROKERS", brokers.to_owned()),
            ("KAFKA_TOPIC", topic.to_owned()),
            ("KAFKA_GROUP_ID", settings.name.clone()),
            ("INGESTOR_PORT", "0".to_owned()),
        ],
    )?;
    wait_for("a first claim", || {
        Ok(database.integer("SELECT count(*) AS value FROM consumer_offsets WHERE epoch > 0") > 0)
    })?;
    let started_at = Instant::now();
    let cpu_before = service.usage()?.0;
    let total = i64::try_from(count)?;
    wait_for("the backlog is drained", || {
        Ok(
            database.integer("SELECT sum(next_offset)::bigint AS value FROM consumer_offsets")
                >= total,
        )
    })?;
    let seconds = started_at.elapsed().as_secs_f64();
    let (cpu_after, peak_mib) = service.usage().context("the ingestor has ended")?;
    ensure!(
        database.integer("SELECT count(*) AS value FROM orders") == total,
        "not every order is stored"
    );
    Ok(Drain {
        orders_per_second: count as f64 / seconds,
        cpu_us_per_order: (cpu_after - cpu_before) * 1e6 / count as f64,
        peak_mib,
    })
}
