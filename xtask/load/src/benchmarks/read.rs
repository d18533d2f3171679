//! How fast orders are read: hits beside nginx and bare hyper, misses beside pgbench, and what a large cache costs.
//!
//! - Hits: `wrk` asks for one order over 64 connections that are kept open. nginx answers the same body from a file, as is
//!   recommended for static files, with a worker for each core; hyper alone answers the same head and body from memory. All
//!   must answer the same bytes, the api as `Cache-Status: orders; hit`; its counters must say that nothing but hits was
//!   measured. nginx's head is shorter: it has no `Cache-Status`, `Age` and id of the request.
//! - A large cache: an order at random each time, of 10,000 cached ones and of as many as `--large` says, in turn. And the
//!   memory of an entry beside its JSON, and the rate of warm-up.
//! - Lists: the first page and one far behind it, of all orders and by filters; with `--beside` alone.
//! - Misses: an order at random, with a cache of one, over 8 connections and over 64; pgbench runs the statement that reads
//!   one order over as many. The api reads together what is asked for at the same time.
//!
//! All share the machine with their load generator, so that on few cores these are ratios of what is left, not of what
//! anyone can do.

mod api;
mod http;
mod lists;
mod misses;
mod rivals;

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Args;
use servers::proc;
use shared::testing::TestDatabase;

use super::{beside, in_turn, median, print_load_average};
use api::{Api, FIRST_UID, store_orders};
use http::{Load, get, load, load_by_script, post};
pub(crate) use rivals::serve_bare_hyper;

const SMALL: usize = 10_000;
const CONNECTIONS: u32 = 64;

/// What to measure, and with what.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The program
    #[arg(long)]
    api: String,
    /// For the files of rivals
    #[arg(long)]
    folder: PathBuf,
    /// The first of four free ports
    #[arg(long, num_args = 4)]
    ports: Vec<u16>,
    /// How often each is measured
    #[arg(long, default_value_t = 5, value_name = "NUMBER")]
    rounds: usize,
    /// Orders in the large cache; 0 leaves it out
    #[arg(long, default_value_t = 1_000_000, value_name = "NUMBER")]
    large: usize,
    /// Measure beside so many older orders that are in the table already
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    beside: usize,
}

/// Measures in turn and prints tables.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let database = TestDatabase::create();
    if options.beside > 0 {
        beside::fill(&database, options.beside)?;
    }
    store_orders(&database, 0..SMALL)?;
    let small = options.start_api(&database, 0, SMALL, SMALL)?;
    options.measure_hits(&small)?;
    let cacheless = options.start_api(&database, 3, 1, 0)?;
    options.measure_misses(&database, &cacheless)?;
    if options.beside > 0 {
        lists::measure(cacheless.port, options.rounds)?;
    }
    drop(cacheless);
    if options.large > SMALL {
        options.measure_large(&database, &small)?;
    }
    Ok(())
}

impl Options {
    fn port(&self, index: usize) -> anyhow::Result<u16> {
        self.ports
            .get(index)
            .copied()
            .context("four ports are needed")
    }

    fn start_api(
        &self,
        database: &TestDatabase,
        port: usize,
        capacity: usize,
        warmup: usize,
    ) -> anyhow::Result<Api> {
        Api::start(
            &self.api,
            &database.settings(),
            self.port(port)?,
            capacity,
            warmup,
        )
    }

    fn measure_hits(&self, api: &Api) -> anyhow::Result<()> {
        let path = format!("/order/{FIRST_UID}");
        let (head, body) = get(api.port, &path)?;
        ensure!(
            head.contains("cache-status: orders; hit\r\n"),
            "not from the cache: {head}"
        );
        let (nginx_port, hyper_port) = (self.port(1)?, self.port(2)?);
        let mut nginx = rivals::Nginx::start(&self.folder, nginx_port, &path, &body)?;
        nginx.wait_for_answer(nginx_port, &path)?;
        let mut hyper = rivals::start_bare_hyper(&self.folder, hyper_port, &head, &body)?;
        hyper.wait_for("hyper answers", || Ok(get(hyper_port, &path).is_ok()))?;
        for port in [nginx_port, hyper_port] {
            ensure!(get(port, &path)?.1 == body, "other bytes from port {port}");
        }
        let not_hits =
            || -> anyhow::Result<u64> { Ok(api.count("misses")? + api.count("bypasses")?) };
        let not_hits_before = not_hits()?;

        println!(
            "GET of one cached order of {} bytes, {CONNECTIONS} connections:",
            body.len()
        );
        let measure = |port: u16| load(port, &path, CONNECTIONS);
        let mut nginx_ratios = Vec::new();
        let mut hyper_ratios = Vec::new();
        print_heads(&["nginx", "hyper", "api"]);
        for round in 1..=self.rounds {
            let (nginx, (hyper, api)) = in_turn(
                round,
                || measure(nginx_port),
                || in_turn(round, || measure(hyper_port), || measure(api.port)),
            )?;
            print_round(round, &[nginx, hyper, api]);
            nginx_ratios.push(api.per_second / nginx.per_second);
            hyper_ratios.push(api.per_second / hyper.per_second);
        }
        print_load_average();
        ensure!(
            not_hits()? == not_hits_before,
            "not only cache hits were measured"
        );
        println!(
            "median of the api: {:.2} of nginx, {:.2} of bare hyper\n",
            median(&mut nginx_ratios),
            median(&mut hyper_ratios)
        );
        Ok(())
    }

    fn measure_misses(&self, database: &TestDatabase, api: &Api) -> anyhow::Result<()> {
        let script = self.script(SMALL)?;
        for connections in [misses::POOL_SIZE, CONNECTIONS] {
            println!("misses: orders at random, {connections} connections:");
            print_heads(&["pgbench", "api"]);
            let (hits_before, misses_before) = (api.count("hits")?, api.count("misses")?);
            let mut ratios = Vec::new();
            for round in 1..=self.rounds {
                let (pgbench, api) = in_turn(
                    round,
                    || misses::pgbench(&database.settings(), &self.folder, SMALL, connections),
                    || load_by_script(api.port, &script, connections),
                )?;
                print_round(round, &[pgbench, api]);
                ratios.push(api.per_second / pgbench.per_second);
            }
            print_load_average();
            let hits = api.count("hits")? - hits_before;
            let misses = api.count("misses")? - misses_before;
            ensure!(hits < misses / 50, "{hits} were hits, {misses} were misses");
            println!("median of the api: {:.2} of pgbench\n", median(&mut ratios));
        }
        Ok(())
    }

    fn measure_large(&self, database: &TestDatabase, small: &Api) -> anyhow::Result<()> {
        let json_bytes = store_orders(database, SMALL..self.large)?;
        let large = self.start_api(database, 3, self.large, 0)?;
        let empty_mib = proc::memory_mib(large.pid())?;
        let answer = post(
            large.port,
            &format!("/api/v1/cache/warmup?limit={}", self.large),
        )?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        let (loaded, took_ms) = (answer["loaded"].as_f64(), answer["duration_ms"].as_f64());
        let (loaded, took_ms) = loaded
            .zip(took_ms)
            .with_context(|| format!("warm-up said {answer}"))?;
        ensure!(loaded == self.large as f64, "{loaded} orders were loaded");
        let full_mib = proc::memory_mib(large.pid())?;
        let entry_bytes = (full_mib - empty_mib) * 1024.0 * 1024.0 / loaded;
        println!(
            "warm-up of {loaded} orders: {:.0} orders/s",
            loaded / took_ms * 1000.0
        );
        println!(
            "memory of an entry: {entry_bytes:.0} bytes, of its JSON {json_bytes:.0}; RSS {empty_mib:.0} MiB empty, {full_mib:.0} full"
        );
        println!("hits of orders at random, {CONNECTIONS} connections:");
        let (of_small, of_large) = (self.script(SMALL)?, self.script(self.large)?);
        print_heads(&["10,000", "large"]);
        let mut ratios = Vec::new();
        for round in 1..=self.rounds {
            let (small, large) = in_turn(
                round,
                || load_by_script(small.port, &of_small, CONNECTIONS),
                || load_by_script(large.port, &of_large, CONNECTIONS),
            )?;
            print_round(round, &[small, large]);
            ratios.push(large.per_second / small.per_second);
        }
        print_load_average();
        println!(
            "median of the large cache: {:.2} of the small one",
            median(&mut ratios)
        );
        Ok(())
    }

    /// A script for wrk that asks for one of so many orders.
    fn script(&self, orders: usize) -> anyhow::Result<String> {
        let file = self.folder.join(format!("random-{orders}.lua"));
        let last = FIRST_UID + orders - 1;
        std::fs::write(
            &file,
            format!(
                "request = function() return wrk.format('GET', '/order/' .. math.random({FIRST_UID}, {last})) end\n"
            ),
        )?;
        Ok(file.display().to_string())
    }
}

fn print_heads(names: &[&str]) {
    print_load_average();
    print!("round");
    for name in names {
        print!(" {:>15} p50 ms  p99 ms", format!("{name}/s"));
    }
    println!();
}

fn print_round(round: usize, loads: &[Load]) {
    print!("{round:>5}");
    for load in loads {
        print!(
            " {:>15.0} {:>6.2} {:>7.2}",
            load.per_second, load.p50_ms, load.p99_ms
        );
    }
    println!();
}
