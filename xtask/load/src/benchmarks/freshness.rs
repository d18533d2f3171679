//! How soon two caches answer what was produced, and what was committed, while orders stream in.
//!
//! - **Produced**: from the moment at which a message is handed to the producer until each api answers `GET` with the
//!   order of that message or a later one. New orders, each known to both caches as one that is not there; and updates of
//!   orders that both have cached.
//! - **Committed**: from the return of a COMMIT of the benchmark's own, which changes an order and notifies as our writers
//!   do, until each api answers the new version. Both caches hit the order just before.
//!
//! The rival, the floor, is a session that only LISTENs: it notes when the same changes are notified to it. What lies
//! before is Kafka, the ingestor and PostgreSQL; what lies behind is the cache, its load and HTTP.
//!
//! Only sampled orders are asked for, one of each kind at a time, over connections that are kept open, and produced ones
//! only once they were notified: asking all the time takes the cores away from what is measured. Between two
//! questions is a pause, the longer the later. A state counts from the arrival of the answer that shows it, and became
//! readable after the answer before: that gap is the resolution, and is printed.
//!
//! New orders are also told stage by stage ([`stages`]), each stage beside what the machine gives without our programs
//! ([`floor`]).
//!
//! Every answer is checked: no version of an order is lower than one seen before from that api, and an order answered with
//! the date of the message is that message.

mod commits;
mod connection;
mod cores;
mod floor;
mod log;
mod rival;
mod stages;
mod stream;
mod table;
mod watcher;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use clap::Args;
use shared::order::Order;
use shared::testing::{OrderGenerator, TestDatabase};
use tokio::sync::oneshot;

use super::ingest::{CLAIMED, Chunk, integer};
use super::topic::Topic;
use super::{Service, print_load_average};
use crate::producer::Target;
use connection::Connection;
use cores::Cores;
use rival::Calls;
use stages::Clock;
use stream::{Pace, Sent};
use watcher::Lane;

/// Orders that the benchmark itself changes.
const OWN_ORDERS: usize = 200;
/// First batches, first loads, statements prepared.
const SETTLING: Duration = Duration::from_secs(3);

/// What to measure.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The program
    #[arg(long)]
    ingestor: String,
    /// The program
    #[arg(long)]
    api: String,
    /// Free ports, one for each api
    #[arg(long, value_delimiter = ',', required = true)]
    api_ports: Vec<u16>,
    #[arg(long, env = "KAFKA_BROKERS")]
    brokers: String,
    /// Process id of a private broker
    #[arg(long)]
    broker_pid: Option<u32>,
    /// Process id of a private PostgreSQL
    #[arg(long)]
    postgres_pid: Option<u32>,
    /// How long samples are taken
    #[arg(long, default_value_t = 60, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Messages a second
    #[arg(long, default_value_t = 1_000, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Of a hundred messages, how many update an order sent before
    #[arg(long, default_value_t = 30, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..100))]
    update_percent: u8,
    /// Partitions of the topic
    #[arg(long, default_value_t = 4, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(1..))]
    partitions: i32,
    /// Samples a second of each kind
    #[arg(long, default_value_t = 20, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Least pause between two questions for a produced order, in microseconds
    #[arg(long, default_value_t = 500, value_name = "NUMBER")]
    pause_us: u64,
    /// How long the producer waits for more to send at once, in milliseconds; it counts
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    linger_ms: u32,
}

impl Options {
    fn target(&self, topic: &Topic) -> Target {
        Target {
            brokers: self.brokers.clone(),
            topic: topic.name.clone(),
            settings: format!("linger.ms={}", self.linger_ms),
        }
    }
}

/// Measures and prints tables.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let database = TestDatabase::create();
    let own_uids = store_own_orders(&database)?;
    let clock = Clock::now();
    let floor = floor::measure(options, &database, &own_uids, clock)?;
    let topic = Topic::create(&options.brokers, options.partitions)?;
    let services = start_services(options, &database, &topic)?;
    println!(
        "{} messages a second, {} % updates, {} partitions, linger {} ms; {} s, {} samples a second of each kind",
        options.rate,
        options.update_percent,
        options.partitions,
        options.linger_ms,
        options.seconds,
        options.samples
    );
    print_load_average();
    let target = options.target(&topic);
    let pace = Pace {
        messages_per_second: options.rate,
        update_percent: options.update_percent,
        samples_per_second: options.samples,
        settling: SETTLING,
        duration: SETTLING + Duration::from_secs(options.seconds.into()),
    };
    let settings = database.settings();
    let mut connection = database.connect();
    let stop = AtomicBool::new(false);
    let calls = Calls::default();
    let cores = Cores::count(options, &services)?;
    let (listening_tx, listening_rx) = mpsc::channel();
    let (stop_tx, stop_rx) = oneshot::channel();
    let (sent, kinds, heard) = std::thread::scope(|scope| {
        let pause = Duration::from_micros(options.pause_us);
        let open = |calls, pause| Lane::open(scope, &options.api_ports, calls, pause);
        let mut new_orders = open(Some(&calls), pause)?;
        let mut updates = open(Some(&calls), pause)?;
        // At first in a tight loop: it takes no longer than a load.
        let mut commits = open(None, Duration::ZERO)?;
        let calls = &calls;
        let rival = scope.spawn(move || rival::listen(&settings, &listening_tx, calls, stop_rx));
        // An error closes the channel; the thread tells which.
        let is_listening = listening_rx.recv().is_ok();
        let stop = &stop;
        let committing = scope.spawn(move || {
            std::thread::sleep(SETTLING);
            commits::commit(
                &mut connection,
                &own_uids,
                options.samples,
                &mut commits,
                stop,
            )?;
            commits.end()
        });
        let sent = if is_listening {
            stream::send(&target, pace, &mut new_orders, &mut updates)
        } else {
            Ok(Sent::default())
        };
        stop.store(true, Ordering::Relaxed);
        let new_orders = new_orders.end()?;
        let updates = updates.end()?;
        let joined = committing.join();
        let commits = joined.map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        drop(stop_tx);
        let joined = rival.join();
        let heard = joined.map_err(|_| anyhow::anyhow!("the listening session panicked"))??;
        anyhow::Ok((sent?, [new_orders, updates, commits], heard))
    })?;
    let rate = f64::from(sent.messages) / sent.seconds;
    println!("sent {rate:.0} messages a second");
    cores.print()?;
    print_load_average();
    table::print_head();
    let names = [
        "new order, from its production",
        "update, from its production",
        "update, from its COMMIT",
    ];
    for (name, sightings) in names.into_iter().zip(&kinds) {
        table::print_kind(name, sightings, &heard)?;
    }
    let log = log::read(&target, options.partitions, sent.messages as usize)?;
    stages::print(
        &mut database.connect(),
        clock,
        &kinds[0],
        &log,
        &heard,
        &floor,
    )
}

fn store_own_orders(database: &TestDatabase) -> anyhow::Result<Vec<String>> {
    let mut generator = OrderGenerator::new(3, chrono::Utc::now());
    let orders: Vec<Order> = (0..OWN_ORDERS).map(|_| generator.next_order()).collect();
    Chunk::of(&orders).copy(&mut database.connect())?;
    let uids = orders.iter().map(|order| order.order_uid.to_string());
    Ok(uids.collect())
}

/// Each api, and the ingestor with every partition claimed.
fn start_services(
    options: &Options,
    database: &TestDatabase,
    topic: &Topic,
) -> anyhow::Result<Vec<Service>> {
    let settings = database.settings();
    let shared = [
        ("DB_HOST", settings.host.clone()),
        ("DB_PORT", settings.port.to_string()),
        ("DB_USER", settings.user.clone()),
        ("DB_PASSWORD", settings.password.expose().to_owned()),
        ("DB_NAME", settings.name.clone()),
    ];
    let mut services = Vec::new();
    for port in &options.api_ports {
        let mut variables = shared.to_vec();
        variables.push(("SERVER_PORT", port.to_string()));
        let mut api = Service::start(&options.api, &[], &variables)?;
        api.wait_for("the api is ready", || Ok(is_ready(*port)))?;
        services.push(api);
    }
    let mut variables = shared.to_vec();
    variables.extend([
        ("KAFKA_BROKERS", options.brokers.clone()),
        ("KAFKA_TOPIC", topic.name.clone()),
        ("KAFKA_GROUP_ID", settings.name.clone()),
        ("INGESTOR_PORT", "0".to_owned()),
    ]);
    let mut ingestor = Service::start(&options.ingestor, &["run"], &variables)?;
    let mut watch = database.connect();
    ingestor.wait_for("every partition is claimed", || {
        Ok(integer(&mut watch, CLAIMED)? >= options.partitions.into())
    })?;
    services.push(ingestor);
    Ok(services)
}

/// Nobody listens there at first.
fn is_ready(port: u16) -> bool {
    let answer = Connection::open(port).and_then(|mut connection| {
        let status = connection.get("/readyz")?.status;
        anyhow::Ok(status)
    });
    answer.is_ok_and(|status| status == 200)
}
