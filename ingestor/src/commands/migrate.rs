//! `ingestor migrate`.

use anyhow::Context;
use shared::db;

use crate::config::{APPLICATION_NAME, Settings};
use crate::database;

pub(super) async fn migrate(settings: Settings) -> anyhow::Result<()> {
    shared::telemetry::init(&settings.log)?;
    let shutdown = shared::shutdown::on_signal()?;
    let settings = settings.database;
    if !db::wait_until_reachable(&settings, APPLICATION_NAME, &shutdown).await? {
        return Ok(());
    }
    let work = move || database::bring_schema_up_to_date(&settings, true, &shutdown);
    tokio::task::spawn_blocking(work)
        .await
        .context("the migration panicked")?
}
