//! Benchmarks: ratios to a named rival in one run, because machines differ and have moods. `cargo xtask bench` sets up
//! the servers for them.

pub(crate) mod ingest;
pub(crate) mod read;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// Most time for anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(300);

/// A service of ours under measurement; it is killed with the benchmark.
struct Service(Child);

impl Service {
    fn start(
        program: &str,
        arguments: &[&str],
        variables: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(variables.iter().map(|(name, value)| (name, value)));
        // Standard error stays: a service that cannot start says why.
        command
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
            .spawn()
            .map(Self)
            .with_context(|| format!("cannot start {program}"))
    }

    /// CPU time in seconds and the highest resident memory in MiB, as Linux counts them.
    fn usage(&self) -> anyhow::Result<(f64, f64)> {
        /// Linux counts in hundredths of a second for programs, whatever the kernel does (`USER_HZ` in `man 5 proc`).
        const TICKS_PER_SECOND: f64 = 100.0;
        let folder = format!("/proc/{}", self.0.id());
        let stat = std::fs::read_to_string(format!("{folder}/stat"))?;
        // The second field, a name in parentheses, may hold spaces.
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let ticks: f64 = fields
            .iter()
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<f64>().ok())
            .sum();
        let status = std::fs::read_to_string(format!("{folder}/status"))?;
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .context("no VmHWM")?;
        let peak_kib: f64 = peak.trim().trim_end_matches(" kB").parse()?;
        Ok((ticks / TICKS_PER_SECOND, peak_kib / 1024.0))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if self.0.kill().is_ok() {
            self.0.wait().ok();
        }
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let start = Instant::now();
    while !condition()? {
        if start.elapsed() > PATIENCE {
            bail!("not within {PATIENCE:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
