//! The programs under measurement, and the programs that put load on them.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use servers::interrupt;
use servers::process::{Launch, Process};
use shared::config::DatabaseSettings;
use shared::testing::{TestDatabase, integer, variables_of};

use super::connection::Connection;
use super::topic::Topic;

/// How many partitions are claimed. The mark keeps the query out of the statements that [`super::ingest`] counts.
pub(super) const CLAIMED: &str =
    "SELECT /* by the benchmark */ count(*) AS value FROM consumer_offsets WHERE epoch > 0";
/// How long anything may take that is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

/// Prepares a program under measurement.
pub(super) fn service(program: &str) -> Launch {
    let name = Path::new(program).file_name().unwrap_or_default();
    // The spans of requests are on, as they are by default, because they cost time. Their lines would be among the figures.
    Launch::new(name.to_string_lossy(), program).env("RUST_LOG", "warn,api::http::envelope=info")
}

/// Prepares an api that answers on a port of loopback.
pub(super) fn api(program: &str, database: &DatabaseSettings, port: u16) -> Launch {
    service(program)
        .envs(&variables_of(database))
        .env("SERVER_PORT", port.to_string())
        .env("OPS_PORT", "0")
}

/// Prepares an ingestor that reads a topic.
pub(super) fn ingestor(
    program: &str,
    database: &DatabaseSettings,
    brokers: &str,
    topic: &str,
) -> Launch {
    service(program)
        .arg("run")
        .envs(&variables_of(database))
        .env("KAFKA_BROKERS", brokers)
        .env("KAFKA_TOPIC", topic)
        .env("KAFKA_GROUP_ID", &database.name)
        .env("INGESTOR_PORT", "0")
}

/// The programs that work together.
#[derive(Args, Debug)]
pub(super) struct Programs {
    /// Path of the ingestor
    #[arg(long)]
    pub(super) ingestor: String,
    /// Path of the api
    #[arg(long)]
    api: String,
}

impl Programs {
    /// Starts an api on each port, and the ingestor. Returns when all are ready and every partition is claimed.
    pub(super) fn start(
        &self,
        database: &TestDatabase,
        brokers: &str,
        topic: &Topic,
        partitions: i32,
        ports: &[u16],
    ) -> anyhow::Result<Vec<Process>> {
        let settings = database.settings();
        let mut services = Vec::new();
        for port in ports {
            let mut api = api(&self.api, &settings, *port).spawn()?;
            wait_for(&mut api, "the api is not ready", || Ok(is_ready(*port)))?;
            services.push(api);
        }
        let mut ingestor = ingestor(&self.ingestor, &settings, brokers, &topic.name).spawn()?;
        let mut connection = database.connect();
        wait_for(
            &mut ingestor,
            "the ingestor does not claim every partition",
            || Ok(integer(&mut connection, CLAIMED)? >= partitions.into()),
        )?;
        services.push(ingestor);
        Ok(services)
    }
}

/// At first nobody listens there.
fn is_ready(port: u16) -> bool {
    let answer = Connection::open(port).and_then(|mut connection| {
        let status = connection.get("/readyz")?.status;
        anyhow::Ok(status)
    });
    answer.is_ok_and(|status| status == 200)
}

/// Waits for a condition.
///
/// # Errors
/// Fails at once if the service has ended, and with an error that begins with `problem` if the condition does not hold in
/// time.
pub(super) fn wait_for(
    service: &mut Process,
    problem: &str,
    mut condition: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    interrupt::wait_for(problem, PATIENCE, || {
        service.check_running()?;
        Ok(condition()?.then_some(()))
    })
}

/// Prepares a load generator, in its own session.
///
/// Linux first shares the cores between sessions (autogroup), like a service manager between services, and then between
/// threads. In one session with a server of two busy threads, a generator with one thread would get a third of two cores.
/// Then the benchmark would measure the generator.
pub(super) fn generator(program: &str) -> Launch {
    Launch::new(program, "setsid").args(["--wait", program])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_that_is_missing_is_named() {
        let error = generator("no-such-generator").output_of("").unwrap_err();
        assert!(
            error.to_string().contains("execute no-such-generator"),
            "{error}"
        );
    }
}
