//! `cargo xtask bench ingest|read|freshness`: release builds, private durable servers, and the benchmark of `load`.
//!
//! Figures are ratios to a rival in the same run; nothing is asserted about time.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use servers::process::{Launch, find_program};
use servers::{ports, progress};

use crate::cargo::{cargo, target_folder};
use crate::packages;
use crate::stack::{self, Broker, Stack, StackFolder};

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Benchmark {
    Ingest,
    Read,
    Freshness,
}

/// Runs one benchmark; further arguments go to it.
pub fn run(which: &str, arguments: &[String]) -> Result<()> {
    let benchmark = match which {
        "ingest" => Benchmark::Ingest,
        "read" => Benchmark::Read,
        "freshness" => Benchmark::Freshness,
        _ => bail!(
            "no such benchmark: {which}; there are bench ingest, bench read and bench freshness"
        ),
    };
    if benchmark == Benchmark::Read {
        install_rivals()?;
    }
    let folder = StackFolder::take_own("bench")?;
    stack::install_packages()?;
    progress::step("building the release programs");
    let services: &[_] = match benchmark {
        Benchmark::Ingest => &["ingestor"],
        Benchmark::Read => &["api"],
        Benchmark::Freshness => &["ingestor", "api"],
    };
    // Apart from `load`, whose test helpers would else be compiled into the service.
    for package in services.iter().chain(&["load"]) {
        cargo("cargo build")
            .args(["build", "--release", "-p", package])
            .run()?;
    }
    let settings: &[_] = match benchmark {
        Benchmark::Ingest => &[STATEMENT_COUNTS],
        Benchmark::Read => &[],
        Benchmark::Freshness => &[COMMIT_TIMES],
    };
    // Durable: a COMMIT that waits for no disk would flatter both.
    let servers = Stack::start_with(folder.path(), true, settings)?;
    let load = Launch::new("load", program("load")).envs(&servers.env());
    let load = match benchmark {
        Benchmark::Ingest => ingest(load, &servers)?,
        Benchmark::Read => read(load, folder.path())?,
        Benchmark::Freshness => freshness(load, &servers)?,
    };
    load.args(arguments).run()
}

/// Counts what clients send, of either side alike. It comes with PostgreSQL on Debian; elsewhere it may be a package of its
/// own (`postgresql-contrib`), without which the server says at its start that it cannot find it.
const STATEMENT_COUNTS: (&str, &str) = ("shared_preload_libraries", "pg_stat_statements");

/// When each transaction wrote its commit record.
const COMMIT_TIMES: (&str, &str) = ("track_commit_timestamp", "on");

fn ingest(load: Launch, servers: &Stack) -> Result<Launch> {
    let load = load
        .args(["bench-ingest", "--ingestor"])
        .arg(program("ingestor"));
    if let Some(postgres) = servers.postgres() {
        // One database shows the counts of all.
        postgres.psql_as_superuser("CREATE EXTENSION pg_stat_statements")?;
    }
    Ok(with_server_pids(load, servers))
}

/// CPU times are those of private servers alone.
fn with_server_pids(mut load: Launch, servers: &Stack) -> Launch {
    if let Some(postgres) = servers.postgres() {
        load = with_pid(load, "--postgres-pid", postgres.pid());
    }
    if let Broker::Private(kafka) = servers.broker() {
        load = with_pid(load, "--broker-pid", kafka.pid());
    }
    load
}

fn with_pid(load: Launch, option: &str, pid: Option<u32>) -> Launch {
    match pid {
        Some(pid) => load.args([option, &pid.to_string()]),
        None => load,
    }
}

fn read(load: Launch, folder: &Path) -> Result<Launch> {
    let files = folder.join("nginx");
    fs::create_dir_all(&files).context("cannot make a folder for nginx")?;
    let ports: Vec<String> = (0..4)
        .map(|_| Ok(ports::free_port()?.to_string()))
        .collect::<Result<_>>()?;
    Ok(load
        .args(["bench-read", "--api"])
        .arg(program("api"))
        .args(["--folder".into(), files.into_os_string()])
        .arg("--ports")
        .args(ports))
}

fn freshness(load: Launch, servers: &Stack) -> Result<Launch> {
    let load = load
        .args(["bench-freshness", "--ingestor"])
        .arg(program("ingestor"))
        .arg("--api")
        .arg(program("api"))
        .args(["--api-ports".to_owned(), ports::free_port()?.to_string()])
        .args(["--api-ports".to_owned(), ports::free_port()?.to_string()]);
    Ok(with_server_pids(load, servers))
}

fn program(name: &str) -> PathBuf {
    target_folder(true).join(name)
}

/// wrk is a plain command. nginx is not installed for anybody: its package starts a server that listens on every address.
fn install_rivals() -> Result<()> {
    if find_program("nginx").is_none() {
        bail!(
            "bench read needs nginx (Debian: apt-get install nginx-light, which also starts it as a service on port 80)"
        );
    }
    packages::ensure(&[packages::Purpose::Load])
}
