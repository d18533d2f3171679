//! `ingestor new-history`.

use super::operator_connection;
use crate::config::Settings;
use crate::history;

pub(super) async fn new_history(settings: Settings) -> anyhow::Result<()> {
    super::with_operator_checks(settings, |settings| {
        let mut connection = operator_connection(settings)?;
        println!("new history: {}", history::make_anew(&mut connection)?);
        Ok(())
    })
    .await
}
