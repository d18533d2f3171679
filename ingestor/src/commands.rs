//! What the command line can ask for.

mod confirm;
mod dead_letters;
mod migrate;
mod offsets;
mod run;

use anyhow::{Context, bail};
use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use shared::db;

use crate::APPLICATION_NAME;
use crate::config::{Cli, Command, Settings};

pub use migrate::{MigrateConfig, bring_schema_up_to_date};

/// Does what the command line asks for.
///
/// # Errors
/// Fails with one line for a person.
pub async fn execute(mut cli: Cli) -> anyhow::Result<()> {
    let (command, check_config) = (cli.command.take(), cli.check_config);
    let settings = cli.settings()?;
    if check_config {
        // Both are checked where they are used: a name that librdkafka does not know, a CA's file that is not PEM.
        crate::consumer::Clients::new(&settings.kafka, settings.memory)?;
        shared::db::tls_connector(&settings.database)?;
        print!("{}", shared::config::to_lines(&settings.shown()));
        return Ok(());
    }
    match command {
        Some(Command::Run { no_migrate }) => run::run(settings, !no_migrate).await,
        Some(Command::Migrate) => migrate::migrate(settings).await,
        Some(Command::Offsets(command)) => offsets::offsets(settings, command).await,
        Some(Command::DeadLetters(command)) => dead_letters::dead_letters(settings, command).await,
        None => bail!(
            "say what to do: `ingestor run`, `migrate`, `offsets` or `dead-letters`; `ingestor --help` tells more"
        ),
    }
}

/// Runs an operator's command on a thread that may wait, once the database has let us in.
async fn with_operator_checks<F>(settings: Settings, execute: F) -> anyhow::Result<()>
where
    F: FnOnce(&Settings) -> anyhow::Result<()> + Send + 'static,
{
    shared::telemetry::init(&settings.log)?;
    // Gives a clear line where the database refuses or is away.
    db::check(&settings.database, APPLICATION_NAME).await?;
    tokio::task::spawn_blocking(move || execute(&settings))
        .await
        .context("the command panicked")?
}

/// A connection for an operator's command; refuses a schema that is not up to date.
fn operator_connection(settings: &Settings) -> anyhow::Result<PgConnection> {
    /// No statement of a command takes seconds.
    const STATEMENT_TIMEOUT: &str = "SET statement_timeout = '30s'";

    let mut connection = db::connect_blocking(&settings.database, APPLICATION_NAME)
        .context("cannot connect to the database")?;
    connection.batch_execute(STATEMENT_TIMEOUT)?;
    let pending = db::pending_migrations(&mut connection)?;
    if !pending.is_empty() {
        bail!(
            "migrations are pending ({}): run `ingestor migrate`",
            pending.join(", ")
        );
    }
    Ok(connection)
}
