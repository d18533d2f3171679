//! How soon two caches answer with what was produced, and with what was committed, while orders stream in.
//!
//! - **Produced**: the time begins when a message is handed to the producer. It ends when each api answers `GET` with the
//!   order of that message or a later one. There are new orders, which both caches know as missing, and updates of orders
//!   that both have cached.
//! - **Committed**: the time begins when a COMMIT of the benchmark itself returns. The transaction changes an order and
//!   notifies, as our writers do. The time ends when each api answers with the new version. Both caches had a hit for the
//!   order just before.
//!
//! The rival is a session that only LISTENs. It notes when it is notified of the same changes. What comes before is Kafka,
//! the ingestor and PostgreSQL; what comes after is the cache, its load and HTTP.
//!
//! Only samples are requested: one order of each kind at a time, over connections that are kept open, and produced orders
//! only after they were notified. To request orders all the time would take the cores away from what is measured. Between
//! two requests is a pause, which grows with time. A state counts from the arrival of the answer that shows it. It became
//! readable after the answer before. The time between these two answers is the resolution, which is printed.
//!
//! For new orders each stage is shown too ([`stages`]), compared with what the machine does without our programs
//! ([`floor`]).
//!
//! Every answer is checked: no version of an order is lower than one seen before from that api, and an order with the date
//! of the message must be equal to that message.

mod commits;
mod cores;
mod floor;
mod log;
mod rival;
mod stages;
mod stream;
mod table;
mod watcher;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clap::Args;
use servers::ports::free_port;
use shared::order::Order;
use shared::testing::{OrderGenerator, TestDatabase};

use super::clock::Clock;
use super::copy::Chunk;
use super::services::Programs;
use super::topic::Topic;
use super::{ServerOptions, joined, print_load_average};
use crate::producer::Target;
use cores::Cores;
use rival::Calls;
use stream::{Plan, Sent};
use watcher::{Lane, Sighting};

/// How many api answer.
const APIS: usize = 2;
/// How many orders the benchmark itself changes.
const OWN_ORDERS: usize = 200;
/// How long nothing counts at the beginning: first batches, first loads, prepared statements.
const SETTLING: Duration = Duration::from_secs(3);
/// The kinds of changes.
const KINDS: [&str; 3] = [
    "new order, from its production",
    "update, from its production",
    "update, from its COMMIT",
];

/// What the watchers of one kind of change have seen, for each api.
type Seen = Vec<Vec<Sighting>>;

/// What to measure.
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    programs: Programs,
    #[command(flatten)]
    servers: ServerOptions,
    /// How long samples are taken
    #[arg(long, default_value_t = 60, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Messages per second
    #[arg(long, default_value_t = 1_000, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Percentage of messages that update an earlier order
    #[arg(long, default_value_t = 30, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..100))]
    update_percent: u8,
    /// Partitions of the topic
    #[arg(long, default_value_t = 4, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(1..))]
    partitions: i32,
    /// Samples per second, of each kind
    #[arg(long, default_value_t = 20, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Shortest pause between two requests for a produced order, in microseconds
    #[arg(long, default_value_t = 500, value_name = "NUMBER")]
    pause_us: u64,
    /// How long the producer waits for more messages to send together, in milliseconds; this time counts
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    linger_ms: u32,
}

impl Options {
    fn target(&self, topic: &Topic) -> Target {
        Target {
            brokers: self.servers.brokers.clone(),
            topic: topic.name.clone(),
            kafka_config: format!("linger.ms={}", self.linger_ms),
        }
    }

    fn plan(&self) -> Plan {
        Plan {
            messages_per_second: self.rate,
            update_percent: self.update_percent,
            samples_per_second: self.samples,
            settling: SETTLING,
            duration: SETTLING + Duration::from_secs(self.seconds.into()),
        }
    }
}

/// Runs the measurement and prints its tables.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let database = TestDatabase::create();
    let own_uids = store_own_orders(&database)?;
    let clock = Clock::now();
    let floor = floor::measure(options, &database, &own_uids, clock)?;
    let topic = Topic::create(&options.servers.brokers, options.partitions)?;
    let ports = (0..APIS)
        .map(|_| free_port())
        .collect::<anyhow::Result<Vec<u16>>>()?;
    let services = options.programs.start(
        &database,
        &options.servers.brokers,
        &topic,
        options.partitions,
        &ports,
    )?;
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
    let cores = Cores::count(&options.servers, &services)?;
    let calls = Calls::default();
    let ((sent, seen), heard) = rival::listen_during(&database.settings(), &calls, || {
        watch(options, &database, &target, &ports, &own_uids, &calls)
    })?;
    println!(
        "sent {:.0} messages a second",
        sent.messages as f64 / sent.seconds
    );
    cores.print()?;
    print_load_average();
    table::print_head();
    for (name, sightings) in KINDS.into_iter().zip(&seen) {
        table::print_kind(name, sightings, &heard)?;
    }
    let log = log::read(&target, options.partitions, sent.messages)?;
    let [new_orders, ..] = &seen;
    stages::print(
        &mut database.connect(),
        clock,
        new_orders,
        &log,
        &heard,
        &floor,
    )
}

/// Sends the stream and commits changes, while watchers ask for samples. Returns what they have seen, in the order of
/// [`KINDS`].
fn watch(
    options: &Options,
    database: &TestDatabase,
    target: &Target,
    ports: &[u16],
    own_uids: &[String],
    calls: &Calls,
) -> anyhow::Result<(Sent, [Seen; 3])> {
    let is_stopped = AtomicBool::new(false);
    let is_stopped = &is_stopped;
    thread::scope(|scope| {
        let pause = Duration::from_micros(options.pause_us);
        let open = |calls, pause| Lane::open(scope, ports, calls, pause);
        let mut new_orders = open(Some(calls), pause)?;
        let mut updates = open(Some(calls), pause)?;
        // At first without a pause: it takes no longer than a load.
        let mut commits = open(None, Duration::ZERO)?;
        let committing = scope.spawn(move || {
            let mut connection = database.connect();
            thread::sleep(SETTLING);
            commits::commit(
                &mut connection,
                own_uids,
                options.samples,
                &mut commits,
                is_stopped,
            )?;
            commits.end()
        });
        let sent = stream::send(target, options.plan(), &mut new_orders, &mut updates);
        is_stopped.store(true, Ordering::Relaxed);
        let seen = [
            new_orders.end()?,
            updates.end()?,
            joined(committing.join())?,
        ];
        Ok((sent?, seen))
    })
}

fn store_own_orders(database: &TestDatabase) -> anyhow::Result<Vec<String>> {
    let mut generator = OrderGenerator::new(3, chrono::Utc::now());
    let orders: Vec<Order> = (0..OWN_ORDERS).map(|_| generator.next_order()).collect();
    Chunk::from_kafka(&orders).copy(&mut database.connect())?;
    let uids = orders.iter().map(|order| order.order_uid.to_string());
    Ok(uids.collect())
}
