//! Child processes that end with us, whatever happens.
//!
//! - Each runs in a process group of its own: Ctrl-C on the terminal reaches only us, and we stop the children in order.
//! - On Linux each gets a parent-death signal (through `setpriv`, which is a plain command and needs no `unsafe`), so that it
//!   ends even when we are killed by SIGKILL. The kernel sends that signal when the *thread* that started the child
//!   ends, hence one thread that starts all of them and lives as long as the process does.
//! - Dropping a [`Process`] kills its group.

mod launch;
mod signals;

use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

pub use launch::{Launch, find_program, log_tail};
pub use signals::{Signal, is_running, kill_all, kill_tree};

use crate::interrupt;

/// How long a process that was killed by SIGKILL may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A child process; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Option<PathBuf>,
}

impl Process {
    fn new(name: String, child: Child, log: Option<PathBuf>) -> Self {
        signals::register(child.id());
        Self { name, child, log }
    }

    /// Its name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id, which is also the id of its process group.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status if it has ended.
    pub fn try_exit(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Fails, with the end of its log, if it has ended.
    pub fn check_running(&mut self) -> Result<()> {
        match self.try_exit()? {
            None => Ok(()),
            Some(status) => bail!("{} ended: {status}{}", self.name, self.log_tail()),
        }
    }

    /// Waits for its end, interruptibly: on a signal the whole group gets `on_interrupt` and some time to end.
    pub fn wait(&mut self, on_interrupt: Signal, grace: Duration) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.try_exit()? {
                return Ok(status);
            }
            if let Err(interrupted) = interrupt::check() {
                self.stop(on_interrupt, grace)?;
                return Err(interrupted);
            }
            std::thread::sleep(interrupt::POLL_INTERVAL);
        }
    }

    /// Asks its group to stop by `signal` and kills the group if that takes longer than `grace`.
    pub fn stop(&mut self, signal: Signal, grace: Duration) -> Result<()> {
        if self.try_exit()?.is_none() {
            signals::send_to_group(self.pid(), signal);
            if self.wait_for_exit(grace)?.is_none() {
                self.kill();
            }
        }
        Ok(())
    }

    /// Kills its group at once and waits until the process is gone.
    pub fn kill(&mut self) {
        if matches!(self.try_exit(), Ok(Some(_))) {
            return;
        }
        signals::send_to_group(self.pid(), Signal::KILL);
        self.wait_for_exit(KILL_TIMEOUT).ok();
    }

    /// Waits for its end, even when interrupted.
    pub(crate) fn wait_for_exit(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        let start = std::time::Instant::now();
        loop {
            let status_opt = self.try_exit()?;
            if status_opt.is_some() || start.elapsed() >= timeout {
                return Ok(status_opt);
            }
            std::thread::sleep(interrupt::POLL_INTERVAL);
        }
    }

    /// The last lines of its log, for messages; empty where it has none.
    pub fn log_tail(&self) -> String {
        self.log
            .as_ref()
            .map(|log| log_tail(log))
            .unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        // And what its own children left in the group: tests that failed, compilers without their cargo.
        signals::send_to_group(self.pid(), Signal::KILL);
        signals::unregister(self.pid());
    }
}
