//! How fast orders are read: hits compared with nginx and bare hyper, misses compared with pgbench, and the cost of a large
//! cache.
//!
//! - Hits: `wrk` requests one order over 64 connections that are kept open. nginx answers with the same body from a file, as
//!   is recommended for static files, with one worker per core. hyper alone answers with the same head and body from
//!   memory. All must answer with the same bytes, the api with `Cache-Status: orders; hit`, and its counters must show that
//!   only hits were measured. nginx's head is shorter: it has no `Cache-Status`, `Age` and id of the request.
//! - A large cache: random orders, from 10,000 cached ones and from as many as `--large` says, in turn. Also the memory of
//!   an entry beside its JSON, and the rate of the warm-up.
//! - Lists, only with `--beside`: the first page and one far from it, of all orders and with filters.
//! - Searches, only with `--beside`: by phone, e-mail and prefix, and the first page of the list.
//! - Traces, only with `--traced`: hits of an api that traces this share of its requests, compared with one that traces none.
//! - Misses: random orders, with a cache of one order, over 8 connections and over 64. pgbench runs the statement that reads
//!   one order, over as many connections. The api reads orders together that are requested at the same time.
//!
//! All share the machine with their load generator. So on few cores these are ratios of what is left, not of what each
//! could do alone.

mod api;
mod comparison;
mod http;
mod lists;
mod misses;
mod rivals;
mod search;

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Args;
use servers::ports::free_port;
use servers::proc;
use shared::testing::TestDatabase;

use super::beside;
use super::services::wait_for;
use super::traces::{Traces, parse_share};
use api::{Api, FIRST_UID, store_orders};
use comparison::Comparison;
use http::{get, load, load_by_script, post};
pub(crate) use rivals::serve_bare_hyper;

const SMALL: usize = 10_000;
const CONNECTIONS: u32 = 64;

/// What to measure, and with what.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Path of the api
    #[arg(long)]
    api: String,
    /// The folder for the files of the rivals
    #[arg(long)]
    folder: PathBuf,
    /// How often each side is measured
    #[arg(long, default_value_t = 5, value_name = "NUMBER")]
    rounds: usize,
    /// Orders in the large cache; 0 skips it
    #[arg(long, default_value_t = 1_000_000, value_name = "NUMBER")]
    large: usize,
    /// How many older orders are in the table before the measurements
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    beside: usize,
    /// Also measure an api that traces this share of its requests, 0..=1
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    traced: Option<f64>,
}

/// Runs the measurements and prints their tables.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let database = TestDatabase::create();
    if options.beside > 0 {
        beside::fill(&database, options.beside)?;
    }
    store_orders(&database, 0..SMALL)?;
    let small = options.start_api(&database, SMALL, SMALL)?;
    options.measure_hits(&small)?;
    if let Some(share) = options.traced {
        options.measure_traces(&database, &small, share)?;
    }
    let cacheless = options.start_api(&database, 1, 0)?;
    options.measure_misses(&database, &cacheless)?;
    if options.beside > 0 {
        lists::measure(cacheless.port, options.rounds)?;
        search::measure(&database, cacheless.port, &options.folder, options.rounds)?;
    }
    drop(cacheless);
    if options.large > SMALL {
        options.measure_large(&database, &small)?;
    }
    Ok(())
}

impl Options {
    fn start_api(
        &self,
        database: &TestDatabase,
        capacity: usize,
        warmup: usize,
    ) -> anyhow::Result<Api> {
        Api::start(&self.api, &database.settings(), capacity, warmup, &[])
    }

    fn measure_hits(&self, api: &Api) -> anyhow::Result<()> {
        let path = format!("/order/{FIRST_UID}");
        let answer = get(api.port, &path)?;
        let cache_status = answer.header("cache-status");
        ensure!(
            cache_status == Some("orders; hit"),
            "the answer is not from the cache: {cache_status:?}"
        );
        let (nginx_port, hyper_port) = (free_port()?, free_port()?);
        let mut nginx = rivals::start_nginx(&self.folder, nginx_port, &path, answer.as_bytes())?;
        let mut hyper = rivals::start_bare_hyper(&self.folder, hyper_port, &answer)?;
        for (rival, port) in [(&mut nginx, nginx_port), (&mut hyper, hyper_port)] {
            wait_for(rival, "a rival does not answer", || {
                Ok(get(port, &path).is_ok())
            })?;
            let bytes = get(port, &path)?.into_bytes();
            ensure!(
                bytes == answer.as_bytes(),
                "the rival on port {port} answers with other bytes"
            );
        }
        let not_hits =
            || -> anyhow::Result<u64> { Ok(api.count("misses")? + api.count("bypasses")?) };
        let not_hits_before = not_hits()?;

        println!(
            "GET of one cached order of {} bytes, {CONNECTIONS} connections:",
            answer.as_bytes().len()
        );
        let measure = |port: u16| load(port, &path, CONNECTIONS);
        let table = Comparison::run(
            self.rounds,
            [
                ("nginx", &|| measure(nginx_port)),
                ("hyper", &|| measure(hyper_port)),
                ("api", &|| measure(api.port)),
            ],
        )?;
        ensure!(
            not_hits()? == not_hits_before,
            "some of the measured requests were not cache hits"
        );
        println!(
            "median of the api: {:.2} of nginx, {:.2} of bare hyper\n",
            table.median(|[nginx, _, api]| api.per_second / nginx.per_second),
            table.median(|[_, hyper, api]| api.per_second / hyper.per_second)
        );
        Ok(())
    }

    fn measure_traces(
        &self,
        database: &TestDatabase,
        plain: &Api,
        share: f64,
    ) -> anyhow::Result<()> {
        let traces = Traces::start(share);
        let variables = traces.variables();
        let traced = Api::start(&self.api, &database.settings(), SMALL, SMALL, &variables)?;
        let path = format!("/order/{FIRST_UID}");
        println!("the same, and {} % of the requests traced:", share * 100.0);
        let table = Comparison::run(
            self.rounds,
            [
                ("api", &|| load(plain.port, &path, CONNECTIONS)),
                ("traced", &|| load(traced.port, &path, CONNECTIONS)),
            ],
        )?;
        traces.ensure_received()?;
        println!(
            "median with traces: {:.2} of the api without\n",
            table.median(|[plain, traced]| traced.per_second / plain.per_second)
        );
        Ok(())
    }

    fn measure_misses(&self, database: &TestDatabase, api: &Api) -> anyhow::Result<()> {
        let script = self.script(SMALL)?;
        let settings = database.settings();
        for connections in [misses::POOL_SIZE, CONNECTIONS] {
            println!("misses: orders at random, {connections} connections:");
            let (hits_before, misses_before) = (api.count("hits")?, api.count("misses")?);
            let table = Comparison::run(
                self.rounds,
                [
                    ("pgbench", &|| {
                        misses::pgbench(&settings, &self.folder, SMALL, connections)
                    }),
                    ("api", &|| load_by_script(api.port, &script, connections)),
                ],
            )?;
            let hits = api.count("hits")? - hits_before;
            let misses = api.count("misses")? - misses_before;
            ensure!(hits < misses / 50, "{hits} were hits, {misses} were misses");
            println!(
                "median of the api: {:.2} of pgbench\n",
                table.median(|[pgbench, api]| api.per_second / pgbench.per_second)
            );
        }
        Ok(())
    }

    fn measure_large(&self, database: &TestDatabase, small: &Api) -> anyhow::Result<()> {
        let json_bytes = store_orders(database, SMALL..self.large)?;
        let large = self.start_api(database, self.large, 0)?;
        self.measure_warmup(&large, json_bytes)?;
        println!("hits of orders at random, {CONNECTIONS} connections:");
        let (of_small, of_large) = (self.script(SMALL)?, self.script(self.large)?);
        let table = Comparison::run(
            self.rounds,
            [
                ("10,000", &|| {
                    load_by_script(small.port, &of_small, CONNECTIONS)
                }),
                ("large", &|| {
                    load_by_script(large.port, &of_large, CONNECTIONS)
                }),
            ],
        )?;
        println!(
            "median of the large cache: {:.2} of the small one",
            table.median(|[small, large]| large.per_second / small.per_second)
        );
        Ok(())
    }

    fn measure_warmup(&self, api: &Api, json_bytes: f64) -> anyhow::Result<()> {
        let empty_mib = proc::memory_mib(api.pid())?;
        let answer = post(
            api.port,
            &format!("/api/v1/cache/warmup?limit={}", self.large),
        )?;
        let answer: serde_json::Value = serde_json::from_slice(answer.as_bytes())?;
        let (loaded, took_ms) = (answer["loaded"].as_f64(), answer["duration_ms"].as_f64());
        let (loaded, took_ms) = loaded
            .zip(took_ms)
            .with_context(|| format!("the answer to the warm-up has no numbers: {answer}"))?;
        ensure!(
            loaded == self.large as f64,
            "the warm-up loaded {loaded} orders, not {}",
            self.large
        );
        let full_mib = proc::memory_mib(api.pid())?;
        let entry_bytes = (full_mib - empty_mib) * 1024.0 * 1024.0 / loaded;
        println!(
            "warm-up of {loaded} orders: {:.0} orders/s",
            loaded / took_ms * 1000.0
        );
        println!(
            "memory of an entry: {entry_bytes:.0} bytes, of its JSON {json_bytes:.0}; RSS {empty_mib:.0} MiB empty, {full_mib:.0} full"
        );
        Ok(())
    }

    /// Writes a script for wrk that requests random orders out of `orders`.
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
