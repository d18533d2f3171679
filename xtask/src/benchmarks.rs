//! `cargo xtask bench ingest|read|freshness|purge`: release builds, private durable servers, and a benchmark of `load`.
//!
//! Figures are ratios to a rival in the same run. Nothing is asserted about time.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use servers::process::{Launch, find_program};
use servers::progress;

use crate::cargo::{cargo, target_folder};
use crate::packages::{self, Purpose};
use crate::stack::{self, Broker, Stack, StackFolder};

/// A setting of PostgreSQL.
type Setting = (&'static str, &'static str);

/// Counts the statements that clients send. Debian has it in the package of the server; other systems may have it in a
/// package of its own (`postgresql-contrib`), without which the server says at its start that it cannot find it.
const STATEMENT_COUNTS: Setting = ("shared_preload_libraries", "pg_stat_statements");

/// For `bench ingest --listeners 200`.
const MANY_SESSIONS: Setting = ("max_connections", "300");

/// Tells when each transaction wrote its commit record.
const COMMIT_TIMES: Setting = ("track_commit_timestamp", "on");

/// Runs one benchmark and passes more arguments to it.
pub(crate) fn run(which: &str, arguments: &[String]) -> Result<()> {
    let (services, settings): (&[&str], &[Setting]) = match which {
        "ingest" => (&["ingestor"], &[STATEMENT_COUNTS, MANY_SESSIONS]),
        "read" => (&["api"], &[]),
        "freshness" | "purge" => (&["ingestor", "api"], &[COMMIT_TIMES]),
        _ => bail!(
            "there is no benchmark {which}; the benchmarks are bench ingest, bench read, bench freshness and bench purge"
        ),
    };
    if which == "read" {
        install_rivals()?;
    }
    let folder = StackFolder::take_own("bench")?;
    stack::install_packages()?;
    progress::step("building the release programs");
    // `load` is built separately. Otherwise its test helpers would be compiled into the service.
    for package in services.iter().chain(&["load"]) {
        cargo("cargo build")
            .args(["build", "--release", "-p", package])
            .run()?;
    }
    // Durable servers: a COMMIT that does not wait for the disk would make both sides look better than they are.
    let servers = Stack::start(folder.path(), true, settings)?;
    let mut load = Launch::new("load", program("load"))
        .envs(&servers.env())
        .arg(format!("bench-{which}"));
    for service in services {
        load = load.arg(format!("--{service}")).arg(program(service));
    }
    let load = match which {
        "read" => {
            let files = folder.path().join("nginx");
            fs::create_dir_all(&files).context("cannot create a folder for nginx")?;
            load.arg("--folder").arg(files)
        }
        "ingest" => {
            if let Some(postgres) = servers.postgres() {
                // One database shows the counts of all databases.
                postgres.psql_as_superuser("CREATE EXTENSION pg_stat_statements")?;
            }
            with_server_pids(load, &servers)
        }
        _ => with_server_pids(load, &servers),
    };
    load.args(arguments).run()
}

/// CPU times are shown only for private servers.
fn with_server_pids(mut load: Launch, servers: &Stack) -> Launch {
    let postgres = servers.postgres().and_then(|postgres| postgres.pid());
    let broker = match servers.broker() {
        Broker::Private(kafka) => kafka.pid(),
        _ => None,
    };
    for (option, pid) in [("--postgres-pid", postgres), ("--broker-pid", broker)] {
        if let Some(pid) = pid {
            load = load.args([option, &pid.to_string()]);
        }
    }
    load
}

fn program(name: &str) -> PathBuf {
    target_folder(true).join(name)
}

/// wrk is a plain command. nginx is not installed automatically: its package starts a server that listens on all addresses.
fn install_rivals() -> Result<()> {
    if find_program("nginx").is_none() {
        bail!(
            "bench read needs nginx: install it and try again (Debian: apt-get install nginx-light, which also starts \
             a server on port 80)"
        );
    }
    packages::ensure(&[Purpose::BenchRead])
}
