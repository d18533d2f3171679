//! The project's own processes in the demo: migrated, started, watched, stopped in order.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use servers::interrupt::{Interrupted, wait_for};
use servers::process::{Launch, Process};
use servers::signals::Signal;
use servers::{progress, project};

use super::Ports;
use crate::cargo::target_folder;

/// Joining a consumer group and the first warm-up are part of it.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// A hundred times what it takes.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an answer may take.
const REQUEST_TIMEOUT_SECONDS: u64 = 2;
/// The processes promise to stop within 10 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);
/// How many warnings of a process are shown at a time; the log has the others.
const WARNINGS_AT_A_TIME: usize = 5;

/// The running processes, in the order in which they are stopped: producers first.
#[derive(Debug)]
pub(super) struct Services {
    binaries: PathBuf,
    logs: PathBuf,
    environment: Vec<(String, String)>,
    running: Vec<Process>,
    shown_bytes: HashMap<String, u64>,
}

impl Services {
    pub(super) fn new(release: bool, environment: Vec<(String, String)>) -> Result<Self> {
        let logs = project::stack_folder().join("logs");
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        for entry in fs::read_dir(&logs)?.flatten() {
            fs::remove_file(entry.path()).ok();
        }
        Ok(Self {
            binaries: target_folder(release),
            logs,
            environment,
            running: Vec::new(),
            shown_bytes: HashMap::new(),
        })
    }

    /// Migrates, starts both processes and waits until both are ready.
    pub(super) fn start(&mut self, ports: Ports) -> Result<()> {
        self.launch("ingestor migrate", "ingestor", &["migrate"], "migrate")
            .run()?;
        progress::step("the database is migrated");
        let ingestor = self
            .launch("ingestor", "ingestor", &["run"], "ingestor")
            .env("INGESTOR_PORT", ports.ingestor.to_string())
            .spawn()?;
        self.running.push(ingestor);
        let api = self
            .launch("api", "api", &[], "api")
            .env("SERVER_PORT", ports.api.to_string())
            .spawn()?;
        self.running.push(api);
        self.wait_until_ready("ingestor", ports.ingestor)?;
        self.wait_until_ready("api", ports.api)
    }

    /// Sends the sample order to Kafka and waits until the api answers it: the whole way works.
    pub(super) fn send_sample(&mut self, api_port: u16) -> Result<()> {
        self.launch("load sample", "load", &["sample"], "load")
            .run()?;
        let sent_at = Instant::now();
        let path = format!("/order/{}", super::SAMPLE_UID);
        wait_for(
            "the sample order does not come out of the api (see .stack/logs)",
            SAMPLE_TIMEOUT,
            || {
                self.check_running()?;
                Ok(get(api_port, &path).filter(|response| response.status_code == 200))
            },
        )?;
        progress::step(&format!(
            "the sample order went through Kafka, the ingestor, PostgreSQL and the api ({:.2} s)",
            sent_at.elapsed().as_secs_f32()
        ));
        Ok(())
    }

    /// Starts a stream of orders in the background, unless `rate` is 0.
    pub(super) fn stream(&mut self, rate: u32) -> Result<()> {
        if rate == 0 {
            return Ok(());
        }
        let rate = rate.to_string();
        let arguments = ["produce", "--rate", &rate, "--invalid-percent", "2"];
        let load = self.launch("load", "load", &arguments, "load").spawn()?;
        // Pushed last, so stopped first.
        self.running.push(load);
        Ok(())
    }

    /// Fails, with the end of its log, if one has ended.
    pub(super) fn check_running(&mut self) -> Result<()> {
        self.running.iter_mut().try_for_each(Process::check_running)
    }

    /// Prints what the logs have got since the last call, warnings and errors only.
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
                    "{}: {} more such lines in {}",
                    process.name(),
                    warnings.len() - WARNINGS_AT_A_TIME,
                    log.display()
                ));
            }
        }
    }

    /// Stops all, the newest first.
    pub(super) fn stop(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        while let Some(mut process) = self.running.pop() {
            let stopped = process.stop(Signal::TERM, STOP_TIMEOUT);
            progress::step(&format!("{} is stopped", process.name()));
            outcome = outcome.and(stopped);
        }
        outcome
    }

    fn launch(&self, name: &str, program: &str, arguments: &[&str], log: &str) -> Launch {
        Launch::new(name, self.binaries.join(program))
            .args(arguments)
            .envs(&self.environment)
            // No escape codes: these logs are files.
            .env("NO_COLOR", "1")
            // Not the project's root: a `.env` there is meant for other servers than these.
            .directory(&self.logs)
            .log_to(self.logs.join(log).with_extension("log"))
    }

    fn wait_until_ready(&mut self, name: &str, port: u16) -> Result<()> {
        let mut last_answer = "nothing answers".to_owned();
        let ready = wait_for(name, READY_TIMEOUT, || {
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

/// Asks a process on loopback; `None` if it does not answer.
fn get(port: u16, path: &str) -> Option<minreq::Response> {
    let request = minreq::get(format!("http://127.0.0.1:{port}{path}"));
    request.with_timeout(REQUEST_TIMEOUT_SECONDS).send().ok()
}

/// The complete lines behind the first `*position` bytes, which moves on.
fn read_lines_from(log: &PathBuf, position: &mut u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    file.seek(SeekFrom::Start(*position)).ok()?;
    let mut bytes = Vec::new();
    file.take(1_000_000).read_to_end(&mut bytes).ok()?;
    let end = bytes.iter().rposition(|byte| *byte == b'\n')? + 1;
    *position += u64::try_from(end).ok()?;
    Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// Whether a line of a tracing log, text or JSON, is a warning or an error.
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
