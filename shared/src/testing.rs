//! Helpers for tests: a database per test, orders to send, a collector of traces, and a proxy that cuts connections. They fail
//! by panicking.

#![expect(clippy::unwrap_used, reason = "test helpers fail by panicking")]

mod collector;
mod database;
mod notifications;
mod orders;
mod proxy;

pub use collector::{Manner, ReceivedSpan, TestCollector};
pub use database::{
    TestDatabase, database_settings_from_environment, integer, run_roles_file, settings_of, text,
    variables_of,
};
pub use notifications::Notifications;
pub use orders::{InvalidKind, OrderGenerator, model_json};
pub use proxy::TcpProxy;

use std::fmt::Display;
use std::time::{Duration, Instant};

use clap::Parser;

/// Reads a command line without any environment, so that a test does not depend on its own.
///
/// # Errors
/// Returns the line that the program would print.
pub fn parse_arguments<T: Parser>(arguments: &[&str]) -> anyhow::Result<T> {
    let command = T::command().mut_args(|argument| argument.env(clap::builder::Resettable::Reset));
    let matches = command.try_get_matches_from([&["program"], arguments].concat());
    let parsed = matches.and_then(|mut matches| T::from_arg_matches_mut(&mut matches));
    parsed.map_err(|error| anyhow::anyhow!(crate::config::one_line(&error)))
}

/// Waits until a condition holds.
///
/// # Panics
/// Panics with the description if the condition does not hold in time.
pub fn wait_until(description: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(timeout, || condition().then_some(()).ok_or(description));
}

/// Waits until there is a value. The error of `probe` says what is missing.
///
/// # Panics
/// Panics with the last error if there is no value in time.
pub fn wait_for<T, E: Display>(timeout: Duration, mut probe: impl FnMut() -> Result<T, E>) -> T {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(error) if start.elapsed() >= timeout => {
                panic!("not within {timeout:?}: {error}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Waits until an asynchronous condition holds.
///
/// # Panics
/// Panics with the description if the condition does not hold in time.
pub async fn eventually(
    description: &str,
    timeout: Duration,
    mut condition: impl AsyncFnMut() -> bool,
) {
    let start = Instant::now();
    while !condition().await {
        assert!(
            start.elapsed() < timeout,
            "not within {timeout:?}: {description}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
