//! `cargo xtask demo`: the whole service on this machine, with real servers and a stream of orders, until Ctrl-C.
//!
//! Every run starts with empty servers. Yesterday's orders would only be confusing.

mod guide;
mod services;

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use servers::{interrupt, ports, progress};

use crate::arguments::{take_flag, take_number};
use crate::cargo::cargo;
use crate::stack::{self, Broker, Stack};
use services::Services;

/// The uid of the sample order, `shared/data/model.json`.
const SAMPLE_UID: &str = "b563feb7b2b84b6test";
/// Orders per second if `--rate` does not say otherwise.
const DEFAULT_RATE: u32 = 5;

/// How the demo is run.
#[derive(Clone, Copy, Debug)]
struct Options {
    /// Orders per second in the background; 0 sends none.
    rate: u32,
    /// Whether to run release builds. Developers' builds are the default: the first release build takes several times as
    /// long (LTO, one codegen unit) and shows nothing more, and the tests reuse the dependencies of developers' builds.
    is_release: bool,
    api_port: u16,
    ingestor_port: u16,
    ops_port: u16,
}

/// Runs the demo until a signal comes, or until a process ends that must not end.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let options = Options::new(arguments)?;
    stack::run_in_folder("demo", |folder| run_in(folder, options))
}

impl Options {
    /// Fails if a port is taken, so that nothing is built or started first.
    fn new(arguments: &[String]) -> Result<Self> {
        let mut arguments = arguments.to_vec();
        let options = Self {
            rate: take_number(&mut arguments, "--rate")?.unwrap_or(DEFAULT_RATE),
            is_release: take_flag(&mut arguments, "--release"),
            api_port: free_port("the api", "SERVER_PORT", 8081)?,
            ingestor_port: free_port("the ingestor (metrics and health)", "INGESTOR_PORT", 8082)?,
            ops_port: free_port("the api (metrics and health)", "OPS_PORT", 8083)?,
        };
        if let Some(unknown) = arguments.first() {
            bail!("demo has no option {unknown}; its options are --rate N and --release");
        }
        Ok(options)
    }
}

fn run_in(folder: &Path, options: Options) -> Result<()> {
    let (mut servers, ()) = Stack::start_during(folder, true, || build(options.is_release))?;
    let outcome = run_services(options, &mut servers);
    let stopped = servers.stop();
    progress::step("Kafka and PostgreSQL are stopped");
    outcome.and(stopped)
}

fn run_services(options: Options, servers: &mut Stack) -> Result<()> {
    if matches!(servers.broker(), Broker::Private(_)) {
        servers.create_topic()?;
        progress::step(&format!("topic {} has 4 partitions", stack::topic()));
    }
    servers.with_env_file("demo", |servers| {
        let has_roles = match servers.postgres() {
            Some(postgres) => {
                postgres.create_service_roles()?;
                true
            }
            None => false,
        };
        let mut services = Services::new(options, servers.env(), has_roles)?;
        let outcome = services
            .start()
            .and_then(|()| services.send_sample())
            .and_then(|()| services.stream())
            .and_then(|()| {
                guide::print(options, servers);
                stay(&mut services, servers)
            });
        outcome.and(services.stop())
    })
}

fn build(is_release: bool) -> Result<()> {
    progress::step("building ingestor, api and load (the first time this takes some minutes)");
    let command = cargo("cargo build").args(["build", "-p", "ingestor", "-p", "api", "-p", "load"]);
    command.args(is_release.then_some("--release")).run()
}

/// Waits for a signal, which is the usual end, and shows the warnings of the processes. It fails if a process ends.
fn stay(services: &mut Services, servers: &mut Stack) -> Result<()> {
    while interrupt::check().is_ok() {
        servers.check_running()?;
        services.check_running()?;
        services.show_warnings();
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

fn free_port(what: &str, variable: &str, default: u16) -> Result<u16> {
    let port = match stack::variable(variable) {
        Some(text) => text
            .parse()
            .with_context(|| format!("{variable}={text} is not a port"))?,
        None => default,
    };
    if !ports::is_free(port) {
        bail!(
            "another program listens on port {port}, which {what} needs: stop that program, or choose another port, \
             for example {variable}={} cargo xtask demo",
            port.wrapping_add(1_000)
        );
    }
    Ok(port)
}
