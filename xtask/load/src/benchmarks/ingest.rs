//! How fast the ingestor drains a backlog, compared with bare COPY BINARY of the same rows into the same schema.
//!
//! **The rival** is the upper limit: two connections, with 1,000 orders per transaction. Its connections and rows are
//! prepared before its time begins. It does nothing else: no Kafka, no JSON, no validation, no offsets, no search for
//! existing orders, no events. It encodes with diesel's `copy_from`, as the ingestor does. With bytes prepared beforehand
//! the ratio would include the cost of the encoder, but it is meant to show the cost of everything around COPY. With
//! `--connections 1` the rival is the upper limit of one partition, whose transactions follow one another because of the
//! fence.
//!
//! **The drain** is the program itself with its default settings. Its time runs from its first claim until its offsets have
//! passed the last message. Joining the group comes before that and has nothing to do with throughput. The benchmark
//! watches over one session, which is opened beforehand. A new connection for each look (a fork and a SCRAM handshake) took
//! a core away from what is measured. CPU time and statements of that session are not counted.
//!
//! **Repeated orders**: a share of the messages are later states of earlier orders. A COPY cannot write an order twice, so
//! the rival gets the same rows with different uids. Both rates count *messages*, not distinct orders.
//!
//! **Other rivals** can replace COPY: the same drain without the triggers for foreign writers, which shows what they cost;
//! or another build of the program, on the schema that it creates itself. **A change** of the surroundings can be measured
//! too: a setting of PostgreSQL, sessions that listen, or traces. The rival is then the same drain without the change.
//!
//! Each measurement has its own database. Dropping the previous database has forced a checkpoint, so both sides start with
//! clean buffers. **Beside many orders** all measurements share one database, because it takes minutes to fill it. What a
//! measurement has stored is then deleted and vacuumed, and a checkpoint is forced too. The CPU time of PostgreSQL includes
//! all its processes, also those that write the WAL and checkpoints.

mod backlog;
mod listeners;
mod server;
mod table;

use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use diesel::prelude::*;
use servers::proc;
use shared::order::Order;
use shared::testing::{TestDatabase, integer};

use super::copy::Chunk;
use super::services::{CLAIMED, ingestor, wait_for};
use super::traces::{Traces, parse_share};
use super::{ServerOptions, beside, joined, print_load_average};
use backlog::{Backlog, Contents};
use listeners::Listeners;
use server::{Servers, session_pid};
use table::{Measurement, Table};

const ORDERS_PER_TRANSACTION: usize = 1_000;

const HAS_SCHEMA: &str =
    "SELECT /* by the benchmark */ count(to_regclass('consumer_offsets')) AS value";
const PASSED: &str =
    "SELECT /* by the benchmark */ sum(next_offset)::bigint AS value FROM consumer_offsets";

/// What to measure.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Path of the ingestor
    #[arg(long)]
    ingestor: String,
    #[command(flatten)]
    servers: ServerOptions,
    /// Messages of the backlog
    #[arg(long, default_value_t = 100_000, value_name = "NUMBER",
          value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// How often each side is measured
    #[arg(long, default_value_t = 3, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Numbers of partitions; each has its own table
    #[arg(long, default_value = "1,4", value_name = "NUMBERS", value_delimiter = ',',
          value_parser = clap::value_parser!(i32).range(1..))]
    partitions: Vec<i32>,
    /// Percentages of messages that are later states of earlier orders; each has its own table
    #[arg(long, default_value = "0,10", value_name = "NUMBERS", value_delimiter = ',',
          value_parser = clap::value_parser!(u8).range(0..100))]
    repeated: Vec<u8>,
    /// Replace COPY by the drain without the triggers for foreign writers
    #[arg(long, conflicts_with_all = ["former", "beside"])]
    without_guard: bool,
    /// Replace COPY by the drain with this build of the ingestor, on its own schema
    #[arg(long, value_name = "PROGRAM", conflicts_with = "beside")]
    former: Option<String>,
    /// Replace COPY by the plain drain, and drain with this setting of the database
    #[arg(long, value_name = "NAME=VALUE", conflicts_with_all = ["former", "beside", "without_guard"])]
    setting: Option<String>,
    /// Replace COPY by the plain drain, and drain while this many other sessions listen to the events
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["former", "beside", "without_guard"])]
    listeners: Option<usize>,
    /// Replace COPY by the plain drain, and drain with traces of this share of the messages and batches, 0..=1
    #[arg(long, value_name = "SHARE", value_parser = parse_share,
          conflicts_with_all = ["former", "beside", "without_guard"])]
    traced: Option<f64>,
    /// How many orders are in the table before the measurements
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    beside: usize,
    /// Connections of COPY
    #[arg(long, default_value_t = 2, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
}

/// Measures all cases and prints a table for each.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let mut servers = Servers::new(&options.servers)?;
    println!(
        "{} messages, in turn on fresh databases of one PostgreSQL; COPY over {} connections; client: the threads that \
         copy, or the ingestor",
        options.count, options.connections
    );
    let place = Place::prepare(options)?;
    let traces = options.traced.map(Traces::start);
    let traces = traces.as_ref();
    print_load_average();
    for &repeated in &options.repeated {
        for &partitions in &options.partitions {
            measure_case(options, &place, &mut servers, traces, partitions, repeated)?;
        }
    }
    print_load_average();
    traces.map_or(Ok(()), Traces::ensure_received)
}

/// Where a measurement stores its orders: in this database beside other orders, or in a fresh one.
struct Place(Option<TestDatabase>);

impl Place {
    fn prepare(options: &Options) -> anyhow::Result<Self> {
        if options.beside == 0 {
            return Ok(Self(None));
        }
        let database = TestDatabase::create();
        beside::fill(&database, options.beside)?;
        Ok(Self(Some(database)))
    }

    /// Measures. A database that is kept is afterwards as it was before.
    fn measure(
        &self,
        measure: impl FnOnce(&TestDatabase) -> anyhow::Result<Measurement>,
    ) -> anyhow::Result<Measurement> {
        let Some(database) = &self.0 else {
            return measure(&TestDatabase::create());
        };
        let measured = measure(database)?;
        database.execute(&backlog::delete_stored());
        database.execute("DELETE FROM consumer_offsets");
        database.execute("VACUUM orders");
        // Dropping a database forces a checkpoint.
        drop(TestDatabase::create_empty());
        Ok(measured)
    }
}

fn measure_case(
    options: &Options,
    place: &Place,
    servers: &mut Servers,
    traces: Option<&Traces>,
    partitions: i32,
    repeated: u8,
) -> anyhow::Result<()> {
    let backlog = Backlog::send(
        &options.servers.brokers,
        partitions,
        usize::try_from(options.count)?,
        usize::from(repeated),
        options.traced,
    )?;
    let plural = if partitions == 1 { "" } else { "s" };
    let title = match repeated {
        0 => format!("{partitions} partition{plural}, new orders"),
        _ => format!("{partitions} partition{plural}, {repeated} % repeated orders"),
    };
    let mut table = Table::begin(&title, options.rival_name());
    for round in 1..=options.rounds {
        let ours = |servers: &mut Servers| {
            place.measure(|database| changed_drain(options, &backlog, database, servers, traces))
        };
        // The order changes with every round, so that neither side always finds what the other has left.
        if round % 2 == 1 {
            let rival = rival(options, place, &backlog, servers)?;
            table.add(rival, ours(servers)?);
        } else {
            let drain = ours(servers)?;
            table.add(rival(options, place, &backlog, servers)?, drain);
        }
    }
    table.end();
    Ok(())
}

impl Options {
    fn rival_name(&self) -> &'static str {
        match (&self.former, self.without_guard) {
            (Some(_), _) => "former",
            (None, true) => "bare",
            (None, false) if self.is_changed() => "plain",
            (None, false) => "COPY",
        }
    }

    /// Returns whether the surroundings of the drain are changed.
    fn is_changed(&self) -> bool {
        self.setting.is_some() || self.listeners.is_some() || self.traced.is_some()
    }
}

/// The drain with the changes of its surroundings, if there are any.
fn changed_drain(
    options: &Options,
    backlog: &Backlog,
    database: &TestDatabase,
    servers: &mut Servers,
    traces: Option<&Traces>,
) -> anyhow::Result<Measurement> {
    let settings = database.settings();
    if let Some(setting) = &options.setting {
        let (name, value) = setting
            .split_once('=')
            .with_context(|| format!("--setting {setting}: write it as NAME=VALUE"))?;
        let alter = format!("ALTER DATABASE {} SET {name} = '{value}'", settings.name);
        database.execute(&alter);
    }
    let listeners = options.listeners;
    let listeners = listeners.map(|count| Listeners::start(settings, count));
    let listeners = listeners.transpose()?;
    let variables = traces.map(Traces::variables).unwrap_or_default();
    let measured = drain(
        options,
        &options.ingestor,
        &variables,
        backlog,
        database,
        servers,
    )?;
    listeners.map_or(Ok(()), Listeners::end)?;
    Ok(measured)
}

fn rival(
    options: &Options,
    place: &Place,
    backlog: &Backlog,
    servers: &mut Servers,
) -> anyhow::Result<Measurement> {
    if let Some(former) = &options.former {
        return drain(
            options,
            former,
            &[],
            backlog,
            &TestDatabase::create_empty(),
            servers,
        );
    }
    if options.without_guard {
        let database = TestDatabase::create();
        database.execute("DROP FUNCTION emit_foreign_writes CASCADE");
        return drain(options, &options.ingestor, &[], backlog, &database, servers);
    }
    if options.is_changed() {
        let database = TestDatabase::create();
        return drain(options, &options.ingestor, &[], backlog, &database, servers);
    }
    place.measure(|database| copy(options, &backlog.rows, database, servers))
}

fn copy(
    options: &Options,
    rows: &[Order],
    database: &TestDatabase,
    servers: &mut Servers,
) -> anyhow::Result<Measurement> {
    let name = database.settings().name;
    let shares: Vec<(PgConnection, Vec<Chunk<'_>>)> = rows
        .chunks(rows.len().div_ceil(usize::try_from(options.connections)?))
        .map(|share| {
            let chunks = share.chunks(ORDERS_PER_TRANSACTION);
            let chunks = chunks.map(Chunk::from_kafka);
            (database.connect(), chunks.collect())
        })
        .collect();
    let before = servers.count(&name, 0)?;
    let cpu_before = proc::cpu_seconds(std::process::id())?;
    let started_at = Instant::now();
    // The connections are returned, because the end of a session is not a part of COPY.
    let _connections = std::thread::scope(|scope| {
        let threads: Vec<_> = shares
            .into_iter()
            .map(|(mut connection, chunks)| {
                scope.spawn(move || {
                    for chunk in &chunks {
                        chunk.copy(&mut connection)?;
                    }
                    anyhow::Ok(connection)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| joined(thread.join()))
            .collect::<anyhow::Result<Vec<PgConnection>>>()
    })?;
    let seconds = started_at.elapsed().as_secs_f64();
    let client_cpu_seconds = proc::cpu_seconds(std::process::id())? - cpu_before;
    let spent = servers.count(&name, 0)?.since(before);
    Contents::of(rows.iter()).ensure_stored(database)?;
    Ok(Measurement {
        orders: rows.len(),
        seconds,
        client_cpu_seconds,
        peak_mib: None,
        servers: server::Counters {
            // The broker may be busy, but not with this.
            broker_cpu_seconds: None,
            ..spent
        },
    })
}

fn drain(
    options: &Options,
    program: &str,
    variables: &[(String, String)],
    backlog: &Backlog,
    database: &TestDatabase,
    servers: &mut Servers,
) -> anyhow::Result<Measurement> {
    let settings = database.settings();
    let mut watch = database.connect();
    let own_session = session_pid(&mut watch)?;
    let brokers = &options.servers.brokers;
    let mut service = ingestor(program, &settings, brokers, &backlog.topic.name)
        .envs(variables)
        .spawn()?;
    wait_for(&mut service, "the ingestor claims no partition", || {
        // The program may still have to create its schema.
        Ok(integer(&mut watch, HAS_SCHEMA)? > 0 && integer(&mut watch, CLAIMED)? > 0)
    })?;
    let started_at = Instant::now();
    let cpu_before = proc::cpu_seconds(service.pid())?;
    let before = servers.count(&settings.name, own_session)?;
    let messages = i64::try_from(backlog.messages)?;
    wait_for(
        &mut service,
        "the ingestor does not drain the backlog",
        || Ok(integer(&mut watch, PASSED)? >= messages),
    )?;
    let seconds = started_at.elapsed().as_secs_f64();
    let client_cpu_seconds = proc::cpu_seconds(service.pid())? - cpu_before;
    let spent = servers.count(&settings.name, own_session)?.since(before);
    let peak_mib = proc::peak_memory_mib(service.pid())?;
    backlog.drained.ensure_stored(database)?;
    Ok(Measurement {
        orders: backlog.messages,
        seconds,
        client_cpu_seconds,
        peak_mib: Some(peak_mib),
        servers: spent,
    })
}
