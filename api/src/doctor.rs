//! `api doctor`: what the api needs of its machine, its settings and its database.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;

use shared::db::rights::Role;
use shared::doctor::postgres::{self, Needs};
use shared::doctor::{Check, Fault, Report, machine};

use crate::config::Config;
use crate::config::tokens::Tokens;

/// The connections besides those of the pool: the listener, the session that tests it, and four exports.
const MORE_CONNECTIONS: i64 = 6;
/// The files besides clients' connections and the pool: the operators' port, exports, and what the process has open anyway.
const MORE_FILES: usize = 128;
/// The memory besides the cached orders, in MiB: answers that clients have not read yet (96), exports, the feed, the program.
const MORE_MEMORY_MIB: u64 = 192;
/// The permission to write for the group and for others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

const CHECKS: [Check<Config>; 5] = [
    ("machine.open_files", open_files),
    ("machine.memory", memory),
    ("api.tokens", tokens),
    ("api.tokens_file_mode", tokens_file_mode),
    ("api.access", access),
];

/// Checks everything, and prints what it finds.
///
/// # Errors
/// Returns one line if something must be mended.
pub async fn doctor(config: &Config, as_json: bool) -> anyhow::Result<()> {
    let mut report = Report::new("api", env!("CARGO_PKG_VERSION"));
    report.run(&CHECKS, config);
    for (check, address, setting) in [
        ("machine.server_port", &config.address, "SERVER_PORT"),
        ("machine.ops_port", &config.ops_address, "OPS_PORT"),
    ] {
        report.note(check, machine::port(address, setting).await);
    }
    let pool = i64::try_from(config.pool.size).unwrap_or(i64::MAX);
    let needs = Needs {
        role: Role::Api,
        connections: pool.saturating_add(MORE_CONNECTIONS),
        connections_are: "DB_POOL_SIZE, the listener and exports",
    };
    postgres::examine(&mut report, &config.database, needs).await;
    report.print(as_json)
}

fn open_files(config: &Config) -> Option<Fault> {
    let needed = config.server.max_connections + config.pool.size + MORE_FILES;
    machine::open_files(
        needed,
        "SERVER_MAX_CONNECTIONS, DB_POOL_SIZE, and others",
        ", or lower SERVER_MAX_CONNECTIONS",
    )
}

fn memory(config: &Config) -> Option<Fault> {
    let mib = u64::try_from(config.cache.capacity_mb).unwrap_or(u64::MAX);
    let needed = mib
        .saturating_add(MORE_MEMORY_MIB)
        .saturating_mul(1024 * 1024);
    machine::memory(needed, "CACHE_CAPACITY_MB")
}

fn tokens(config: &Config) -> Option<Fault> {
    let loaded = Tokens::load(config.api_token.as_ref(), config.api_tokens_file.as_deref());
    let error = loaded.err()?;
    Some(Fault::error(
        format!("{error:#}"),
        "the api does not start, and a running one keeps the former tokens",
        "correct it; `api token new NAME SCOPES` makes a line of the file",
    ))
}

fn tokens_file_mode(config: &Config) -> Option<Fault> {
    let path = config.api_tokens_file.as_ref()?;
    // A file that cannot be read is what another check finds.
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    (mode & WRITABLE_BY_OTHERS != 0).then(|| {
        Fault::warning(
            format!(
                "API_TOKENS_FILE: others may write to {} (mode {:04o})",
                path.display(),
                mode & 0o7777
            ),
            "whoever can write to it can make tokens",
            format!("chmod go-w {}", path.display()),
        )
    })
}

/// Without tokens, only people at the machine are served, unless the settings say otherwise.
fn access(config: &Config) -> Option<Fault> {
    let has_tokens = config.api_token.is_some() || config.api_tokens_file.is_some();
    let host = config.address.0.as_str();
    let is_loopback = host == "localhost"
        || host
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback());
    if has_tokens || is_loopback || config.allow_unauthenticated_reads {
        return None;
    }
    Some(Fault::warning(
        format!("SERVER_HOST is {host}, and there are no tokens"),
        "every read and write is refused with 403",
        "set API_TOKENS_FILE, or SERVER_HOST=127.0.0.1; see docs/OPERATIONS.md#tokens",
    ))
}
