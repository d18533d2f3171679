//! What a purge costs the reads and the ingestion beside it. The rival is one DELETE of the same number of orders.
//!
//! Before each measurement as many orders as `--old`, chosen at random, are made old by UPDATE. After it the table is filled
//! up by COPY.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Double, Text};
use servers::interrupt;
use servers::ports::free_port;
use shared::order::Order;
use shared::testing::{OrderGenerator, TestDatabase, integer, variables_of};

use super::clock::ms;
use super::connection::Connection;
use super::copy::Chunk;
use super::services::{PATIENCE, Programs, service};
use super::times::Times;
use super::topic::Topic;
use super::{AS_FOREIGN_WRITER, ServerOptions, beside, joined, print_load_average};
use crate::orders::{Messages, Mix};
use crate::producer::{Pace, Producer, Target};

const DELETE_OLD: &str = "DELETE FROM orders
     WHERE date_created < now() - interval '365 days' AND created_at < now() - interval '365 days'";
const COUNT_OLD: &str = "SELECT count(*) AS value FROM orders
     WHERE date_created < now() - interval '365 days' AND created_at < now() - interval '365 days'";
const PARTITIONS: i32 = 4;
/// What happens before this time is not measured: a new producer first asks for the topic's metadata.
const WARM_UP: Duration = Duration::from_secs(2);
/// The session then promises again to announce its changes itself.
const AS_OURS: &str = "SET orders.emits = 'on'";

/// What to measure.
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    programs: Programs,
    #[command(flatten)]
    servers: ServerOptions,
    /// Orders in the table
    #[arg(long, default_value_t = 1_000_000, value_name = "NUMBER")]
    orders: usize,
    /// How many of them are old
    #[arg(long, default_value_t = 100_000, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    old: u32,
    /// Messages per second
    #[arg(long, default_value_t = 500, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// How often each side is measured
    #[arg(long, default_value_t = 3, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of each measurement without a purge
    #[arg(long, default_value_t = 15, value_name = "NUMBER")]
    seconds: u64,
}

/// What was measured of a side. Times are in milliseconds.
#[derive(Default)]
struct Measured {
    reads: Vec<f64>,
    ingestion: Vec<f64>,
    work_seconds: f64,
}

#[derive(QueryableByName)]
struct Committed {
    #[diesel(sql_type = Text)]
    order_uid: String,
    #[diesel(sql_type = Double)]
    at: f64,
}

/// Runs the measurement and prints its table.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let database = TestDatabase::create();
    beside::fill(&database, options.orders)?;
    let topic = Topic::create(&options.servers.brokers, PARTITIONS)?;
    let port = free_port()?;
    let _services = options.programs.start(
        &database,
        &options.servers.brokers,
        &topic,
        PARTITIONS,
        &[port],
    )?;
    let mut connection = database.connect();
    print_load_average();
    let mut sides: [Measured; 3] = Default::default();
    for round in 0..options.rounds {
        for (side, measured) in sides.iter_mut().enumerate() {
            if side > 0 {
                make_old(&mut connection, options.old)?;
            }
            measure(options, &database, &topic, port, side, measured)?;
            if side > 0 {
                let left = integer(&mut connection, COUNT_OLD)?;
                ensure!(left == 0, "{left} old orders are left");
                refill(
                    &mut connection,
                    u64::from(round) * 3 + side as u64,
                    options.old as usize,
                )?;
            }
        }
    }
    print_load_average();
    print(options, sides);
    Ok(())
}

fn make_old(connection: &mut PgConnection, old: u32) -> anyhow::Result<()> {
    connection.batch_execute(AS_FOREIGN_WRITER)?;
    let changed = diesel::sql_query(
        "UPDATE orders SET date_created = now() - interval '400 days', created_at = now() - interval '400 days' \
         WHERE order_uid IN (SELECT order_uid FROM orders ORDER BY random() LIMIT $1)",
    )
    .bind::<BigInt, _>(i64::from(old))
    .execute(connection)?;
    connection.batch_execute(AS_OURS)?;
    ensure!(
        changed == old as usize,
        "only {changed} orders were made old"
    );
    Ok(connection.batch_execute("VACUUM (ANALYZE) orders")?)
}

fn refill(connection: &mut PgConnection, seed: u64, count: usize) -> anyhow::Result<()> {
    let mut generator = OrderGenerator::new(0x9e11_0000 + seed, chrono::Utc::now());
    let orders: Vec<Order> = (0..count).map(|_| generator.next_order()).collect();
    for chunk in orders.chunks(1_000) {
        Chunk::from_api(chunk).copy(connection)?;
    }
    Ok(connection.batch_execute("VACUUM (ANALYZE) orders")?)
}

fn measure(
    options: &Options,
    database: &TestDatabase,
    topic: &Topic,
    port: u16,
    side: usize,
    measured: &mut Measured,
) -> anyhow::Result<()> {
    let uids =
        database.texts("SELECT order_uid::text AS value FROM orders ORDER BY random() LIMIT 50000");
    let (is_stopped, is_warm) = (&AtomicBool::new(false), &AtomicBool::new(false));
    let (reads, mut sent, seconds, from_ms) = thread::scope(|scope| {
        let reading = scope.spawn(|| read(port, &uids, is_warm, is_stopped));
        let sending = scope.spawn(|| send(options, topic, is_stopped));
        thread::sleep(WARM_UP);
        is_warm.store(true, Ordering::Relaxed);
        let from_ms = ms(chrono::Utc::now());
        let begun_at = Instant::now();
        let worked = work(options, database, side);
        let seconds = begun_at.elapsed().as_secs_f64();
        is_stopped.store(true, Ordering::Relaxed);
        let (reads, sent) = (joined(reading.join()), joined(sending.join()));
        worked?;
        anyhow::Ok((reads?, sent?, seconds, from_ms))
    })?;
    sent.retain(|(_, at)| *at >= from_ms);
    measured.reads.extend(reads);
    measured
        .ingestion
        .extend(committed(&mut database.connect(), &sent)?);
    measured.work_seconds += seconds;
    Ok(())
}

fn work(options: &Options, database: &TestDatabase, side: usize) -> anyhow::Result<()> {
    match side {
        0 => thread::sleep(Duration::from_secs(options.seconds)),
        1 => service(&options.programs.ingestor)
            .args(["purge", "--older-than", "365d", "--orders", "--yes"])
            .envs(&variables_of(&database.settings()))
            .run()?,
        _ => {
            let mut connection = database.connect();
            connection.batch_execute(AS_FOREIGN_WRITER)?;
            diesel::sql_query(DELETE_OLD).execute(&mut connection)?;
        }
    }
    Ok(())
}

fn read(
    port: u16,
    uids: &[String],
    is_warm: &AtomicBool,
    is_stopped: &AtomicBool,
) -> anyhow::Result<Vec<f64>> {
    let mut connection = Connection::open(port)?;
    let mut times = Vec::new();
    for uid in uids.iter().cycle() {
        if is_stopped.load(Ordering::Relaxed) {
            break;
        }
        let at = Instant::now();
        let status = connection.get(&format!("/order/{uid}"))?.status;
        ensure!(matches!(status, 200 | 404), "the api answered {status}");
        if is_warm.load(Ordering::Relaxed) {
            times.push(at.elapsed().as_secs_f64() * 1e3);
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(times)
}

fn send(
    options: &Options,
    topic: &Topic,
    is_stopped: &AtomicBool,
) -> anyhow::Result<Vec<(String, f64)>> {
    let producer = Producer::connect(&Target {
        brokers: options.servers.brokers.clone(),
        topic: topic.name.clone(),
        kafka_config: "linger.ms=0".to_owned(),
    })?;
    let mut messages = Messages::new(Mix::only_new());
    let pace = Pace::start(options.rate);
    let mut sent = Vec::new();
    while !is_stopped.load(Ordering::Relaxed) {
        let message = messages.next_message()?;
        pace.wait_for(sent.len());
        let at = ms(chrono::Utc::now());
        producer.send(&message)?;
        sent.push((message.key.to_string(), at));
    }
    producer.finish()?;
    Ok(sent)
}

/// Waits until all are stored, and returns the time from each message's production to its COMMIT.
fn committed(connection: &mut PgConnection, sent: &[(String, f64)]) -> anyhow::Result<Vec<f64>> {
    let uids: Vec<&str> = sent.iter().map(|(uid, _)| uid.as_str()).collect();
    let rows = interrupt::wait_for("not all orders were stored", PATIENCE, || {
        let rows: Vec<Committed> = diesel::sql_query(
            "SELECT order_uid::text, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 * 1000 AS at \
             FROM orders WHERE order_uid = ANY($1)",
        )
        .bind::<Array<Text>, _>(&uids)
        .load(connection)?;
        Ok((rows.len() == sent.len()).then_some(rows))
    })?;
    let at: HashMap<String, f64> = rows
        .into_iter()
        .map(|row| (row.order_uid, row.at))
        .collect();
    Ok(sent
        .iter()
        .filter_map(|(uid, sent)| Some(at.get(uid)? - sent))
        .collect())
}

fn print(options: &Options, sides: [Measured; 3]) {
    println!(
        "{:<14} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "side", "read p50", "p99", "ingest p50", "p99", "seconds", "orders/s"
    );
    let mut quiet = [f64::NAN; 4];
    for (number, (name, measured)) in ["quiet", "ingestor purge", "one DELETE"]
        .into_iter()
        .zip(sides)
        .enumerate()
    {
        let [reads, ingestion] = [measured.reads, measured.ingestion].map(Times::of_ms);
        let [p50, p99] = [50, 99].map(|percent| reads.percentile(percent));
        let [in50, in99] = [50, 99].map(|percent| ingestion.percentile(percent));
        let seconds = measured.work_seconds / f64::from(options.rounds);
        let rate = if number == 0 {
            0.0
        } else {
            f64::from(options.old) / seconds
        };
        println!(
            "{name:<14} {p50:>6.2} ms {p99:>6.2} ms {in50:>6.2} ms {in99:>6.2} ms {seconds:>9.2} {rate:>9.0}"
        );
        if number == 0 {
            quiet = [p50, p99, in50, in99];
        } else {
            println!(
                "{:<14} {:>9.2} {:>9.2} {:>9.2} {:>9.2}",
                "  to quiet",
                p50 / quiet[0],
                p99 / quiet[1],
                in50 / quiet[2],
                in99 / quiet[3]
            );
        }
    }
}
