//! The limit on file descriptors. Every connection needs one: those of clients, and those to PostgreSQL and Kafka.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// Raises the limit as far as the system allows. Shells start programs with a limit of 1024.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!("cannot raise the limit on file descriptors (ulimit -n): {error}");
    }
}

/// Returns how many file descriptors the process may have; `usize::MAX` if there is no limit.
pub fn limit() -> usize {
    in_files(getrlimit(Resource::Nofile).current)
}

/// Returns how many file descriptors the process may have after [`raise_limit`]; `usize::MAX` if there is no limit.
pub fn hard_limit() -> usize {
    in_files(getrlimit(Resource::Nofile).maximum)
}

fn in_files(limit: Option<u64>) -> usize {
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}
