//! Benchmarks: ratios to a named rival in one run, because machines differ and have moods.
//!
//! - [`ingest`]: orders drained from a backlog in Kafka, beside bare COPY of the same rows;
//! - [`read`]: orders answered over HTTP, beside nginx and bare hyper answering the same bytes, and beside pgbench;
//! - [`freshness`]: how soon the caches answer what was produced or committed, beside a bare LISTEN.
//!
//! `cargo xtask bench` sets up the servers. Each table starts and ends with the machine's load average: where others
//! compile meanwhile, figures of single rounds mean little. Nothing here asserts a time; what is asserted is that both
//! sides did the whole work.

mod beside;
pub(crate) mod freshness;
pub(crate) mod ingest;
pub(crate) mod read;
mod topic;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use diesel::prelude::*;
use shared::db::models::NewOrder;
use shared::db::schema::orders;
use shared::order::Order;

/// Most time for anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(300);
/// Most time for a service that was asked to stop.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks: a look must not cost the measured side anything, a run takes seconds.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// A service under measurement; it is killed with the benchmark.
struct Service {
    name: String,
    child: Child,
}

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
            // The spans of requests cost what they do at the default level; their lines would be among the figures.
            .env("RUST_LOG", "warn,api::http::envelope=info")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        Ok(Self {
            name: program.to_owned(),
            child,
        })
    }

    /// Waits for a condition; fails at once if the service has ended.
    fn wait_for(
        &mut self,
        what: &str,
        mut condition: impl FnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let start = Instant::now();
        while !condition()? {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}) before: {what}", self.name);
            }
            if start.elapsed() > PATIENCE {
                bail!("not within {PATIENCE:?}: {what}");
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(())
    }

    /// Gives it a moment to end by itself.
    fn wait_for_end(&mut self) {
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < END_PATIENCE {
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            self.child.wait().ok();
        }
    }
}

/// A load generator, in a session of its own. Linux shares the cores between sessions first (autogroup), as between a service
/// manager's services, and between threads then: in one session with a server of two busy threads, a generator of one gets a
/// third of two cores and is what is measured.
fn generator(program: &str) -> Command {
    let mut command = Command::new("setsid");
    command.args(["--wait", program]);
    command
}

/// Runs it to its end; what it printed. It is setsid that starts, and tells of a program which is missing.
fn output_of(generator: &mut Command) -> anyhow::Result<String> {
    let output = generator.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {text}{error}", output.status);
    }
    Ok(text)
}

/// Measures both in turn; who goes first changes with every round, so that neither always finds what the other left.
fn in_turn<A, B>(
    round: usize,
    first: impl FnOnce() -> anyhow::Result<A>,
    second: impl FnOnce() -> anyhow::Result<B>,
) -> anyhow::Result<(A, B)> {
    if round % 2 == 1 {
        let first = first()?;
        Ok((first, second()?))
    } else {
        let second = second()?;
        Ok((first()?, second))
    }
}

/// Copies orders into the table, as if the api had written them.
fn copy_orders(connection: &mut PgConnection, orders: &[Order]) -> QueryResult<()> {
    let rows: Vec<NewOrder<'_>> = orders
        .iter()
        .map(|order| NewOrder::new(order, None))
        .collect();
    diesel::copy_from(orders::table)
        .from_insertable(&rows)
        .execute(connection)?;
    Ok(())
}

fn print_load_average() {
    // Only Linux has it there; the figures stand without.
    if let Ok(text) = std::fs::read_to_string("/proc/loadavg") {
        let averages: Vec<&str> = text.split_whitespace().take(3).collect();
        println!("load average {}", averages.join(" "));
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_that_is_missing_is_named() {
        let error = output_of(&mut generator("no-such-generator")).unwrap_err();
        assert!(error.to_string().contains("no-such-generator"), "{error}");
    }
}
