//! `cargo xtask`: what developers run.

mod bench;
mod cargo;
mod check;
mod demo;
mod faults;
mod fuzz;
mod packages;
mod stack;
mod testing;
mod tools;

use std::process::{ExitCode, ExitStatus};

use anyhow::{Context as _, Result, bail};
use servers::{interrupt, progress};

const USAGE: &str = "\
usage: cargo xtask <command>

  demo [--rate N] [--release]   the whole service here, with real servers and a stream of orders, until Ctrl-C
  test [cargo test arguments]   every test, on a PostgreSQL and a Kafka of its own
  faults [filter]...            the tests that take minutes: kills, frozen processes, cut connections
  fuzz [target]... [--seconds N] hostile inputs for what reads strangers' bytes, 12 s a target
  check                         formatting, lints, documentation, gates
  check-deploy                  static checks of compose and the image
  stack                         PostgreSQL and Kafka alone, until Ctrl-C; their addresses in .stack/dev.env
  bench ingest|read|freshness   throughput and delays beside a rival in one run: bare COPY, nginx, LISTEN
  install                       what the other commands would install

  with a demo or a stack running:
  psql, kafka-topics, kafka-consumer-groups, kafka-console-producer, kafka-console-consumer, kafka-get-offsets

PostgreSQL and Kafka are private ones, on free ports, in the ignored folder .stack. DB_HOST, DB_PORT, DB_USER, DB_PASSWORD,
DB_NAME or KAFKA_BROKERS in the environment name others to use instead.";

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
        bail!("{USAGE}");
    };
    if let Some(class) = tools::kafka_tool_class(command) {
        tools::become_kafka_tool(class, arguments)?;
        return Ok(ExitCode::SUCCESS);
    }
    if command == "psql" {
        tools::become_psql(arguments)?;
        return Ok(ExitCode::SUCCESS);
    }
    interrupt::install()?;
    match (command.as_str(), arguments) {
        ("demo", _) => demo::run(demo_options(arguments)?)?,
        ("test", _) => return Ok(exit_code(testing::run(arguments)?)),
        ("faults", _) => return Ok(exit_code(faults::run(arguments)?)),
        ("fuzz", _) => fuzz::run(arguments)?,
        ("check", []) => check::run()?,
        ("check-deploy", []) => check::run_deploy()?,
        ("stack", []) => stack::run()?,
        ("bench", [which, arguments @ ..]) => bench::run(which, arguments)?,
        ("install", []) => packages::ensure(&[
            packages::Purpose::Build,
            packages::Purpose::Postgres,
            packages::Purpose::Kafka,
            packages::Purpose::ApiTests,
        ])?,
        ("help" | "--help" | "-h", _) => progress::say(USAGE),
        _ => bail!(
            "no such command: {command} {}\n\n{USAGE}",
            arguments.join(" ")
        ),
    }
    Ok(ExitCode::SUCCESS)
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(1))
}

fn demo_options(arguments: &[String]) -> Result<demo::Options> {
    let mut options = demo::Options::default();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--release" => options.release = true,
            "--rate" => {
                let rate = arguments.next().context("--rate needs a number")?;
                options.rate = rate
                    .parse()
                    .with_context(|| format!("--rate {rate}: no number"))?;
            }
            _ => bail!("no such option: {argument}\n\n{USAGE}"),
        }
    }
    Ok(options)
}
