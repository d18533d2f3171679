//! PostgreSQL and Kafka together, and the environment that makes the project's processes and tests use them.

mod folder;
mod mock;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

pub(crate) use folder::StackFolder;
use mock::MockBroker;
use servers::kafka::{Jars, PrivateKafka};
use servers::postgres::{self, PrivatePostgres};
use servers::{interrupt, progress, project};

use crate::packages;

/// The topic that ingestors read unless `KAFKA_TOPIC` says otherwise.
const DEFAULT_TOPIC: &str = "orders";
/// Enough for two ingestors to share, few enough to start fast.
const PARTITIONS: u32 = 4;

/// Variables any of which says that a PostgreSQL of the user's is to be used.
const DATABASE_VARIABLES: [&str; 6] = [
    "DB_HOST",
    "DB_PORT",
    "DB_USER",
    "DB_PASSWORD",
    "DB_PASSWORD_FILE",
    "DB_NAME",
];

/// Which Kafka a run uses.
#[derive(Debug)]
pub enum Broker {
    /// The one that `KAFKA_BROKERS` names.
    Given,
    /// A private Apache Kafka.
    Private(PrivateKafka),
    /// librdkafka's in-process broker, because Apache Kafka cannot be had.
    Mock(MockBroker),
}

/// The servers of a run.
///
/// Dropped in this order: Kafka, PostgreSQL.
#[derive(Debug)]
pub struct Stack {
    broker: Broker,
    /// `None` where the environment names one.
    postgres: Option<PrivatePostgres>,
}

impl Stack {
    /// Starts what the environment does not name, both at once.
    pub fn start(folder: &Path, durable: bool) -> Result<Self> {
        Self::start_with(folder, durable, &[])
    }

    /// As [`Self::start`], with further settings of a private PostgreSQL.
    pub fn start_with(folder: &Path, durable: bool, settings: &[(&str, &str)]) -> Result<Self> {
        thread::scope(|scope| {
            let broker = scope.spawn(|| start_broker(&folder.join("kafka")));
            let postgres = start_postgres(&folder.join("postgres"), durable, settings);
            let broker = broker
                .join()
                .map_err(|_| anyhow!("the start of Kafka panicked"))?;
            Ok(Self {
                broker: broker?,
                postgres: postgres?,
            })
        })
    }

    /// Which Kafka it uses.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// The private PostgreSQL, where the environment names none.
    pub fn postgres(&self) -> Option<&PrivatePostgres> {
        self.postgres.as_ref()
    }

    /// Makes the topic of the orders; on a Kafka of the user's it has to be there already.
    pub fn create_topic(&self) -> Result<()> {
        match &self.broker {
            Broker::Private(kafka) => kafka.create_topic(&topic(), PARTITIONS),
            Broker::Given | Broker::Mock(_) => Ok(()),
        }
    }

    /// The variables that make the project's processes and tests use the private servers.
    pub fn env(&self) -> Vec<(String, String)> {
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

    /// Fails, with the end of its log, if a server has ended.
    pub fn check_running(&mut self) -> Result<()> {
        match &mut self.broker {
            Broker::Given => {}
            Broker::Private(kafka) => kafka.check_running()?,
            Broker::Mock(broker) => broker.check_running()?,
        }
        self.postgres
            .as_mut()
            .map_or(Ok(()), PrivatePostgres::check_running)
    }

    /// Stops both in order, Kafka first.
    pub fn stop(&mut self) -> Result<()> {
        let broker = match &mut self.broker {
            Broker::Given => Ok(()),
            Broker::Private(kafka) => kafka.stop(),
            Broker::Mock(broker) => broker.stop(),
        };
        let postgres = self.postgres.as_mut().map_or(Ok(()), PrivatePostgres::stop);
        broker.and(postgres)
    }
}

/// Installs what the private servers of this run and the build need.
pub fn install_packages() -> Result<()> {
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
        progress::step(&format!("Kafka: using KAFKA_BROKERS={brokers}"));
        return Ok(Broker::Given);
    }
    let start = Instant::now();
    if let Err(error) = Jars::fetch() {
        interrupt::check()?;
        progress::say(&format!(
            "\n{error:#}\n\n\
             *** Apache Kafka cannot be had. Falling back to librdkafka's in-process broker: it keeps nothing on disk,\n\
             *** has no console tools, and proves nothing about a real Kafka.\n"
        ));
        let broker = MockBroker::start(folder, &topic(), PARTITIONS)?;
        progress::step(&format!(
            "the in-process broker is up at {}",
            broker.bootstrap()
        ));
        return Ok(Broker::Mock(broker));
    }
    let kafka = PrivateKafka::start(Some(folder))?;
    progress::step(&format!(
        "Apache Kafka is up at {} ({:.1} s)",
        kafka.bootstrap(),
        start.elapsed().as_secs_f32()
    ));
    Ok(Broker::Private(kafka))
}

fn start_postgres(
    folder: &Path,
    durable: bool,
    settings: &[(&str, &str)],
) -> Result<Option<PrivatePostgres>> {
    if database_is_given() {
        progress::step("PostgreSQL: using the server that the DB_* variables name");
        return Ok(None);
    }
    let start = Instant::now();
    let postgres = PrivatePostgres::start(&postgres::Options {
        folder: Some(folder.to_owned()),
        durable,
        settings: settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        ..postgres::Options::default()
    })?;
    progress::step(&format!(
        "PostgreSQL is up at {}:{} ({:.1} s)",
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

/// The topic of the orders.
pub fn topic() -> String {
    variable("KAFKA_TOPIC").unwrap_or_else(|| DEFAULT_TOPIC.to_owned())
}

/// A variable of the environment that is set to something.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Renders variables as lines that a shell can `source`.
pub fn render_exports(variables: &[(String, String)]) -> String {
    variables
        .iter()
        .map(|(name, value)| format!("export {name}='{}'\n", value.replace('\'', r"'\''")))
        .collect()
}

/// The variables in a file that [`render_exports`] has rendered.
pub(crate) fn parse_exports(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.strip_prefix("export ")?.split_once('=')?;
            let value = value.strip_prefix('\'')?.strip_suffix('\'')?;
            Some((name.to_owned(), value.replace(r"'\''", "'")))
        })
        .collect()
}

/// `cargo xtask stack`: starts both servers, writes `.stack/dev.env`, and stays until a signal comes.
pub fn run() -> Result<()> {
    let mut folder = StackFolder::take("dev")?;
    install_packages()?;
    let outcome = run_in(folder.path());
    folder.remove_at_end_unless_failed(&outcome);
    outcome
}

fn run_in(folder: &Path) -> Result<()> {
    let mut stack = Stack::start(folder, false)?;
    stack.create_topic()?;
    let exports = render_exports(&stack.env());
    let file = env_file("dev");
    fs::write(&file, &exports).with_context(|| format!("cannot write {}", file.display()))?;
    progress::say(&format!(
        "\n{exports}\nThe same lines are in {}:\n    source .stack/dev.env && cargo test -p shared\n\
         Ctrl-C stops both servers; nothing is kept.",
        file.display()
    ));
    let ended = stay(&mut stack);
    fs::remove_file(&file).ok();
    stack.stop()?;
    ended
}

/// The file that names the servers of a running `demo` or `dev` stack.
pub fn env_file(name: &str) -> PathBuf {
    project::stack_folder().join(format!("{name}.env"))
}

fn stay(stack: &mut Stack) -> Result<()> {
    loop {
        stack.check_running()?;
        if interrupt::check().is_err() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(100));
    }
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
