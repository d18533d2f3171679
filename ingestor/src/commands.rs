//! What the command line can ask for.

mod confirm;
mod migrate;
mod offsets;
mod run;

use anyhow::bail;

use crate::config::{Cli, Command};

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
        None => bail!(
            "say what to do: `ingestor run`, `migrate` or `offsets`; `ingestor --help` tells more"
        ),
    }
}
