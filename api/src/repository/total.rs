//! How many orders match a filter: counted, or estimated by the planner.

use diesel::dsl::count_star;
use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use serde::{Deserialize, Serialize};
use shared::db::schema::orders;
use tracing::error;

use super::explain::Explain;
use super::filter::{OrderFilter, filtered, prepare_for};
use super::{Repository, StoreError};

/// How a total came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TotalKind {
    /// Estimated from the statistics of the database. It costs as much as planning a query.
    Estimated,
    /// Counted. It costs more the more orders match.
    Exact,
}

/// The part of a plan that says how many rows are expected.
#[derive(Deserialize)]
struct Explained {
    #[serde(rename = "Plan")]
    plan: Plan,
}

#[derive(Deserialize)]
struct Plan {
    #[serde(rename = "Plan Rows")]
    rows: u64,
}

impl Repository {
    /// Counts the orders that match.
    ///
    /// # Errors
    /// Returns `Timeout` if that takes longer than a statement may, and another [`StoreError`] if the database gave no answer.
    pub async fn count(&self, filter: &OrderFilter) -> Result<u64, StoreError> {
        let query = filtered(filter).select(count_star());
        let count = async |connection: &mut AsyncPgConnection| {
            prepare_for(filter, connection).await?;
            query.get_result::<i64>(connection).await
        };
        let count = self
            .run(async |connection| connection.transaction(count).await)
            .await?;
        Ok(count.unsigned_abs())
    }

    /// Estimates how many orders match. The statistics are those of the last ANALYZE, applied to the present size of the table.
    ///
    /// # Errors
    /// Returns a [`StoreError`] if the database gave no answer.
    pub async fn estimate(&self, filter: &OrderFilter) -> Result<u64, StoreError> {
        let query = Explain {
            options: "FORMAT JSON",
            query: filtered(filter).select(orders::order_uid),
        };
        let text: String = self
            .run(async |connection| query.get_result(connection).await)
            .await?;
        let [explained]: [Explained; 1] = serde_json::from_str(&text).map_err(|error| {
            error!("the plan of a query cannot be read: {error}");
            StoreError::Internal
        })?;
        Ok(explained.plan.rows)
    }
}
