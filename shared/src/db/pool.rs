//! The pool of asynchronous connections.

use std::time::Duration;

use anyhow::Context;
use diesel::ConnectionError;
use diesel::dsl::sql;
use diesel::sql_types::Bool;
use diesel_async::pooled_connection::deadpool::{Hook, HookError, Pool};
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod,
};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};

use super::{NOT_A_PRIMARY, describe, tls_connector, tokio_config};
use crate::config::DatabaseSettings;

/// The pool of asynchronous connections.
pub type AsyncPool = Pool<AsyncPgConnection>;

/// The bounds of a pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// The most connections.
    pub size: usize,
    /// The longest wait for a connection. It includes the time to open one.
    pub wait: Duration,
    /// The longest time that a statement may run. The server enforces it.
    pub statement_timeout: Duration,
}

/// Makes a pool. It connects when it is first used.
///
/// # Errors
/// Returns an error if the file of the CA cannot be used.
pub fn pool(
    settings: &DatabaseSettings,
    application_name: &'static str,
    limits: PoolLimits,
) -> anyhow::Result<AsyncPool> {
    let tls = tls_connector(settings)?;
    let config = tokio_config(settings, application_name);
    let mut manager_config = ManagerConfig::default();
    // No query before each use. A closed connection is noticed without one, and a connection that hangs would not answer
    // that query either.
    manager_config.recycling_method = RecyclingMethod::Fast;
    manager_config.custom_setup = Box::new(move |_url| {
        let (config, tls) = (config.clone(), tls.clone());
        Box::pin(async move {
            let (client, connection) = config
                .connect(tls)
                .await
                .map_err(|error| ConnectionError::BadConnection(describe(&error)))?;
            AsyncPgConnection::try_from_client_and_connection(client, connection).await
        })
    });
    // `custom_setup` does not use the URL.
    let manager = AsyncDieselConnectionManager::new_with_config(String::new(), manager_config);
    let set_timeout = format!(
        "SET statement_timeout = {}",
        limits.statement_timeout.as_millis()
    );
    Pool::builder(manager)
        .max_size(limits.size)
        .wait_timeout(Some(limits.wait))
        .create_timeout(Some(limits.wait))
        .recycle_timeout(Some(limits.wait))
        .runtime(deadpool::Runtime::Tokio1)
        .post_create(Hook::async_fn(
            move |connection: &mut AsyncPgConnection, _| {
                let set_timeout = set_timeout.clone();
                Box::pin(async move {
                    let refused =
                        |error: diesel::result::Error| HookError::message(error.to_string());
                    connection
                        .batch_execute(&set_timeout)
                        .await
                        .map_err(refused)?;
                    // A read-only primary may be read. The rows of a standby lag behind the events.
                    let query = diesel::select(sql::<Bool>("pg_is_in_recovery()"));
                    let is_standby: bool = diesel_async::RunQueryDsl::get_result(query, connection)
                        .await
                        .map_err(refused)?;
                    if is_standby {
                        return Err(HookError::message(NOT_A_PRIMARY));
                    }
                    Ok(())
                })
            },
        ))
        .build()
        .context("cannot set up the connection pool")
}
