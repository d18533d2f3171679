//! The first connection to the database. A fault that only a person can mend ends the process. For others it waits.

use std::time::Duration;

use tokio_postgres::SimpleQueryMessage;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{NOT_A_PRIMARY, describe, tls_connector, tokio_config};
use crate::backoff::Backoff;
use crate::config::DatabaseSettings;
use crate::throttle::Throttle;

/// How long the server may take. `connect_timeout` covers only the socket, and a frozen server still accepts connections.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the database cannot be used now.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// Somebody must change the settings or the server: wrong password, no such database, wrong CA.
    #[error("{0}")]
    Fatal(String),
    /// It may pass by itself: nobody answers, or the server is starting.
    #[error("{0}")]
    Unreachable(String),
}

/// Connects once, and checks that the server is a primary and that the database is in UTF-8.
///
/// # Errors
/// Returns [`StartupError`], which says whether waiting may help.
pub async fn check(
    settings: &DatabaseSettings,
    application_name: &str,
) -> Result<(), StartupError> {
    let hangs = |_| {
        StartupError::Unreachable(format!(
            "database {} at {}:{}: no answer within {ANSWER_TIMEOUT:?}",
            settings.name, settings.host, settings.port
        ))
    };
    let checking = check_for_ever(settings, application_name);
    tokio::time::timeout(ANSWER_TIMEOUT, checking)
        .await
        .map_err(hangs)?
}

async fn check_for_ever(
    settings: &DatabaseSettings,
    application_name: &str,
) -> Result<(), StartupError> {
    let tls = tls_connector(settings).map_err(|error| StartupError::Fatal(format!("{error:#}")))?;
    let at = format!(
        "database {} at {}:{}",
        settings.name, settings.host, settings.port
    );
    let classify = |error: &tokio_postgres::Error| {
        let message = format!("{at}: {}", describe(error));
        if needs_a_person(error) {
            StartupError::Fatal(message)
        } else {
            StartupError::Unreachable(message)
        }
    };
    let (client, connection) = tokio_config(settings, application_name)
        .connect(tls)
        .await
        .map_err(|error| classify(&error))?;
    let connection = tokio::spawn(connection);
    let look = "SELECT pg_is_in_recovery(), current_setting('server_encoding')";
    let answer = client.simple_query(look).await;
    drop(client);
    connection.await.ok();
    let messages = answer.map_err(|error| classify(&error))?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((row.get(0)?, row.get(1)?)),
        _ => None,
    });
    match row {
        Some(("f", "UTF8")) => Ok(()),
        // A standby may be promoted.
        Some(("t", "UTF8")) => Err(StartupError::Unreachable(format!("{at}: {NOT_A_PRIMARY}"))),
        Some((_, encoding)) => Err(StartupError::Fatal(format!(
            "{at}: the database has the encoding {encoding}, which cannot hold every order: create one with ENCODING 'UTF8' \
             TEMPLATE template0, and name it in DB_NAME"
        ))),
        None => Err(StartupError::Unreachable(format!(
            "{at}: the server gave no row"
        ))),
    }
}

/// Waits until the database can be used, and reports from time to time that it waits.
///
/// Returns `false` if `shutdown` was cancelled first.
///
/// # Errors
/// Returns an error of one line if only a person can help.
pub async fn wait_until_reachable(
    settings: &DatabaseSettings,
    application_name: &str,
    shutdown: &CancellationToken,
) -> anyhow::Result<bool> {
    let mut backoff = Backoff::for_database();
    let mut reports = Throttle::for_reports();
    loop {
        let checked = tokio::select! {
            () = shutdown.cancelled() => return Ok(false),
            checked = check(settings, application_name) => checked,
        };
        match checked {
            Ok(()) => {
                if reports.has_reported() {
                    info!("database is reachable");
                }
                return Ok(!shutdown.is_cancelled());
            }
            Err(StartupError::Fatal(message)) => anyhow::bail!(message),
            Err(StartupError::Unreachable(message)) => {
                if reports.is_due() {
                    warn!("waiting for the database: {message}");
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(false),
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
}

/// Returns true for the SQLSTATE classes 28 (authorisation), 3D (no such database) and 42 (access rule, syntax), and if
/// we refused the server's certificate.
fn needs_a_person(error: &tokio_postgres::Error) -> bool {
    if let Some(code) = error.code() {
        return ["28", "3D", "42"]
            .iter()
            .any(|class| code.code().starts_with(class));
    }
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.into_iter().any(is_certificate_or_tls_refusal)
}

fn is_certificate_or_tls_refusal(cause: &(dyn std::error::Error + 'static)) -> bool {
    let inner = cause
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref);
    let rustls_error = cause
        .downcast_ref::<rustls::Error>()
        .or_else(|| inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()));
    matches!(rustls_error, Some(rustls::Error::InvalidCertificate(_)))
        // tokio-postgres has no type for a server without TLS.
        || cause.to_string() == "server does not support TLS"
}
