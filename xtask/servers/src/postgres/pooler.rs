//! A private PgBouncer in front of a server. Many users have one there, and a listener does not work through it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::account::{Account, make_folder, remove_cluster_folder};
use crate::interrupt::wait_for;
use crate::process::{Launch, Process, find_system_program};
use crate::{ports, temporary};

const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client of PgBouncer keeps a session of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// As long as the client is connected.
    Session,
    /// For one transaction.
    Transaction,
    /// For one transaction. Then the session loses its settings.
    ForgetfulTransaction,
}

/// A running PgBouncer. Dropping it kills it.
#[derive(Debug)]
pub struct PrivatePooler {
    process: Option<Process>,
    wanted_folder: PathBuf,
    port: u16,
}

impl PrivatePooler {
    /// Starts it in front of all databases of a server, for one role.
    pub fn start(
        (host, port): (&str, u16),
        (user, password): (&str, &str),
        mode: PoolMode,
    ) -> Result<Self> {
        let account = Account::for_postgres()?;
        let wanted_folder = temporary::folder("pgbouncer");
        let folder = make_folder(&wanted_folder, account)?;
        let pooler_port = ports::free_port()?;
        let mode = match mode {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
            PoolMode::ForgetfulTransaction => "transaction\nserver_reset_query_always = 1",
        };
        // As in many set-ups, it drops the settings that a session asks for when it begins.
        let settings = format!(
            "[databases]\n* = host={host} port={port} user={user} password={password}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {pooler_port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = {mode}\nignore_startup_parameters = options,extra_float_digits\n"
        );
        let file = folder.join("pgbouncer.ini");
        fs::write(&file, settings).with_context(|| format!("cannot write {}", file.display()))?;
        if let Some(account) = account {
            account.own(&file)?;
        }
        let program = find_pgbouncer().context("pgbouncer is not installed")?;
        let mut process = Launch::new("PgBouncer", program)
            .arg(&file)
            .directory(&folder)
            .user(account.map(Account::ids))
            .log_to(folder.join("pgbouncer.log"))
            .spawn()?;
        wait_for("PgBouncer does not start", START_TIMEOUT, || {
            process.check_running()?;
            Ok(std::net::TcpStream::connect(("127.0.0.1", pooler_port)).ok())
        })?;
        Ok(Self {
            process: Some(process),
            wanted_folder,
            port: pooler_port,
        })
    }

    /// Returns the port on 127.0.0.1 that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for PrivatePooler {
    fn drop(&mut self) {
        drop(self.process.take());
        remove_cluster_folder(&self.wanted_folder).ok();
    }
}

/// Returns the path of PgBouncer.
pub fn find_pgbouncer() -> Option<PathBuf> {
    find_system_program("pgbouncer")
}
