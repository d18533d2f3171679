//! What the command line can ask for.

mod migrate;
mod run;

use anyhow::bail;

use crate::config::{Cli, Command};

pub use migrate::{MigrateConfig, bring_schema_up_to_date};

/// Does what the command line asks for.
///
/// # Errors
/// Fails with one line for a person.
pub async fn execute(cli: Cli) -> anyhow::Result<()> {
    let (command, check_config) = (cli.command, cli.check_config);
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
        None => bail!(
            "say what to do: `ingestor run` or `ingestor migrate`; `ingestor --help` tells more"
        ),
    }
}
