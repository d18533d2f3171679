//! How fast a backlog is drained, beside bare COPY BINARY of the same rows into the same schema.
//!
//! The rival is the ceiling: two connections, 1,000 orders a transaction, orders made beforehand; no Kafka, no JSON, no
//! offsets, no events. It encodes by diesel's `copy_from`, as the ingestor does: another encoder (tokio-postgres's binary
//! copy) would mix the encoders' difference into the ratio, which is to show what everything around COPY costs.
//!
//! The drain is the program itself, with its default settings, timed from its first claim until its offsets have passed
//! the last order. It is watched over one connection that is made before: a connection for each look (a fork and a SCRAM
//! handshake) was seen to take a core away from what is measured. Every measurement has a database of its own; dropping
//! the one before forced a checkpoint, so both sides start with clean buffers.

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

use super::{Service, in_turn, median, print_load_average};
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
    let mut generator = OrderGenerator::new(1, chrono::Utc::now());
    let rows: Vec<Order> = (0..count).map(|_| generator.next_order()).collect();
    producer::send_orders(&target, &rows)?;

    println!(
        "{count} orders, {PARTITIONS} partitions, in turn on fresh databases of one PostgreSQL:"
    );
    print_load_average();
    println!("round   COPY orders/s   drain orders/s   ratio   CPU us/order   peak RSS MiB");
    let mut ratios = Vec::new();
    for round in 1..=rounds {
        let (ceiling, drain) = in_turn(
            round,
            || copy(&rows),
            || drain(ingestor, brokers, &topic, &rows),
        )?;
        let ratio = drain.orders_per_second / ceiling;
        println!(
            "{round:>5} {ceiling:>15.0} {:>16.0} {ratio:>7.2} {:>14.1} {:>14.0}",
            drain.orders_per_second, drain.cpu_us_per_order, drain.peak_mib
        );
        ratios.push(ratio);
    }
    print_load_average();
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
    ensure_all_stored(&database, rows)?;
    Ok(rows.len() as f64 / seconds)
}

/// Both sides must have written every order and every item, or their rates mean nothing.
fn ensure_all_stored(database: &TestDatabase, rows: &[Order]) -> anyhow::Result<()> {
    let items: usize = rows.iter().map(|order| order.items.len()).sum();
    for (table, expected) in [("orders", rows.len()), ("order_items", items)] {
        let stored = database.integer(&format!("SELECT count(*) AS value FROM {table}"));
        ensure!(
            stored == i64::try_from(expected)?,
            "{stored} rows in {table} in place of {expected}"
        );
    }
    Ok(())
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
fn drain(ingestor: &str, brokers: &str, topic: &str, rows: &[Order]) -> anyhow::Result<Drain> {
    let database = TestDatabase::create();
    let settings = database.settings();
    let mut watch = database.connect();
    let mut service = Service::start(
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
    service.wait_for("a first claim", || {
        let claimed = "SELECT count(*) AS value FROM consumer_offsets WHERE epoch > 0";
        Ok(integer(&mut watch, claimed)? > 0)
    })?;
    let started_at = Instant::now();
    let cpu_before = service.usage()?.0;
    let total = i64::try_from(rows.len())?;
    service.wait_for("the backlog is drained", || {
        let passed = "SELECT sum(next_offset)::bigint AS value FROM consumer_offsets";
        Ok(integer(&mut watch, passed)? >= total)
    })?;
    let seconds = started_at.elapsed().as_secs_f64();
    let (cpu_after, peak_mib) = service.usage().context("the ingestor has ended")?;
    ensure_all_stored(&database, rows)?;
    let orders = rows.len() as f64;
    Ok(Drain {
        orders_per_second: orders / seconds,
        cpu_us_per_order: (cpu_after - cpu_before) * 1e6 / orders,
        peak_mib,
    })
}

fn integer(connection: &mut PgConnection, query: &str) -> QueryResult<i64> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        value: i64,
    }
    let row: Row = diesel::sql_query(query).get_result(connection)?;
    Ok(row.value)
}
