//! What PostgreSQL must be and have. It is asked at the address that is configured, so that what stands between is checked, too.

mod checks;
mod facts;

pub use checks::CHECKS;
pub use facts::{Facts, Needs};

use super::Report;
use crate::config::DatabaseSettings;

/// Looks at the database, and runs all checks on it.
pub async fn examine(report: &mut Report, settings: &DatabaseSettings, needs: Needs) {
    match facts::look(settings, needs).await {
        Ok(facts) => {
            report.note("postgres.reachable", None);
            report.run(&CHECKS, &facts);
        }
        Err(fault) => {
            report.note("postgres.reachable", Some(fault));
            report.skip(&CHECKS, "the database was not reached");
        }
    }
}
