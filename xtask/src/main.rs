//! `cargo xtask`: what developers run.
//!
//! The private servers are in the crate `servers`. Like that crate, this one uses nothing of the services: it must build in
//! seconds on a machine that has only cargo and a linker, because it installs everything else.
//!
//! | module | what it is for | uses |
//! |---|---|---|
//! | [`arguments`] | options of the commands | |
//! | [`cargo`] | runs cargo and git for the workspace | |
//! | [`packages`] | what a bare machine lacks, installed by apt-get | |
//! | [`postgres`] | `postgres`: fetches the programs of another version of PostgreSQL | |
//! | [`stack`] | PostgreSQL and Kafka together, and the environment that names them | [`cargo`], [`packages`] |
//! | [`tools`] | psql and the console tools of Kafka, for the servers of a stack | [`stack`] |
//! | [`testing`] | `test`: all tests, with their own servers | [`cargo`], [`packages`], [`stack`] |
//! | [`faults`] | `faults`: the tests that take minutes | [`testing`] |
//! | [`fuzz`] | `fuzz`: hostile inputs for the code that reads foreign bytes | [`arguments`], [`cargo`], [`packages`] |
//! | [`check`] | `check` and `check-deploy`: formatting, lints, documentation, gates | [`cargo`], [`packages`] |
//! | [`benchmarks`] | `bench`: the benchmarks of `load`, with their own servers | [`cargo`], [`packages`], [`stack`] |
//! | [`upgrade`] | `upgrade`: the programs of a former release and the present ones side by side | [`cargo`], [`stack`] |
//! | [`images`] | `images`: builds the images with a private Docker engine, and runs them | [`arguments`], [`cargo`], [`packages`], [`tools`] |
//! | [`dist`] | `dist`: the archives that are installed without Docker, and a trial of them | [`arguments`], [`cargo`], [`packages`], [`stack`], [`upgrade`] |
//! | [`demo`] | `demo`: the whole service on this machine | [`arguments`], [`cargo`], [`stack`] |

mod arguments;
mod benchmarks;
mod cargo;
mod check;
mod demo;
mod dist;
mod faults;
mod fuzz;
mod images;
mod packages;
mod postgres;
mod stack;
mod testing;
mod tools;
mod upgrade;

use std::process::{ExitCode, ExitStatus};

use anyhow::{Result, bail};
use packages::Purpose;
use servers::{interrupt, progress};

const USAGE: &str = "\
usage: cargo xtask <command>

  demo [--rate N] [--release]    run the whole service here, with real servers and a stream of orders, until Ctrl-C
  test [arguments of cargo test] run all tests, with their own PostgreSQL and Kafka
  faults [filter]...             run the tests that take minutes: kills, frozen processes, cut connections
  fuzz [target]... [--seconds N] feed hostile inputs to the code that reads foreign bytes, 12 s for each target
  upgrade [REVISION|FOLDER]      replace a former release by the present one under load; FOLDER has its programs
  dist [--programs FOLDER]       make the archive for an installation without Docker; --try: install and upgrade it here,
                                 over --former ARCHIVE or over itself
  check                          check formatting, lints, documentation and gates
  check-deploy                   check the compose file, the image and the Helm chart, without running them
  images [--programs FOLDER]     build the images with a private Docker engine and run them as the compose file says;
                                 FOLDER has programs that are built already; --if-possible: no engine is no failure
  stack                          run only PostgreSQL and Kafka, until Ctrl-C; .stack/dev.env has their addresses
  postgres VERSION               fetch another version of PostgreSQL and print the folder of its programs
  bench ingest|read|freshness    measure throughput and delays, and compare them with COPY, nginx and LISTEN
  install                        install what the other commands need

While a demo or a stack runs:
  psql, kafka-topics, kafka-consumer-groups, kafka-console-producer, kafka-console-consumer, kafka-get-offsets

PostgreSQL and Kafka are private: they listen on free ports and write to the folder .stack, which git ignores. To use
other servers, set DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME or KAFKA_BROKERS. To use the programs of another
PostgreSQL for the private one, set POSTGRES_BIN to their folder.";

fn main() -> ExitCode {
    progress::start_clock();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) if error.is::<interrupt::Interrupted>() => {
            ExitCode::from(interrupt::exit_code().unwrap_or(1))
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<ExitCode> {
    let Some((command, arguments)) = arguments.split_first() else {
        bail!("a command is missing\n\n{USAGE}");
    };
    if let Some(class) = tools::kafka_tool_class(command) {
        return tools::become_kafka_tool(class, arguments);
    }
    if command == "psql" {
        return tools::become_psql(arguments);
    }
    interrupt::install()?;
    match (command.as_str(), arguments) {
        ("demo", _) => demo::run(arguments)?,
        ("test", _) => return Ok(exit_code(testing::run(arguments)?)),
        ("faults", _) => return Ok(exit_code(faults::run(arguments)?)),
        ("fuzz", _) => fuzz::run(arguments)?,
        ("upgrade", _) => upgrade::run(arguments)?,
        ("check", []) => check::run()?,
        ("dist", _) => dist::run(arguments)?,
        ("images", _) => images::run(arguments)?,
        ("check-deploy", []) => check::run_deploy()?,
        ("stack", []) => stack::run()?,
        ("postgres", [version]) => postgres::run(version)?,
        ("bench", [which, arguments @ ..]) => benchmarks::run(which, arguments)?,
        ("install", []) => packages::ensure(&[
            Purpose::Build,
            Purpose::Postgres,
            Purpose::Kafka,
            Purpose::ApiTests,
        ])?,
        ("help" | "--help" | "-h", _) => progress::say(USAGE),
        _ => bail!(
            "there is no command `{command} {}`\n\n{USAGE}",
            arguments.join(" ")
        ),
    }
    Ok(ExitCode::SUCCESS)
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(1))
}
