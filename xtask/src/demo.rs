//! `cargo xtask demo`: the whole service on this machine, with real servers and a stream of orders, until Ctrl-C.
//!
//! Every run starts afresh: yesterday's orders in today's demo would only puzzle.

mod guide;
mod services;

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use servers::{interrupt, ports, progress};

use crate::cargo::cargo;
use crate::stack::{self, Broker, Stack, StackFolder};
use services::Services;

/// The uid of the sample order, `shared/data/model.json`.
const SAMPLE_UID: &str = "b563feb7b2b84b6test";

/// How the demo is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Orders a second in the background; 0 is none.
    pub rate: u32,
    /// Builds and runs what ops would run, instead of what developers build.
    pub release: bool,
}

impl Default for Options {
    fn default() -> Self {
        // The dev profile: a release build (LTO, one codegen unit) takes several times as long the first time, shows
        // nothing more, and the tests use the dev build's dependencies again, which are optimised in it anyway.
        Self {
            rate: 5,
            release: false,
        }
    }
}

/// The ports of the two processes.
#[derive(Clone, Copy, Debug)]
struct Ports {
    api: u16,
    ingestor: u16,
}

/// Runs the demo until a signal comes or something ends that must not.
pub fn run(options: Options) -> Result<()> {
    let mut folder = StackFolder::take("demo")?;
    let ports = Ports::from_environment()?;
    stack::install_packages()?;
    let outcome = run_in(folder.path(), options, ports);
    folder.remove_at_end_unless_failed(&outcome);
    outcome
}

fn run_in(folder: &Path, options: Options, ports: Ports) -> Result<()> {
    // The servers start while cargo builds; each says when it is up.
    let mut servers = thread::scope(|scope| {
        let servers = scope.spawn(|| Stack::start(folder, true));
        let built = build(options.release);
        let servers = servers
            .join()
            .map_err(|_| anyhow!("the start of the servers panicked"))?;
        built.and(servers)
    })?;
    let outcome = run_services(options, ports, &mut servers);
    let stopped = stop_servers(&mut servers);
    outcome.and(stopped)
}

fn run_services(options: Options, ports: Ports, servers: &mut Stack) -> Result<()> {
    if matches!(servers.broker(), Broker::Private(_)) {
        servers.create_topic()?;
        progress::step(&format!("topic {} has 4 partitions", stack::topic()));
    }
    let environment = servers.env();
    let exports = stack::render_exports(&environment);
    let env_file = stack::env_file("demo");
    std::fs::write(&env_file, exports)
        .with_context(|| format!("cannot write {}", env_file.display()))?;

    let mut services = Services::new(options.release, environment.clone())?;
    let outcome = services
        .start(ports)
        .and_then(|()| services.send_sample(ports.api))
        .and_then(|()| services.stream(options.rate))
        .and_then(|()| {
            guide::print(
                ports.api,
                ports.ingestor,
                &environment,
                servers,
                options.rate,
            );
            stay(&mut services, servers)
        });
    let stopped = services.stop();
    std::fs::remove_file(&env_file).ok();
    outcome.and(stopped)
}

fn build(release: bool) -> Result<()> {
    progress::step("building ingestor, api and load (the first time takes some minutes)");
    let mut command =
        cargo("cargo build").args(["build", "-p", "ingestor", "-p", "api", "-p", "load"]);
    if release {
        command = command.arg("--release");
    }
    command.run()?;
    progress::step("built");
    Ok(())
}

/// Waits for a signal, which is the usual end, or for an unexpected one, and shows what the processes warn of.
fn stay(services: &mut Services, servers: &mut Stack) -> Result<()> {
    loop {
        servers.check_running()?;
        services.check_running()?;
        services.show_warnings();
        if interrupt::check().is_err() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(200));
    }
}

fn stop_servers(servers: &mut Stack) -> Result<()> {
    let stopped = servers.stop();
    progress::step("Kafka and PostgreSQL are stopped");
    stopped
}

impl Ports {
    /// Fails, before anything is built or started, if a port is taken.
    fn from_environment() -> Result<Self> {
        Ok(Self {
            api: free_port("the api", "SERVER_PORT", 8081)?,
            ingestor: free_port("the ingestor's metrics and health", "INGESTOR_PORT", 8082)?,
        })
    }
}

fn free_port(what: &str, variable: &str, default: u16) -> Result<u16> {
    let port = match stack::variable(variable) {
        Some(text) => text
            .parse()
            .with_context(|| format!("{variable}={text} is no port"))?,
        None => default,
    };
    if !ports::is_free(port) {
        bail!(
            "port {port}, for {what}, is taken by another program: stop that one, or choose another port, \
             for example {variable}={} cargo xtask demo",
            port.wrapping_add(1_000)
        );
    }
    Ok(port)
}
