//! `ingestor migrate`, and the same at the start of `ingestor run`.

use anyhow::{Context, bail};
use shared::config::DatabaseSettings;
use shared::db;
use tracing::info;

use crate::APPLICATION_NAME;
use crate::config::Settings;

/// Whose schema, and whether it may be changed.
#[derive(Clone, Debug)]
pub struct MigrateConfig {
    /// How to reach PostgreSQL.
    pub database: DatabaseSettings,
    /// `false`: pending migrations are an error.
    pub allowed: bool,
}

pub(super) async fn migrate(settings: Settings) -> anyhow::Result<()> {
    shared::telemetry::init(&settings.log)?;
    let shutdown = shared::shutdown::on_signal()?;
    if !db::wait_until_reachable(&settings.database, APPLICATION_NAME, &shutdown).await? {
        return Ok(());
    }
    let config = MigrateConfig {
        database: settings.database,
        allowed: true,
    };
    tokio::task::spawn_blocking(move || bring_schema_up_to_date(&config))
        .await
        .context("the migration panicked")?
}

/// Runs what is pending, or refuses.
///
/// # Errors
/// Fails where the database refuses, or where migrations are pending and not allowed.
pub fn bring_schema_up_to_date(config: &MigrateConfig) -> anyhow::Result<()> {
    let mut connection = db::connect_blocking(&config.database, APPLICATION_NAME)
        .context("cannot connect for the migrations")?;
    if config.allowed {
        let applied = db::migrate(&mut connection)?;
        info!(applied = ?applied, "schema is up to date");
        return Ok(());
    }
    let pending = db::pending_migrations(&mut connection)?;
    if !pending.is_empty() {
        bail!(
            "migrations are pending ({}): run `ingestor migrate`, or leave out --no-migrate",
            pending.join(", ")
        );
    }
    Ok(())
}
