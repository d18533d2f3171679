//! The project's own processes in the demo: they are started, watched, and stopped in the right order.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use servers::interrupt::{Interrupted, wait_for};
use servers::process::{Launch, Process};
use servers::signals::Signal;
use servers::{progress, project};

use super::{Options, SAMPLE_UID};
use crate::cargo::target_folder;

/// This includes joining the consumer group and the first warm-up.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// A hundred times as long as the sample order usually takes.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an answer may take.
const REQUEST_TIMEOUT_SECONDS: u64 = 2;
/// The processes promise to stop within 10 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);
/// How many warnings of a process are shown at a time. The log has the others.
const WARNINGS_AT_A_TIME: usize = 5;

/// The running processes. The newest one is stopped first, and the producer is started last.
#[derive(Debug)]
pub(super) struct Services {
    options: Options,
    logs: PathBuf,
    environment: Vec<(String, String)>,
    /// Whether each program has a role of its own in the database. On the user's own server, all use the user's role.
    has_roles: bool,
    running: Vec<Process>,
    /// How much of each log was looked through for warnings.
    shown_bytes: HashMap<String, u64>,
}

impl Services {
    pub(super) fn new(
        options: Options,
        environment: Vec<(String, String)>,
        has_roles: bool,
    ) -> Result<Self> {
        let logs = project::stack_folder().join("logs");
        fs::remove_dir_all(&logs).ok();
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        Ok(Self {
            options,
            logs,
            environment,
            has_roles,
            running: Vec::new(),
            shown_bytes: HashMap::new(),
        })
    }

    /// Migrates the database, starts both processes and waits until both are ready.
    pub(super) fn start(&mut self) -> Result<()> {
        let (api_port, ingestor_port) = (self.options.api_port, self.options.ingestor_port);
        self.launch_as("orders_migrator", "ingestor", &["migrate"])
            .log_to(self.log_of("migrate"))
            .run()?;
        progress::step("the database is migrated");
        let ingestor = self
            .launch_as("orders_ingestor", "ingestor", &["run", "--no-migrate"])
            .env("INGESTOR_PORT", ingestor_port.to_string());
        self.running.push(ingestor.spawn()?);
        let api = self
            .launch_as("orders_api", "api", &[])
            .env("SERVER_PORT", api_port.to_string())
            .env("OPS_PORT", self.options.ops_port.to_string());
        self.running.push(api.spawn()?);
        self.wait_until_ready("ingestor", ingestor_port)?;
        self.wait_until_ready("api", api_port)
    }

    /// Sends the sample order to Kafka and waits until the api answers with it. Then the whole chain works.
    pub(super) fn send_sample(&mut self) -> Result<()> {
        self.launch("load", &["sample"]).run()?;
        let sent_at = Instant::now();
        let (port, path) = (self.options.api_port, format!("/order/{SAMPLE_UID}"));
        wait_for(
            "the api does not answer with the sample order (its log and that of the ingestor are in .stack/logs)",
            SAMPLE_TIMEOUT,
            || {
                self.check_running()?;
                Ok(get(port, &path).filter(|response| response.status_code == 200))
            },
        )?;
        progress::step(&format!(
            "the sample order went through Kafka, the ingestor, PostgreSQL and the api ({:.2} s)",
            sent_at.elapsed().as_secs_f32()
        ));
        Ok(())
    }

    /// Starts a stream of orders in the background, unless the rate is 0.
    pub(super) fn stream(&mut self) -> Result<()> {
        let rate = self.options.rate.to_string();
        if self.options.rate > 0 {
            let load = self.launch(
                "load",
                &["produce", "--rate", &rate, "--invalid-percent", "2"],
            );
            self.running.push(load.spawn()?);
        }
        Ok(())
    }

    /// Checks that all processes run.
    ///
    /// # Errors
    /// Fails, with the end of its log, if one has ended.
    pub(super) fn check_running(&mut self) -> Result<()> {
        self.running.iter_mut().try_for_each(Process::check_running)
    }

    /// Prints the warnings and errors that are new in the logs since the last call.
    pub(super) fn show_warnings(&mut self) {
        for process in &self.running {
            let log = self.logs.join(process.name()).with_extension("log");
            let shown = self
                .shown_bytes
                .entry(process.name().to_owned())
                .or_default();
            let Some(text) = read_lines_from(&log, shown) else {
                continue;
            };
            let warnings: Vec<&str> = text.lines().filter(|line| is_warning(line)).collect();
            for line in warnings.iter().take(WARNINGS_AT_A_TIME) {
                progress::say(&format!("{}: {line}", process.name()));
            }
            if warnings.len() > WARNINGS_AT_A_TIME {
                progress::say(&format!(
                    "{}: {} more warnings are in {}",
                    process.name(),
                    warnings.len() - WARNINGS_AT_A_TIME,
                    log.display()
                ));
            }
        }
    }

    /// Stops all processes, the newest one first.
    pub(super) fn stop(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        while let Some(mut process) = self.running.pop() {
            let stopped = process.stop(Signal::TERM, STOP_TIMEOUT);
            progress::step(&format!("{} is stopped", process.name()));
            outcome = outcome.and(stopped);
        }
        outcome
    }

    /// Prepares a program that connects to the database as its own role.
    fn launch_as(&self, role: &str, program: &str, arguments: &[&str]) -> Launch {
        let launch = self.launch(program, arguments);
        if self.has_roles {
            launch.env("DB_USER", role)
        } else {
            launch
        }
    }

    fn launch(&self, program: &str, arguments: &[&str]) -> Launch {
        Launch::new(
            program,
            target_folder(self.options.is_release).join(program),
        )
        .args(arguments)
        .envs(&self.environment)
        // No escape codes, because the logs are files.
        .env("NO_COLOR", "1")
        // Not the project's root: a `.env` there is meant for other servers.
        .directory(&self.logs)
        .log_to(self.log_of(program))
    }

    fn log_of(&self, name: &str) -> PathBuf {
        self.logs.join(name).with_extension("log")
    }

    fn wait_until_ready(&mut self, name: &str, port: u16) -> Result<()> {
        let mut last_answer = "no answer".to_owned();
        let ready = wait_for(&format!("{name} is not ready"), READY_TIMEOUT, || {
            self.check_running()?;
            let Some(response) = get(port, "/readyz") else {
                return Ok(None);
            };
            let body = response.as_str().unwrap_or_default().trim();
            last_answer = format!("{} {body}", response.status_code);
            Ok((response.status_code == 200).then_some(()))
        });
        if let Err(error) = ready {
            if error.is::<Interrupted>() {
                return Err(error);
            }
            bail!("{error:#}\n  /readyz on port {port}: {last_answer}");
        }
        progress::step(&format!("{name} is ready on port {port}"));
        Ok(())
    }
}

/// Sends a request to a process on loopback; `None` if it does not answer.
fn get(port: u16, path: &str) -> Option<minreq::Response> {
    let request = minreq::get(format!("http://127.0.0.1:{port}{path}"));
    request.with_timeout(REQUEST_TIMEOUT_SECONDS).send().ok()
}

/// Returns the complete lines after the first `*position` bytes, and moves the position to their end.
fn read_lines_from(log: &Path, position: &mut u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    file.seek(SeekFrom::Start(*position)).ok()?;
    let mut bytes = Vec::new();
    file.take(1_000_000).read_to_end(&mut bytes).ok()?;
    let end = bytes.iter().rposition(|byte| *byte == b'\n')? + 1;
    *position += u64::try_from(end).ok()?;
    Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// Returns whether a line of a tracing log, text or JSON, is a warning or an error.
fn is_warning(line: &str) -> bool {
    [" WARN ", " ERROR ", "\"WARN\"", "\"ERROR\""]
        .iter()
        .any(|mark| line.contains(mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_once_and_only_when_complete() {
        let log = std::env::temp_dir().join(format!("xtask-lines-{}", std::process::id()));
        let mut position = 0;
        fs::write(&log, "one\nhal").unwrap();
        assert_eq!(
            read_lines_from(&log, &mut position).as_deref(),
            Some("one\n")
        );
        assert_eq!(read_lines_from(&log, &mut position), None);
        fs::write(&log, "one\nhalf\n").unwrap();
        assert_eq!(
            read_lines_from(&log, &mut position).as_deref(),
            Some("half\n")
        );
        fs::remove_file(&log).unwrap();
    }

    #[test]
    fn warnings_are_told_from_the_rest() {
        assert!(is_warning("2026-11-23T14:00:00Z  WARN ingestor: lag"));
        assert!(is_warning("{\"level\":\"ERROR\"}"));
        assert!(!is_warning(
            "2026-11-23T14:00:00Z  INFO ingestor: WARNING signs"
        ));
    }
}
