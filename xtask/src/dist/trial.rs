//! Installs an archive, runs it, and installs another one over it while orders arrive.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use servers::interrupt::wait_for;
use servers::process::Process;
use servers::signals::Signal;
use servers::{ports, progress};

use super::PROGRAMS;
use super::install::Installation;
use crate::cargo::cargo;
use crate::stack::{self, Stack};
use crate::upgrade::{self, Settled};

/// The log of the load generator, in the folder of the servers.
const LOG: &str = "dist/load.log";
/// Orders that the former programs store.
const FILLED: u64 = 5_000;
/// Orders that arrive while the programs are replaced, and how many each second.
const STREAMED: u64 = 3_000;
const STREAM_RATE: u64 = 200;
/// How many more orders are stored before and after each step.
const BETWEEN: u64 = 300;

/// This includes joining the consumer group.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// `TimeoutStopSec` of the units.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Tries an archive.
pub(super) fn run(former: &Path, present: &Path) -> Result<()> {
    if former == present {
        progress::say(
            "*** the former archive is the present one: no release is there yet to upgrade",
        );
    }
    let build = || {
        progress::step("building load");
        cargo("cargo build").args(["build", "-p", "load"]).run()
    };
    stack::run_trial("dist", build, |folder, servers, ()| {
        replace(folder, servers, former, present)
    })
}

fn replace(folder: &Path, servers: &Stack, former: &Path, present: &Path) -> Result<()> {
    let root = folder.join("root");
    fs::create_dir_all(&root).context("cannot create a folder for the installation")?;
    let installation = Installation::new(root);
    installation.install(former)?;
    let (ingestor_port, api_port) = (ports::free_port()?, ports::free_port()?);
    let ports = [
        ("ingestor", "INGESTOR_PORT", ingestor_port),
        ("api", "SERVER_PORT", api_port),
    ];
    for (program, variable, port) in ports {
        let mut settings = servers.env();
        settings.push((variable.to_owned(), port.to_string()));
        // Other programs of this machine may use the default.
        if program == "api" {
            settings.push(("OPS_PORT".to_owned(), ports::free_port()?.to_string()));
        }
        installation.configure(program, &settings)?;
    }
    let services = Services {
        installation,
        logs: folder.to_owned(),
        ports: [ingestor_port, api_port],
    };
    let settled = Settled::new(servers)?;
    let mut running = services.start()?;
    progress::step("the archive is installed, and its units' command lines run");
    settled.psql(upgrade::COUNT_WRITES)?;
    upgrade::load_program(servers, LOG, &["sample"]).run()?;
    upgrade::produce(servers, LOG, FILLED, 0).run()?;
    // The sample order is a record, too.
    settled.wait_for(FILLED + 1, PATIENCE)?;

    let mut stream = upgrade::produce(servers, LOG, STREAMED, STREAM_RATE).spawn()?;
    settled.wait_for_more(BETWEEN, PATIENCE)?;
    services.installation.install(present)?;
    settled.wait_for_more(BETWEEN, PATIENCE)?;
    progress::step("the new archive is installed over the running programs");
    for process in &mut running {
        process.check_running()?;
    }
    for process in running {
        stop(process)?;
    }
    let running = services.start()?;
    settled.wait_for_more(BETWEEN, PATIENCE)?;
    stream.wait(Signal::INT, PATIENCE)?;
    settled.wait_for(FILLED + STREAMED + 1, PATIENCE)?;
    for process in running {
        stop(process)?;
    }
    upgrade::check_orders(&settled, FILLED + STREAMED)?;
    progress::step(&format!(
        "restarted with the new archive: each of {} orders was written once",
        FILLED + STREAMED
    ));
    Ok(())
}

/// What systemd would do.
#[derive(Debug)]
struct Services {
    installation: Installation,
    logs: PathBuf,
    ports: [u16; 2],
}

impl Services {
    /// Starts both programs, and waits until they are ready.
    fn start(&self) -> Result<Vec<Process>> {
        let mut running = Vec::new();
        for program in PROGRAMS {
            let log = self.logs.join(format!("{program}.log"));
            running.push(self.installation.launch(program, &log)?.spawn()?);
        }
        for (program, port) in PROGRAMS.into_iter().zip(self.ports) {
            wait_for(&format!("{program} is not ready"), READY_TIMEOUT, || {
                running.iter_mut().try_for_each(Process::check_running)?;
                let url = format!("http://127.0.0.1:{port}/readyz");
                let answer = minreq::get(url).with_timeout(2).send().ok();
                Ok(answer.filter(|answer| answer.status_code == 200))
            })?;
        }
        Ok(running)
    }
}

/// Stops a program as systemd does. It must end by itself, with the status 0.
fn stop(mut process: Process) -> Result<()> {
    process.stop(Signal::TERM, STOP_TIMEOUT)?;
    let status = process.wait(Signal::KILL, STOP_TIMEOUT)?;
    ensure!(status.success(), "{} ended: {status}", process.name());
    Ok(())
}
