//! The two programs of a release.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use servers::interrupt::wait_for;
use servers::process::{Launch, Process};
use servers::signals::Signal;
use servers::{ports, progress, project};

use crate::stack::Stack;

/// This includes joining the consumer group.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// The programs promise to stop within 10 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);

/// An ingestor and an api of one release.
#[derive(Debug)]
pub(super) struct Release {
    name: &'static str,
    programs: PathBuf,
    environment: Vec<(String, String)>,
    ingestor_port: u16,
    api_port: u16,
    running: Vec<Process>,
}

impl Release {
    /// Takes the programs in a folder. Nothing runs yet.
    pub(super) fn new(name: &'static str, programs: PathBuf, servers: &Stack) -> Result<Self> {
        Ok(Self {
            name,
            programs,
            environment: servers.env(),
            ingestor_port: ports::free_port()?,
            api_port: ports::free_port()?,
            running: Vec::new(),
        })
    }

    /// Returns the port of the api.
    pub(super) fn api_port(&self) -> u16 {
        self.api_port
    }

    /// Migrates the database.
    pub(super) fn migrate(&self, patience: Duration) -> Result<()> {
        let mut migrating = self.launch("ingestor").arg("migrate").spawn()?;
        let started = Instant::now();
        let status = migrating.wait(Signal::TERM, STOP_TIMEOUT)?;
        ensure!(
            status.success(),
            "`ingestor migrate` failed: see its log in .stack/upgrade"
        );
        let took = started.elapsed();
        ensure!(took <= patience, "`ingestor migrate` took {took:.0?}");
        Ok(())
    }

    /// Starts both programs, and waits until they are ready.
    pub(super) fn start(&mut self, ingestor: &[&str]) -> Result<()> {
        let port = self.ingestor_port.to_string();
        let launch = self.launch("ingestor").args(ingestor);
        self.running
            .push(launch.env("INGESTOR_PORT", port).spawn()?);
        let port = self.api_port.to_string();
        let launch = self.launch("api").env("SERVER_PORT", port);
        self.running.push(launch.spawn()?);
        for (program, port) in [("ingestor", self.ingestor_port), ("api", self.api_port)] {
            let problem = format!("{program} of the {} release is not ready", self.name);
            wait_for(&problem, READY_TIMEOUT, || {
                self.check_running()?;
                let url = format!("http://127.0.0.1:{port}/readyz");
                let answer = minreq::get(url).with_timeout(2).send().ok();
                Ok(answer.filter(|answer| answer.status_code == 200))
            })?;
        }
        progress::step(&format!("the {} release is ready", self.name));
        Ok(())
    }

    /// Checks that both programs run.
    ///
    /// # Errors
    /// Fails, with the end of its log, if one has ended.
    pub(super) fn check_running(&mut self) -> Result<()> {
        self.running.iter_mut().try_for_each(Process::check_running)
    }

    /// Stops both programs.
    ///
    /// # Errors
    /// Fails if one does not end in time, or not with the status 0.
    pub(super) fn stop(&mut self) -> Result<()> {
        for mut process in self.running.drain(..) {
            process.check_running()?;
            let started = Instant::now();
            process.stop(Signal::TERM, STOP_TIMEOUT)?;
            let took = started.elapsed();
            ensure!(
                took < STOP_TIMEOUT,
                "{} of the {} release did not end within {STOP_TIMEOUT:?}",
                process.name(),
                self.name
            );
            let status = process
                .wait(Signal::KILL, STOP_TIMEOUT)
                .with_context(|| format!("cannot wait for {}", process.name()))?;
            ensure!(
                status.success(),
                "{} of the {} release ended: {status}",
                process.name(),
                self.name
            );
        }
        Ok(())
    }

    fn launch(&self, program: &str) -> Launch {
        let folder = project::stack_folder().join("upgrade");
        Launch::new(program, self.programs.join(program))
            .envs(&self.environment)
            .env("NO_COLOR", "1")
            // Not the project's root: a `.env` there is meant for other servers.
            .directory(&folder)
            .log_to(folder.join(format!("{program}-{}.log", self.name)))
    }
}
