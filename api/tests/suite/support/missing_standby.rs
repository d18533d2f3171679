//! A server whose COMMITs hang, because a standby that must confirm them is missing. A COMMIT with a notification holds a lock
//! of the server meanwhile, so every other one waits for it.

use std::sync::Arc;

use diesel::connection::SimpleConnection;
use servers::postgres::PrivatePostgres;
use shared::testing::{TestDatabase, eventually};
use tokio::task::{JoinHandle, block_in_place, spawn_blocking};

use super::PATIENCE;

/// The number of sessions of the api in the database.
const SESSIONS: &str = "SELECT count(*) AS value FROM pg_stat_activity \
                        WHERE datname = current_database() AND application_name LIKE 'orders-api%'";

/// The setting that makes COMMITs hang. Dropping it resets the setting.
pub struct MissingStandby(Arc<PrivatePostgres>);

impl MissingStandby {
    pub fn begin(server: &Arc<PrivatePostgres>) -> Self {
        let missing = Self(Arc::clone(server));
        missing.set("ALTER SYSTEM SET synchronous_standby_names = 'nosuch'");
        missing
    }

    fn set(&self, statement: &str) {
        let statements = [statement, "; SELECT pg_reload_conf()"].concat();
        block_in_place(|| self.0.psql_as_superuser(&statements)).unwrap();
    }
}

impl Drop for MissingStandby {
    fn drop(&mut self) {
        self.set("ALTER SYSTEM RESET synchronous_standby_names");
    }
}

/// Changes an order by hand, and waits until that hangs in its COMMIT.
pub async fn hang_in_commit(database: &Arc<TestDatabase>, uid: &str) -> JoinHandle<()> {
    let change = format!("UPDATE orders SET delivery_city = 'BY-HAND' WHERE order_uid = '{uid}'");
    let mut session = database.connect_foreign();
    let hanging = spawn_blocking(move || session.batch_execute(&change).unwrap());
    eventually("the change hangs", PATIENCE, async || {
        let waiting = "SELECT count(*) AS value FROM pg_stat_activity \
                       WHERE datname = current_database() AND wait_event = 'SyncRep'";
        database.integer(waiting) == 1
    })
    .await;
    hanging
}

pub fn sessions(database: &TestDatabase) -> i64 {
    database.integer(SESSIONS)
}
