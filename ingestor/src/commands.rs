//! What the command line can ask for.

mod check;
mod confirm;
mod dead_letters;
mod erase;
mod import;
mod migrate;
mod new_history;
mod offsets;
mod orders_file;
mod purge;
mod run;

use anyhow::{Context, bail};
use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use shared::db;

use crate::config::{APPLICATION_NAME, Cli, Command, Settings};
use crate::database;
use crate::doctor::doctor;
use crate::kafka::Clients;

/// Does what the command line asks for.
///
/// # Errors
/// Returns one line for the user if that is not possible.
pub async fn execute(mut cli: Cli) -> anyhow::Result<()> {
    match cli.command.take() {
        // These have their own settings, and work while others are wrong.
        Some(Command::Livez(address)) => {
            let (host, port) = address.resolve()?;
            shared::commands::livez(&host, port).await
        }
        Some(Command::Completions { shell }) => shared::commands::completions::<Cli>(shell),
        _ if cli.check_config => check_config(&cli.settings()?),
        Some(Command::Doctor { json, longest_stop }) => {
            doctor(cli.settings()?, longest_stop, json).await
        }
        Some(Command::Run { no_migrate }) => run::run(cli.settings()?, !no_migrate).await,
        Some(Command::Migrate) => migrate::migrate(cli.settings()?).await,
        Some(Command::NewHistory) => new_history::new_history(cli.settings()?).await,
        Some(Command::Check { file }) => check::check(cli.settings()?.decoder, &file),
        Some(Command::Import(arguments)) => import::import(cli.settings()?, arguments).await,
        Some(Command::Offsets(command)) => offsets::offsets(cli.settings()?, command).await,
        Some(Command::DeadLetters(command)) => {
            dead_letters::dead_letters(cli.settings()?, command).await
        }
        Some(Command::Erase(arguments)) => erase::erase(cli.settings()?, arguments).await,
        Some(Command::Purge(arguments)) => purge::purge(cli.settings()?, arguments).await,
        None => bail!(
            "say what to do: `ingestor run`, `migrate`, `doctor`, `new-history`, `check`, `import`, `offsets`, `dead-letters`, \
             `erase` or `purge`; see `ingestor --help`"
        ),
    }
}

fn check_config(settings: &Settings) -> anyhow::Result<()> {
    // These find a setting that librdkafka does not know, and a CA's file that is not PEM.
    Clients::new(&settings.kafka, settings.memory)?;
    db::tls_connector(&settings.database)?;
    shared::traces::check_files(&settings.traces)?;
    print!("{}", shared::config::to_lines(&settings.shown()));
    Ok(())
}

/// Runs an operator's command on a thread that may block, once the database has accepted a connection.
async fn with_operator_checks<F>(settings: Settings, execute: F) -> anyhow::Result<()>
where
    F: FnOnce(&Settings) -> anyhow::Result<()> + Send + 'static,
{
    shared::telemetry::init(&settings.log)?;
    // Returns a clear line if the database refuses the connection or cannot be reached.
    db::check(&settings.database, APPLICATION_NAME).await?;
    tokio::task::spawn_blocking(move || execute(&settings))
        .await
        .context("the command panicked")?
}

/// Connects for an operator's command. Returns an error if the schema is not up to date.
fn operator_connection(settings: &Settings) -> anyhow::Result<PgConnection> {
    /// No statement of a command takes seconds.
    const STATEMENT_TIMEOUT: &str = "SET statement_timeout = '30s'";

    let mut connection = db::connect_blocking(&settings.database, APPLICATION_NAME)
        .context("cannot connect to the database")?;
    connection.batch_execute(STATEMENT_TIMEOUT)?;
    database::check_schema(&mut connection, "run `ingestor migrate`")?;
    Ok(connection)
}
