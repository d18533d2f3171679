//! A private Prometheus. Tests let it scrape the programs by the rules that the project ships.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::interrupt::wait_for;
use crate::process::{Launch, Process, find_program};
use crate::{ports, temporary};

const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running Prometheus. Dropping it kills it and removes what it has stored.
#[derive(Debug)]
pub struct PrivatePrometheus {
    process: Option<Process>,
    folder: PathBuf,
    port: u16,
}

impl PrivatePrometheus {
    /// Starts it with the text of a configuration and of its rules, which the configuration names `rules.yml`.
    pub fn start(configuration: &str, rules: &str) -> Result<Self> {
        let mut prometheus = Self {
            process: None,
            folder: temporary::folder("prometheus"),
            port: ports::free_port()?,
        };
        let folder = &prometheus.folder;
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        for (name, text) in [("prometheus.yml", configuration), ("rules.yml", rules)] {
            fs::write(folder.join(name), text).with_context(|| format!("cannot write {name}"))?;
        }
        let mut process = Launch::new(
            "Prometheus",
            find_prometheus().context("Prometheus is not installed")?,
        )
        .arg("--config.file=prometheus.yml")
        .arg("--storage.tsdb.path=data")
        .arg(format!(
            "--web.listen-address=127.0.0.1:{}",
            prometheus.port
        ))
        .directory(folder)
        .log_to(folder.join("prometheus.log"))
        .spawn()?;
        wait_for("Prometheus does not start", START_TIMEOUT, || {
            process.check_running()?;
            Ok(TcpStream::connect(("127.0.0.1", prometheus.port)).ok())
        })?;
        prometheus.process = Some(process);
        Ok(prometheus)
    }

    /// Returns the port on 127.0.0.1 that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the folder of its configuration and its log.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for PrivatePrometheus {
    fn drop(&mut self) {
        drop(self.process.take());
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// Returns the path of Prometheus.
pub fn find_prometheus() -> Option<PathBuf> {
    find_program("prometheus")
}

/// Returns the path of promtool, which checks rules and metrics.
pub fn find_promtool() -> Option<PathBuf> {
    find_program("promtool")
}
