//! How a child process is started.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use super::Process;
use crate::signals::Signal;

/// How long an interrupted tool may take to end by itself. apt-get finishes the package that it is working on.
const TOOL_GRACE: Duration = Duration::from_secs(60);

/// A child process that is not yet started. It reads nothing from standard input, unless [`Self::output_of`] starts it.
#[derive(Debug)]
pub struct Launch {
    name: String,
    command: Command,
    log: Option<PathBuf>,
}

impl Launch {
    /// Prepares a process that is called `name` in messages. The kernel kills it when its parent dies.
    pub fn new(name: impl Into<String>, program: impl AsRef<OsStr>) -> Self {
        Self::with_death_signal(name, program, "KILL")
    }

    /// Prepares a process to which the kernel sends `signal`, as `setpriv` names it, when its parent dies.
    pub fn with_death_signal(
        name: impl Into<String>,
        program: impl AsRef<OsStr>,
        signal: &str,
    ) -> Self {
        let mut command = if has_parent_death_signal() {
            let mut command = Command::new("setpriv");
            command
                .args(["--pdeathsig", signal, "--"])
                .arg(program.as_ref());
            command
        } else {
            Command::new(program)
        };
        command.stdin(Stdio::null()).process_group(0);
        Self {
            name: name.into(),
            command,
            log: None,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets environment variables.
    #[must_use]
    pub fn envs(mut self, variables: &[(String, String)]) -> Self {
        self.command.envs(variables.iter().cloned());
        self
    }

    /// Removes an environment variable.
    #[must_use]
    pub fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn directory(mut self, directory: impl AsRef<Path>) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Runs it as another user and group, without supplementary groups. Only root can do that; `None` changes nothing.
    #[must_use]
    pub fn user(mut self, ids: Option<(u32, u32)>) -> Self {
        if let Some((user, group)) = ids {
            self.command.uid(user).gid(group);
        }
        self
    }

    /// Appends what it prints to a file instead of the terminal.
    #[must_use]
    pub fn log_to(mut self, log: impl Into<PathBuf>) -> Self {
        self.log = Some(log.into());
        self
    }

    /// Starts it.
    pub fn spawn(mut self) -> Result<Process> {
        if let Some(log) = &self.log {
            let file = File::options()
                .create(true)
                .append(true)
                .open(log)
                .with_context(|| format!("cannot open {}", log.display()))?;
            let second = file.try_clone().context("cannot duplicate a log file")?;
            self.command.stdout(file).stderr(second);
        }
        let child = spawn_on_lasting_thread(&self.name, self.command)?;
        Ok(Process::new(self.name, child, self.log))
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// Fails, with the end of its log, if its exit status is not 0.
    pub fn run(self) -> Result<()> {
        let mut process = self.spawn()?;
        let status = process.wait(Signal::INT, TOOL_GRACE)?;
        if !status.success() {
            bail!("{} failed: {status}{}", process.name(), process.log_tail());
        }
        Ok(())
    }

    /// Runs a short command with `input` on its standard input, and returns what it prints.
    ///
    /// # Errors
    /// Fails, with what it has printed to standard error, if its exit status is not 0.
    pub fn output_of(mut self, input: &str) -> Result<String> {
        use std::io::Write as _;

        self.command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn_on_lasting_thread(&self.name, self.command)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read its input closes the pipe. What matters is its exit status.
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
        String::from_utf8(output.stdout)
            .with_context(|| format!("{} printed something that is not UTF-8", self.name))
    }
}

/// Returns whether this system has `setpriv --pdeathsig` of util-linux. macOS, for example, does not.
fn has_parent_death_signal() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "true"])
            .output()
            .is_ok_and(|output| output.status.success())
    })
}

type SpawnRequest = (Command, mpsc::SyncSender<io::Result<Child>>);

/// Starts a child on the one thread that lives as long as this process (see the documentation of [`super`]).
fn spawn_on_lasting_thread(name: &str, command: Command) -> Result<Child> {
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
        .map_err(|_| anyhow!("the thread that starts processes has ended"))?;
    answer_rx
        .recv()
        .context("the thread that starts processes has ended")?
        .with_context(|| format!("cannot start {name}"))
}

/// Returns the path of a program on the PATH.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// Returns the path of a server's program. On Debian only root has such programs on the PATH.
pub fn find_system_program(name: &str) -> Option<PathBuf> {
    find_program(name).or_else(|| {
        let debian = Path::new("/usr/sbin").join(name);
        debian.is_file().then_some(debian)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::is_running;

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
        assert!(!is_running(pid));
    }
}
