//! The `ingestor` program as a child process.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use shared::testing::wait_until;

use super::PATIENCE;

/// A running daemon, which is killed when it is dropped.
pub struct Daemon {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Daemon {
    pub fn start(environment: &[(String, String)]) -> Self {
        Self::start_with(&["run"], environment)
    }

    /// Starts it with these arguments.
    pub fn start_with(arguments: &[&str], environment: &[(String, String)]) -> Self {
        Self::spawn(command(arguments, environment))
    }

    /// Starts it with a limit on file descriptors that it cannot raise.
    pub fn start_with_file_limit(limit: u32, environment: &[(String, String)]) -> Self {
        let mut shell = Command::new("/bin/sh");
        let program = env!("CARGO_BIN_EXE_ingestor");
        shell.args(["-c", &format!("ulimit -n {limit} && exec {program} run")]);
        Self::spawn(in_environment(shell, environment))
    }

    fn spawn(mut command: Command) -> Self {
        let port = servers::ports::free_port().unwrap();
        let log = std::env::temp_dir().join(format!("ingestor-{}.log", uuid::Uuid::new_v4()));
        let child = command
            .env("INGESTOR_PORT", port.to_string())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, port, log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The operators' port.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill_nine(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM and waits for the end, within the time that the daemon promises.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(Duration::from_secs(15))
    }

    pub fn wait(&mut self, timeout: Duration) -> ExitStatus {
        let mut status = None;
        wait_until("the daemon has ended", timeout, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub fn wait_until_logged(&self, text: &str) {
        wait_until(&format!("{text:?} is in the log"), PATIENCE, || {
            self.log().contains(text)
        });
    }

    /// Returns status and body of a path of the operators' port; `None` while nobody listens.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let request = minreq::get(format!("http://127.0.0.1:{}{path}", self.port));
        let response = request.with_timeout(5).send().ok()?;
        Some((response.status_code, response.as_str().ok()?.to_owned()))
    }

    /// Returns the value of a metric, or the sum over its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let Some((200, text)) = self.get("/metrics") else {
            return 0.0;
        };
        let lines = text
            .lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            self.child.wait().ok();
        }
        if std::thread::panicking() {
            eprintln!("log of the daemon:\n{}", self.log());
        }
        std::fs::remove_file(&self.log).ok();
    }
}

/// The program with these variables and no others of ours.
pub fn command(arguments: &[&str], environment: &[(String, String)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ingestor"));
    command.args(arguments);
    in_environment(command, environment)
}

fn in_environment(mut command: Command, environment: &[(String, String)]) -> Command {
    command.env_clear().envs(environment.iter().cloned());
    // There is no developer's `.env` here.
    command
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}
