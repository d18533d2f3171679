//! PostgreSQL and Kafka together, and the environment variables that make the project's processes and tests use them.

mod folder;
mod mock;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

pub(crate) use folder::StackFolder;
use mock::MockBroker;
use servers::kafka::{Jars, PrivateKafka};
use servers::postgres::{self, PrivatePostgres};
use servers::{interrupt, progress, project};

use crate::packages;

/// The topic that ingestors read if `KAFKA_TOPIC` is not set.
const DEFAULT_TOPIC: &str = "orders";
/// Two ingestors can share them, and they start fast.
const PARTITIONS: u32 = 4;

/// If one of these variables is set, the user's own PostgreSQL is used.
const DATABASE_VARIABLES: [&str; 6] = [
    "DB_HOST",
    "DB_PORT",
    "DB_USER",
    "DB_PASSWORD",
    "DB_PASSWORD_FILE",
    "DB_NAME",
];

/// The Kafka that a run uses.
#[derive(Debug)]
pub(crate) enum Broker {
    /// The Kafka that `KAFKA_BROKERS` names.
    Given,
    /// A private Apache Kafka.
    Private(PrivateKafka),
    /// librdkafka's in-process broker, because Apache Kafka could not be fetched.
    Mock(MockBroker),
}

/// The servers of a run. Kafka is dropped first.
#[derive(Debug)]
pub(crate) struct Stack {
    broker: Broker,
    /// `None` if the environment names a PostgreSQL.
    postgres: Option<PrivatePostgres>,
}

impl Stack {
    /// Starts the servers that the environment does not name, both at the same time. `settings` are more settings of a
    /// private PostgreSQL.
    pub(crate) fn start(
        folder: &Path,
        is_durable: bool,
        settings: &[(&'static str, &'static str)],
    ) -> Result<Self> {
        thread::scope(|scope| {
            let broker = scope.spawn(|| start_broker(&folder.join("kafka")));
            let postgres = start_postgres(&folder.join("postgres"), is_durable, settings);
            let broker = broker
                .join()
                .map_err(|_| anyhow!("the start of Kafka panicked"))?;
            Ok(Self {
                broker: broker?,
                postgres: postgres?,
            })
        })
    }

    /// Starts the servers while `build` runs, and returns them with what `build` returns.
    pub(crate) fn start_during<T>(
        folder: &Path,
        is_durable: bool,
        build: impl FnOnce() -> Result<T>,
    ) -> Result<(Self, T)> {
        thread::scope(|scope| {
            let servers = scope.spawn(|| Self::start(folder, is_durable, &[]));
            let built = build().inspect(|_| progress::step("built"));
            let servers = servers
                .join()
                .map_err(|_| anyhow!("the start of the servers panicked"))?;
            built.and_then(|built| Ok((servers?, built)))
        })
    }

    /// Returns the Kafka that it uses.
    pub(crate) fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Returns the private PostgreSQL; `None` if the environment names another one.
    pub(crate) fn postgres(&self) -> Option<&PrivatePostgres> {
        self.postgres.as_ref()
    }

    /// Creates the topic of the orders in a private Kafka. In the user's own Kafka it must exist already.
    pub(crate) fn create_topic(&self) -> Result<()> {
        match &self.broker {
            Broker::Private(kafka) => kafka.create_topic(&topic(), PARTITIONS),
            Broker::Given | Broker::Mock(_) => Ok(()),
        }
    }

    /// Returns the environment variables that make the project's processes and tests use the private servers.
    pub(crate) fn env(&self) -> Vec<(String, String)> {
        let mut variables = self
            .postgres
            .as_ref()
            .map(PrivatePostgres::env)
            .unwrap_or_default();
        let bootstrap = match &self.broker {
            Broker::Given => return variables,
            Broker::Private(kafka) => kafka.bootstrap(),
            Broker::Mock(broker) => broker.bootstrap().to_owned(),
        };
        variables.push(("KAFKA_BROKERS".to_owned(), bootstrap));
        variables
    }

    /// Writes the variables of the private servers to a file, for as long as `run` runs.
    pub(crate) fn with_env_file(
        &mut self,
        name: &str,
        run: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let file = env_file(name);
        fs::write(&file, render_exports(&self.env()))
            .with_context(|| format!("cannot write {}", file.display()))?;
        let outcome = run(self);
        fs::remove_file(&file).ok();
        outcome
    }

    /// Checks that the servers run.
    ///
    /// # Errors
    /// Fails, with the end of its log, if a server has ended.
    pub(crate) fn check_running(&mut self) -> Result<()> {
        match &mut self.broker {
            Broker::Given => {}
            Broker::Private(kafka) => kafka.check_running()?,
            Broker::Mock(broker) => broker.check_running()?,
        }
        self.postgres
            .as_mut()
            .map_or(Ok(()), PrivatePostgres::check_running)
    }

    /// Stops both in good order, Kafka first.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let broker = match &mut self.broker {
            Broker::Given => Ok(()),
            Broker::Private(kafka) => kafka.stop(),
            Broker::Mock(broker) => broker.stop(),
        };
        let postgres = self.postgres.as_mut().map_or(Ok(()), PrivatePostgres::stop);
        broker.and(postgres)
    }
}

/// Installs what the build and the private servers of this run need.
pub(crate) fn install_packages() -> Result<()> {
    let mut purposes = vec![packages::Purpose::Build];
    if !database_is_given() {
        purposes.push(packages::Purpose::Postgres);
    }
    if variable("KAFKA_BROKERS").is_none() {
        purposes.push(packages::Purpose::Kafka);
    }
    packages::ensure_but_kafka_if_impossible(&purposes)
}

fn start_broker(folder: &Path) -> Result<Broker> {
    if let Some(brokers) = variable("KAFKA_BROKERS") {
        progress::step(&format!("Kafka: KAFKA_BROKERS={brokers}"));
        return Ok(Broker::Given);
    }
    let start = Instant::now();
    if let Err(error) = Jars::fetch() {
        interrupt::check()?;
        progress::say(&format!(
            "\n{error:#}\n\n\
             *** Apache Kafka is not available. librdkafka's in-process broker is used in its place. It stores nothing on\n\
             *** disk, has no console tools, and proves nothing about a real Kafka.\n"
        ));
        let broker = MockBroker::start(folder, &topic(), PARTITIONS)?;
        progress::step(&format!(
            "the in-process broker runs at {}",
            broker.bootstrap()
        ));
        return Ok(Broker::Mock(broker));
    }
    let kafka = PrivateKafka::start(Some(folder))?;
    progress::step(&format!(
        "Apache Kafka runs at {} ({:.1} s)",
        kafka.bootstrap(),
        start.elapsed().as_secs_f32()
    ));
    Ok(Broker::Private(kafka))
}

fn start_postgres(
    folder: &Path,
    is_durable: bool,
    settings: &[(&'static str, &'static str)],
) -> Result<Option<PrivatePostgres>> {
    if database_is_given() {
        progress::step("PostgreSQL: the server that the DB_* variables name");
        return Ok(None);
    }
    let start = Instant::now();
    let postgres = PrivatePostgres::start(&postgres::Options {
        folder: Some(folder.to_owned()),
        is_durable,
        settings: settings.to_vec(),
        ..postgres::Options::default()
    })?;
    progress::step(&format!(
        "PostgreSQL {} runs at {}:{} ({:.1} s)",
        postgres.version()?,
        postgres.host(),
        postgres.port(),
        start.elapsed().as_secs_f32()
    ));
    Ok(Some(postgres))
}

fn database_is_given() -> bool {
    DATABASE_VARIABLES
        .into_iter()
        .any(|name| variable(name).is_some())
}

/// Returns the topic of the orders.
pub(crate) fn topic() -> String {
    variable("KAFKA_TOPIC").unwrap_or_else(|| DEFAULT_TOPIC.to_owned())
}

/// Returns a variable of the environment; `None` if it is not set or empty.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Writes variables as lines that a shell can `source`.
fn render_exports(variables: &[(String, String)]) -> String {
    variables
        .iter()
        .map(|(name, value)| format!("export {name}='{}'\n", value.replace('\'', r"'\''")))
        .collect()
}

/// Reads the lines that [`render_exports`] has written.
pub(crate) fn parse_exports(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.strip_prefix("export ")?.split_once('=')?;
            let value = value.strip_prefix('\'')?.strip_suffix('\'')?;
            Some((name.to_owned(), value.replace(r"'\''", "'")))
        })
        .collect()
}

/// `cargo xtask stack`: starts both servers, writes `.stack/dev.env`, and waits for a signal.
pub(crate) fn run() -> Result<()> {
    run_in_folder("dev", |folder| {
        let mut stack = Stack::start(folder, false, &[])?;
        stack.create_topic()?;
        let ended = stack.with_env_file("dev", |stack| {
            progress::say(&format!(
                "\n{}\nThese lines are also in {}:\n    source .stack/dev.env && cargo test -p shared\n\
                 Ctrl-C stops both servers and removes their data.",
                render_exports(&stack.env()),
                env_file("dev").display()
            ));
            while interrupt::check().is_ok() {
                stack.check_running()?;
                thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        });
        ended.and(stack.stop())
    })
}

/// Installs what servers need, and runs them in the folder of that name. If the run has failed, the folder is kept.
pub(crate) fn run_in_folder(name: &str, run: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut folder = StackFolder::take(name)?;
    install_packages()?;
    let outcome = run(folder.path());
    folder.remove_at_end_unless_failed(&outcome);
    outcome
}

/// Runs a trial of programs with a private PostgreSQL and a private Kafka that has the topic, as [`run_in_folder`] does. They start
/// while `build` runs. The trial gets their folder, them, and what `build` returns.
pub(crate) fn run_trial<T>(
    name: &str,
    build: impl FnOnce() -> Result<T>,
    run: impl FnOnce(&Path, &Stack, T) -> Result<()>,
) -> Result<()> {
    run_in_folder(name, |folder| {
        let (mut servers, built) = Stack::start_during(folder, false, build)?;
        ensure!(
            matches!(servers.broker, Broker::Private(_)) && servers.postgres.is_some(),
            "this needs a private Kafka and a private PostgreSQL: unset KAFKA_BROKERS and DB_*"
        );
        servers.create_topic()?;
        let outcome = run(folder, &servers, built);
        outcome.and(servers.stop())
    })
}

/// Returns the file with the variables of a running `demo` or `dev` stack.
pub(crate) fn env_file(name: &str) -> PathBuf {
    project::stack_folder().join(format!("{name}.env"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_survive_a_quote() {
        let variables = [("DB_PASSWORD".to_owned(), "it's".to_owned())];
        assert_eq!(
            render_exports(&variables),
            "export DB_PASSWORD='it'\\''s'\n"
        );
        assert_eq!(parse_exports(&render_exports(&variables)), variables);
    }
}
