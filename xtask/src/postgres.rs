//! A private PostgreSQL cluster, made by the system's server binaries.
//!
//! It listens on 127.0.0.1 alone, has its data in a folder of its own and never touches a cluster of the system's.
//! PostgreSQL refuses to run as root; started by root it runs as the `postgres` user (see [`Account`]).

mod account;
mod binaries;
mod cluster;
mod pooler;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

pub use account::{Account, remove_cluster_folder as remove_folder};
pub use binaries::find_binaries;
pub(crate) use pooler::find_pgbouncer;
pub use pooler::{PoolMode, PrivatePooler};

use crate::interrupt::wait_for;
use crate::ports;
use crate::process::{Launch, Process, Signal, kill_tree};
use cluster::Cluster;

/// How long a start may take; recovery after a kill replays at most `max_wal_size`.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a fast shutdown may take before it becomes a kill.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How to start a cluster. The default one is temporary, not durable, without TLS, and holds `myapp_db`.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder for everything of this cluster, which is made anew; `None` is a temporary one, removed at the end.
    pub folder: Option<PathBuf>,
    /// The port; `None` is a free one.
    pub port: Option<u16>,
    /// Whether commits survive a crash of the machine. `false` (fsync off) survives `kill -9` all the same.
    pub durable: bool,
    /// The server's certificate and key; `None` leaves TLS off.
    pub tls: Option<TlsFiles>,
    /// Further settings, which win over ours: name and value as in `postgresql.conf`, without quotes.
    pub settings: Vec<(String, String)>,
    /// The role to make: it may log in and create databases, and is no superuser.
    pub user: String,
    /// Its password.
    pub password: String,
    /// The database to make, owned by the role.
    pub database: String,
}

/// A PEM certificate and its key; both are copied.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate, then its chain.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            folder: None,
            port: None,
            durable: false,
            tls: None,
            settings: Vec::new(),
            user: "myapp_user".to_owned(),
            password: "myapp_password".to_owned(),
            database: "myapp_db".to_owned(),
        }
    }
}

/// A running cluster; dropping it shuts it down at once, and removes its folder if that is temporary.
#[derive(Debug)]
pub struct PrivatePostgres {
    // Declared, and so dropped, before the cluster's folder.
    server: Option<Process>,
    cluster: Cluster,
    options: Options,
    port: u16,
}

impl PrivatePostgres {
    /// Makes a cluster and starts it.
    pub fn start(options: &Options) -> Result<Self> {
        let cluster = Cluster::create(options)?;
        let port = match options.port {
            Some(port) => port,
            None => ports::free_port()?,
        };
        let mut postgres = Self {
            server: None,
            cluster,
            options: options.clone(),
            port,
        };
        postgres.start_on_free_port()?;
        postgres.create_role_and_database()?;
        Ok(postgres)
    }

    /// Makes a standby that follows it: a cluster of its own, on a free port, with the same roles and databases.
    pub fn start_standby(&self) -> Result<Self> {
        let options = Options {
            folder: None,
            port: None,
            ..self.options.clone()
        };
        let mut standby = Self {
            server: None,
            cluster: Cluster::copy_of(&self.cluster, self.host(), self.port)?,
            options,
            port: ports::free_port()?,
        };
        standby.start_on_free_port()?;
        Ok(standby)
    }

    /// Starts a stopped standby on the port of a primary that is gone, as a failover moves an address.
    pub fn restart_in_place_of(&mut self, primary: &Self) -> Result<()> {
        self.port = primary.port;
        self.restart()
    }

    /// Makes a standby a primary.
    pub fn promote(&self) -> Result<()> {
        self.psql_as_superuser("SELECT pg_promote()").map(|_| ())
    }

    /// The host that it listens on.
    pub fn host(&self) -> &'static str {
        "127.0.0.1"
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The role that was made.
    pub fn user(&self) -> &str {
        &self.options.user
    }

    /// The role's password.
    pub fn password(&self) -> &str {
        &self.options.password
    }

    /// The database that was made.
    pub fn database(&self) -> &str {
        &self.options.database
    }

    /// The folder that holds data and log; not always the one asked for (see [`Account`]).
    pub fn folder(&self) -> &Path {
        self.cluster.folder()
    }

    /// The process id of the postmaster, whose children are all other processes of the server; while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Process::pid)
    }

    /// The server's log.
    pub fn log(&self) -> PathBuf {
        self.cluster.log()
    }

    /// The variables that make the project's processes and tests use it.
    pub fn env(&self) -> Vec<(String, String)> {
        [
            ("DB_HOST", self.host()),
            ("DB_PORT", &self.port.to_string()),
            ("DB_USER", self.user()),
            ("DB_PASSWORD", self.password()),
            ("DB_NAME", self.database()),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// Runs statements as the role in its database by `psql` and returns what they print, unaligned, without headers.
    pub fn psql(&self, statements: &str) -> Result<String> {
        self.run_psql(
            self.user(),
            self.password(),
            self.database(),
            &[],
            statements,
        )
    }

    /// As [`Self::psql`], as the superuser `postgres`.
    pub fn psql_as_superuser(&self, statements: &str) -> Result<String> {
        self.run_psql(
            cluster::SUPERUSER,
            self.cluster.superuser_password(),
            self.database(),
            &[],
            statements,
        )
    }

    /// Fails, with the end of the log, if the server has ended.
    pub fn check_running(&mut self) -> Result<()> {
        match &mut self.server {
            Some(server) => server.check_running(),
            None => bail!("PostgreSQL is stopped"),
        }
    }

    /// Stops it in order (a fast shutdown: sessions are ended, a checkpoint is written).
    pub fn stop(&mut self) -> Result<()> {
        match self.server.take() {
            Some(mut server) => server.stop(Signal::INT, STOP_TIMEOUT),
            None => Ok(()),
        }
    }

    /// Stops it at once (an immediate shutdown: sessions are dropped, the next start recovers from the log).
    pub fn stop_immediately(&mut self) -> Result<()> {
        match self.server.take() {
            Some(mut server) => server.stop(Signal::QUIT, STOP_TIMEOUT),
            None => Ok(()),
        }
    }

    /// Kills the postmaster and all its children by SIGKILL, as a crash would.
    pub fn kill_nine(&mut self) -> Result<()> {
        match self.server.take() {
            Some(server) => kill_tree(server.pid()),
            None => Ok(()),
        }
    }

    /// Starts it again, on the same data and port, after [`Self::stop`] or [`Self::kill_nine`]; a running one is stopped first.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.cluster.remove_lock_file();
        self.launch_server()
    }

    /// A free port may be taken between the look and the bind: then the next one is tried.
    fn start_on_free_port(&mut self) -> Result<()> {
        for _ in 0..5 {
            match self.launch_server() {
                Err(_) if self.options.port.is_none() && self.cluster.says_port_is_taken() => {
                    self.port = ports::free_port()?;
                }
                outcome => return outcome,
            }
        }
        self.launch_server()
    }

    fn launch_server(&mut self) -> Result<()> {
        let mut server = self.cluster.launch(self.port).spawn()?;
        let pid = server.pid();
        let started = wait_for("PostgreSQL does not start", START_TIMEOUT, || {
            server.check_running()?;
            Ok(self.cluster.is_ready(pid).then_some(()))
        });
        if let Err(error) = started {
            // Children included: a `Process` kills its own group only.
            kill_tree(pid).ok();
            return Err(error);
        }
        self.server = Some(server);
        Ok(())
    }

    fn create_role_and_database(&self) -> Result<()> {
        let variables = [
            ("role", self.user()),
            ("password", self.password()),
            ("database", self.database()),
        ];
        // psql quotes the variables; CREATEDB because each test makes a database of its own.
        self.run_psql(
            cluster::SUPERUSER,
            self.cluster.superuser_password(),
            "postgres",
            &variables,
            "CREATE ROLE :\"role\" LOGIN CREATEDB PASSWORD :'password';\n\
             CREATE DATABASE :\"database\" OWNER :\"role\";\n",
        )
        .context("cannot make the role and the database")?;
        Ok(())
    }

    fn run_psql(
        &self,
        user: &str,
        password: &str,
        database: &str,
        variables: &[(&str, &str)],
        statements: &str,
    ) -> Result<String> {
        let mut launch = Launch::new("psql", self.cluster.binary("psql"))
            .args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only"])
            .args(["--set", "ON_ERROR_STOP=1"])
            .args(["--host", self.host(), "--port", &self.port.to_string()])
            .args(["--username", user, "--dbname", database])
            .env("PGPASSWORD", password)
            .env("PGCONNECT_TIMEOUT", "10");
        for variable in ["PGSSLMODE", "PGOPTIONS", "PGSERVICE", "PGHOSTADDR"] {
            launch = launch.env_remove(variable);
        }
        for (name, value) in variables {
            launch = launch.args(["--set", &format!("{name}={value}")]);
        }
        launch.output_of(statements)
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // An immediate shutdown: as fast as a kill, and the postmaster still reaps its children.
            server.stop(Signal::QUIT, STOP_TIMEOUT).ok();
        }
    }
}
