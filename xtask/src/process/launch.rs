//! How a child process is started.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use super::{Process, Signal};
use crate::postgres::Account;

/// How long a tool that was interrupted may take to end by itself; apt-get finishes the package at hand.
const TOOL_GRACE: Duration = Duration::from_secs(60);

/// How many lines of a log are shown when its process fails.
const TAIL_LINES: usize = 25;

/// A child process to be.
#[derive(Debug)]
pub struct Launch {
    name: String,
    program: OsString,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, Option<OsString>)>,
    directory: Option<PathBuf>,
    account: Option<Account>,
    log: Option<PathBuf>,
    death_signal: &'static str,
}

impl Launch {
    /// Prepares a process that goes by `name` in messages.
    pub fn new(name: impl Into<String>, program: impl AsRef<OsStr>) -> Self {
        Self {
            name: name.into(),
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            variables: Vec::new(),
            directory: None,
            account: None,
            log: None,
            death_signal: "KILL",
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.arguments
            .extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.variables
            .push((name.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Sets environment variables.
    #[must_use]
    pub fn envs(self, variables: &[(String, String)]) -> Self {
        variables
            .iter()
            .fold(self, |launch, (name, value)| launch.env(name, value))
    }

    /// Takes an environment variable away.
    #[must_use]
    pub fn env_remove(mut self, name: &str) -> Self {
        self.variables.push((name.into(), None));
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Runs it as another user.
    #[must_use]
    pub fn account(mut self, account: Option<Account>) -> Self {
        self.account = account;
        self
    }

    /// Appends what it prints to a file instead of the terminal.
    #[must_use]
    pub fn log_to(mut self, log: impl Into<PathBuf>) -> Self {
        self.log = Some(log.into());
        self
    }

    /// The signal (as `setpriv` names it) that the kernel sends when we die; SIGKILL unless told.
    #[must_use]
    pub fn death_signal(mut self, signal: &'static str) -> Self {
        self.death_signal = signal;
        self
    }

    /// Starts it.
    pub fn spawn(self) -> Result<Process> {
        let mut command = self.command();
        if let Some(log) = &self.log {
            let file = File::options()
                .create(true)
                .append(true)
                .open(log)
                .with_context(|| format!("cannot open {}", log.display()))?;
            let second = file.try_clone().context("cannot duplicate a log file")?;
            command.stdout(file).stderr(second);
        }
        let child = spawn_on_lasting_thread(command)
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        Ok(Process::new(self.name, child, self.log))
    }

    /// Runs it to its end; anything but success is an error that shows the end of its log.
    pub fn run(self) -> Result<()> {
        let mut process = self.spawn()?;
        let status = process.wait(Signal::INT, TOOL_GRACE)?;
        if !status.success() {
            bail!("{} failed: {status}{}", process.name(), process.log_tail());
        }
        Ok(())
    }

    /// Runs it with `input` on its standard input and returns what it printed; for short commands.
    pub fn output_of(self, input: &str) -> Result<String> {
        use std::io::Write as _;

        let mut command = self.command();
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn_on_lasting_thread(command)
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read its input closes the pipe; its exit status tells what matters.
            stdin.write_all(input.as_bytes()).ok();
        }
        let output = child
            .wait_with_output()
            .with_context(|| format!("cannot wait for {}", self.name))?;
        if !output.status.success() {
            bail!(
                "{} failed: {}\n{}",
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
        }
        String::from_utf8(output.stdout).with_context(|| format!("{} printed no text", self.name))
    }

    fn command(&self) -> Command {
        let mut command = if parent_death_signal_is_available() {
            let mut command = Command::new("setpriv");
            command
                .args(["--pdeathsig", self.death_signal, "--"])
                .arg(&self.program);
            command
        } else {
            Command::new(&self.program)
        };
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .process_group(0);
        for (name, value_opt) in &self.variables {
            match value_opt {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        if let Some(account) = self.account {
            // As root std also drops the supplementary groups.
            command.uid(account.uid).gid(account.gid);
        }
        command
    }
}

/// Whether this system has util-linux's `setpriv` with `--pdeathsig`; macOS, for one, has not.
fn parent_death_signal_is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "true"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    })
}

type SpawnRequest = (Command, mpsc::SyncSender<io::Result<Child>>);

/// Starts a child on the one thread that lives as long as the process (see the module's docs).
fn spawn_on_lasting_thread(command: Command) -> Result<Child> {
    static REQUESTS_TX: OnceLock<mpsc::Sender<SpawnRequest>> = OnceLock::new();
    let requests_tx = REQUESTS_TX.get_or_init(|| {
        let (requests_tx, requests_rx) = mpsc::channel::<SpawnRequest>();
        std::thread::spawn(move || {
            for (mut command, answer_tx) in requests_rx {
                answer_tx.send(command.spawn()).ok();
            }
        });
        requests_tx
    });
    let (answer_tx, answer_rx) = mpsc::sync_channel(1);
    requests_tx
        .send((command, answer_tx))
        .map_err(|_| anyhow!("the thread that starts processes is gone"))?;
    Ok(answer_rx
        .recv()
        .context("the thread that starts processes is gone")??)
}

/// Where a program is on the PATH.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// The last lines of a log, indented, after a line that names it.
pub fn log_tail(log: &Path) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_says_what_it_printed() {
        let error = Launch::new("the tool", "sh")
            .args(["-c", "echo no such luck >&2; exit 3"])
            .output_of("")
            .unwrap_err();
        assert!(error.to_string().contains("the tool failed"), "{error}");
        assert!(error.to_string().contains("no such luck"), "{error}");
    }

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let mut process = std::thread::spawn(|| Launch::new("sleep", "sleep").arg("300").spawn())
            .join()
            .unwrap()
            .unwrap();
        std::thread::sleep(Duration::from_millis(100));
        process.check_running().unwrap();
        let pid = process.pid();
        drop(process);
        assert!(!super::super::is_running(pid));
    }
}
