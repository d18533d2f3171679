//! Child processes that end with their parent, whatever happens.
//!
//! - Each child runs in a process group of its own. So Ctrl-C on the terminal reaches only the parent, which stops its
//!   children in the right order.
//! - On Linux each child has a parent-death signal, so that it ends even if the parent is killed by SIGKILL. `setpriv` sets
//!   it: a plain command, which needs no `unsafe`. The kernel sends this signal when the *thread* ends that has started the
//!   child. Therefore one thread starts all children, and lives as long as the parent does.
//! - Dropping a [`Process`] kills its group.

mod launch;

use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

pub use launch::{Launch, find_program, find_system_program};

use crate::interrupt;
use crate::signals::{self, Signal};

/// How long a process may take to be gone after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How many lines of its log are shown when a process fails.
const TAIL_LINES: usize = 25;

/// A child process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Option<PathBuf>,
}

impl Process {
    fn new(name: String, child: Child, log: Option<PathBuf>) -> Self {
        signals::running().insert(child.id());
        Self { name, child, log }
    }

    /// Returns its name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns its process id, which is also the id of its process group.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Checks that it runs.
    ///
    /// # Errors
    /// Fails, with the end of its log, if it has ended.
    pub fn check_running(&mut self) -> Result<()> {
        match self.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended: {status}{}", self.name, self.log_tail()),
        }
    }

    /// Waits for its end. After a signal it sends `on_interrupt` to the whole group, which then has the time `grace` to end.
    ///
    /// # Errors
    /// Returns [`interrupt::Interrupted`] after a signal.
    pub fn wait(&mut self, on_interrupt: Signal, grace: Duration) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if let Err(interrupted) = interrupt::check() {
                self.stop(on_interrupt, grace)?;
                return Err(interrupted);
            }
            thread::sleep(interrupt::POLL_INTERVAL);
        }
    }

    /// Sends `signal` to its group, and kills the group if the process still runs after the time `grace`.
    pub fn stop(&mut self, signal: Signal, grace: Duration) -> Result<()> {
        if self.try_wait()?.is_none() {
            signals::send_to_group(self.pid(), signal);
            if !self.has_ended_within(grace) {
                self.kill();
            }
        }
        Ok(())
    }

    /// Waits for its end for some time, even after an interrupt.
    fn has_ended_within(&mut self, timeout: Duration) -> bool {
        let start = Instant::now();
        while matches!(self.try_wait(), Ok(None)) {
            if start.elapsed() >= timeout {
                return false;
            }
            thread::sleep(interrupt::POLL_INTERVAL);
        }
        true
    }

    fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .with_context(|| format!("cannot wait for {}", self.name))
    }

    fn kill(&mut self) {
        if matches!(self.try_wait(), Ok(None)) {
            signals::send_to_group(self.pid(), Signal::KILL);
            self.has_ended_within(KILL_TIMEOUT);
        }
    }

    fn log_tail(&self) -> String {
        self.log.as_deref().map(log_tail).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        // Its own children may still be in the group: failed tests, or compilers without their cargo.
        signals::send_to_group(self.pid(), Signal::KILL);
        signals::running().remove(&self.pid());
    }
}

/// The last lines of a log, indented, after a line that names the file.
fn log_tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    let mut shown = format!("\n  the end of {}:", log.display());
    for line in tail {
        shown.push_str("\n    ");
        shown.push_str(line);
    }
    shown
}
