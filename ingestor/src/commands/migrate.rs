//! `ingestor migrate`.

use shared::db;
use shared::shutdown::finish_in_time;
use tokio::task::spawn_blocking;

use crate::config::{APPLICATION_NAME, Settings};
use crate::database;

pub(super) async fn migrate(settings: Settings) -> anyhow::Result<()> {
    shared::telemetry::init(&settings.log)?;
    let shutdown = shared::shutdown::on_signal()?;
    let timeout = settings.shutdown.timeout();
    let settings = settings.database;
    if !db::wait_until_reachable(&settings, APPLICATION_NAME, &shutdown).await? {
        return Ok(());
    }
    let stopping = shutdown.clone();
    let work = move || database::bring_schema_up_to_date(&settings, true, &stopping);
    finish_in_time(spawn_blocking(work), &shutdown, timeout).await?
}
