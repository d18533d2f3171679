//! How fast a backlog is drained, beside bare COPY BINARY of the same rows into the same schema.
//!
//! **The rival** is the ceiling: two connections, 1,000 orders a transaction. Connections and rows are made before its time
//! begins. It does nothing else: no Kafka, no JSON, no validation, no offsets, no look for orders that exist, no events. It
//! encodes by diesel's `copy_from`, as the ingestor does: bytes prepared beforehand would mix the encoder's cost into the
//! ratio, which is to show what everything around COPY costs. With `--connections 1` it is the ceiling of one partition,
//! whose transactions follow one another by their fence.
//!
//! **The drain** is the program itself, with its default settings, timed from its first claim until its offsets have passed
//! the last message; joining the group comes before, and is not a matter of throughput. It is watched over one session that
//! is made before: a connection for each look (a fork and a SCRAM handshake) was seen to take a core away from what is
//! measured. That session's CPU time and statements are not counted.
//!
//! **Repeated orders**: of a hundred messages some bring a later state of an order before. A COPY cannot write an order
//! twice, so the rival gets the same rows under uids of their own; both rates count *messages*, not distinct orders.
//!
//! **Other rivals** take COPY's place: the same drain without the triggers that tell of foreign writers, which shows what they
//! cost; or another build of the program, on the schema that it makes itself.
//!
//! Every measurement has a database of its own; dropping the one before forced a checkpoint, so both sides start with clean
//! buffers. **Beside many orders** all share one, because to make it takes minutes: what a measurement stored is deleted
//! after it, vacuumed, and a checkpoint is forced as well. The CPU time of PostgreSQL is that of all its processes, the
//! writers of WAL and checkpoints included.

mod backlog;
mod server;
mod table;

use std::time::Instant;

use clap::Args;
use diesel::prelude::*;
use servers::proc;
use shared::db::models::{NewOrder, Source};
use shared::db::schema::orders;
use shared::order::Order;
use shared::testing::TestDatabase;

use super::{Service, beside, in_turn, print_load_average};
use backlog::{Backlog, Contents};
use server::{Servers, session_pid};
use table::{Measurement, Table};

const ORDERS_PER_TRANSACTION: usize = 1_000;

const HAS_SCHEMA: &str =
    "SELECT /* by the benchmark */ count(to_regclass('consumer_offsets')) AS value";
/// Looks at the drain; marked as [`server::OWN_MARK`] says.
pub(super) const CLAIMED: &str =
    "SELECT /* by the benchmark */ count(*) AS value FROM consumer_offsets WHERE epoch > 0";
const PASSED: &str =
    "SELECT /* by the benchmark */ sum(next_offset)::bigint AS value FROM consumer_offsets";

/// What to measure.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The program
    #[arg(long)]
    ingestor: String,
    #[arg(long, env = "KAFKA_BROKERS")]
    brokers: String,
    /// Messages of the backlog
    #[arg(long, default_value_t = 100_000, value_name = "NUMBER",
          value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// How often each is measured
    #[arg(long, default_value_t = 3, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Numbers of partitions, one table each
    #[arg(long, default_value = "1,4", value_name = "NUMBERS", value_delimiter = ',',
          value_parser = clap::value_parser!(i32).range(1..))]
    partitions: Vec<i32>,
    /// Of a hundred messages, how many are later states of orders before; one table each
    #[arg(long, default_value = "0,10", value_name = "NUMBERS", value_delimiter = ',',
          value_parser = clap::value_parser!(u8).range(0..100))]
    repeated: Vec<u8>,
    /// The rival is the drain without the triggers that tell of foreign writers, in place of COPY
    #[arg(long, conflicts_with_all = ["former", "beside"])]
    without_guard: bool,
    /// The rival is the drain by this build of the ingestor, on a schema of its own, in place of COPY
    #[arg(long, value_name = "PROGRAM", conflicts_with = "beside")]
    former: Option<String>,
    /// Measure beside so many orders that are in the table already
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    beside: usize,
    /// Connections of COPY
    #[arg(long, default_value_t = 2, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// PostgreSQL's first process, for its CPU time
    #[arg(long, value_name = "PID")]
    postgres_pid: Option<u32>,
    /// The broker's process, for its CPU time
    #[arg(long, value_name = "PID")]
    broker_pid: Option<u32>,
}

/// Measures every case and prints a table of each.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let mut servers = Servers::new(options.postgres_pid, options.broker_pid)?;
    println!(
        "{} messages, in turn on fresh databases of one PostgreSQL; COPY over {} connections; client: the threads that \
         copy, or the ingestor",
        options.count, options.connections
    );
    let place = Place::prepare(options)?;
    print_load_average();
    for &repeated in &options.repeated {
        for &partitions in &options.partitions {
            measure_case(options, &place, &mut servers, partitions, repeated)?;
        }
    }
    print_load_average();
    Ok(())
}

/// Where a measurement stores its orders: beside those of this database, or in a fresh one.
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

    /// Measures; a database that stays is afterwards as it was.
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
    partitions: i32,
    repeated: u8,
) -> anyhow::Result<()> {
    let backlog = Backlog::send(
        &options.brokers,
        partitions,
        usize::try_from(options.count)?,
        usize::from(repeated),
    )?;
    let plural = if partitions == 1 { "" } else { "s" };
    let title = match repeated {
        0 => format!("{partitions} partition{plural}, new orders"),
        _ => format!("{partitions} partition{plural}, {repeated} % repeated orders"),
    };
    let mut table = Table::begin(&title, options.rival_name());
    for round in 1..=options.rounds {
        let servers = std::cell::RefCell::new(&mut *servers);
        let (rival, drain) = in_turn(
            usize::try_from(round)?,
            || rival(options, place, &backlog, &mut servers.borrow_mut()),
            || {
                place.measure(|database| {
                    drain(
                        options,
                        &options.ingestor,
                        &backlog,
                        database,
                        &mut servers.borrow_mut(),
                    )
                })
            },
        )?;
        table.add(rival, drain);
    }
    table.end();
    Ok(())
}

impl Options {
    fn rival_name(&self) -> &'static str {
        match (&self.former, self.without_guard) {
            (Some(_), _) => "former",
            (None, true) => "bare",
            (None, false) => "COPY",
        }
    }
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
            backlog,
            &TestDatabase::create_empty(),
            servers,
        );
    }
    if options.without_guard {
        let database = TestDatabase::create();
        database.execute("DROP FUNCTION emit_foreign_writes CASCADE");
        return drain(options, &options.ingestor, backlog, &database, servers);
    }
    place.measure(|database| copy(options, &backlog.rows, database, servers))
}

/// The rows of one transaction.
pub(super) struct Chunk<'a>(Vec<NewOrder<'a>>);

impl<'a> Chunk<'a> {
    pub(super) fn of(orders: &'a [Order]) -> Self {
        let source = Source {
            partition: 0,
            incarnation: 0,
            offset: 0,
        };
        Self(
            orders
                .iter()
                .map(|order| NewOrder::new(order, Some(source)))
                .collect(),
        )
    }

    pub(super) fn copy(&self, connection: &mut PgConnection) -> QueryResult<()> {
        connection.transaction(|connection| {
            diesel::copy_from(orders::table)
                .from_insertable(&self.0)
                .execute(connection)
        })?;
        Ok(())
    }
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
            let chunks = share.chunks(ORDERS_PER_TRANSACTION).map(Chunk::of);
            (database.connect(), chunks.collect())
        })
        .collect();
    let before = servers.count(&name, 0)?;
    let cpu_before = proc::cpu_seconds(std::process::id())?;
    let started_at = Instant::now();
    // The connections come back: the end of a session is not a part of COPY.
    let _connections = std::thread::scope(|scope| {
        let threads: Vec<_> = shares
            .into_iter()
            .map(|(mut connection, chunks)| {
                scope.spawn(move || {
                    for chunk in &chunks {
                        chunk.copy(&mut connection)?;
                    }
                    Ok::<_, diesel::result::Error>(connection)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                let connection = thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("COPY panicked"))?;
                Ok(connection?)
            })
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
            // It may be busy with something, but not with this.
            broker_cpu_seconds: None,
            ..spent
        },
    })
}

fn drain(
    options: &Options,
    program: &str,
    backlog: &Backlog,
    database: &TestDatabase,
    servers: &mut Servers,
) -> anyhow::Result<Measurement> {
    let settings = database.settings();
    let mut watch = database.connect();
    let own_session = session_pid(&mut watch)?;
    let mut service = Service::start(
        program,
        &["run"],
        &[
            ("DB_HOST", settings.host.clone()),
            ("DB_PORT", settings.port.to_string()),
            ("DB_USER", settings.user.clone()),
            ("DB_PASSWORD", settings.password.expose().to_owned()),
            ("DB_NAME", settings.name.clone()),
            ("KAFKA_BROKERS", options.brokers.clone()),
            ("KAFKA_TOPIC", backlog.topic.name.clone()),
            ("KAFKA_GROUP_ID", settings.name.clone()),
            ("INGESTOR_PORT", "0".to_owned()),
        ],
    )?;
    service.wait_for("a first claim", || {
        // The program may still have to make its schema.
        Ok(integer(&mut watch, HAS_SCHEMA)? > 0 && integer(&mut watch, CLAIMED)? > 0)
    })?;
    let started_at = Instant::now();
    let cpu_before = proc::cpu_seconds(service.pid())?;
    let before = servers.count(&settings.name, own_session)?;
    let messages = i64::try_from(backlog.messages)?;
    service.wait_for("the backlog is drained", || {
        Ok(integer(&mut watch, PASSED)? >= messages)
    })?;
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

/// The integer that a query of the benchmark's own selects as `value`.
pub(super) fn integer(connection: &mut PgConnection, query: &str) -> QueryResult<i64> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        value: i64,
    }
    let row: Row = diesel::sql_query(query).get_result(connection)?;
    Ok(row.value)
}
