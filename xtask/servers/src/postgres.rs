//! A private PostgreSQL cluster, made with the system's server binaries, or with those that `POSTGRES_BIN` names.
//!
//! It listens only on 127.0.0.1, has its data in its own folder and never touches a cluster of the system. PostgreSQL refuses
//! to run as root. If root starts it, it runs as the user `postgres` (see [`Account`]).

mod account;
mod binaries;
mod cluster;
mod pooler;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

pub use account::{Account, remove_cluster_folder as remove_folder};
pub use binaries::{chosen_binaries, find_binaries, find_client};
pub use pooler::{PoolMode, PrivatePooler, find_pgbouncer};

use crate::interrupt::wait_for;
use crate::process::{Launch, Process};
use crate::signals::{Signal, kill_tree};
use crate::{ports, project};
use cluster::Cluster;

/// How long a start may take. After a kill it replays at most `max_wal_size` of the log.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a shutdown may take. Then the server is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The role that is created. It is a superuser, as in the containers: tests make databases and roles, and look at everything. The
/// programs get roles with fewer rights.
const USER: &str = "myapp_user";
/// The database that is created. The role owns it.
const DATABASE: &str = "myapp_db";

/// How to start a cluster. The default cluster is temporary, not durable, and has no TLS.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder for everything of this cluster, which is emptied first; `None` is a temporary one, removed at the end.
    pub folder: Option<PathBuf>,
    /// Whether commits survive a crash of the machine. Even with `false` (fsync off) they survive `kill -9`.
    pub is_durable: bool,
    /// The server's certificate and key; without them TLS is off.
    pub tls: Option<TlsFiles>,
    /// More settings, which override ours: name and value as in `postgresql.conf`, without quotes.
    pub settings: Vec<(&'static str, &'static str)>,
    /// The password of the role.
    pub password: String,
}

/// A PEM certificate and its key. Both files are copied.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate, followed by its chain.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            folder: None,
            is_durable: false,
            tls: None,
            settings: Vec::new(),
            password: "myapp_password".to_owned(),
        }
    }
}

/// A running cluster. Dropping it shuts it down at once, and removes its folder if that is temporary.
#[derive(Debug)]
pub struct PrivatePostgres {
    server: Option<Process>,
    cluster: Cluster,
    password: String,
    port: u16,
}

impl PrivatePostgres {
    /// Creates a cluster and starts it.
    pub fn start(options: &Options) -> Result<Self> {
        let mut postgres = Self {
            server: None,
            cluster: Cluster::create(options)?,
            password: options.password.clone(),
            port: ports::free_port()?,
        };
        postgres.start_on_free_port()?;
        postgres.create_role_and_database()?;
        Ok(postgres)
    }

    /// Starts a standby that follows it: another cluster, on a free port, with the same roles and databases.
    pub fn start_standby(&self) -> Result<Self> {
        let mut standby = Self {
            server: None,
            cluster: Cluster::copy_of(&self.cluster, self.host(), self.port)?,
            password: self.password.clone(),
            port: ports::free_port()?,
        };
        standby.start_on_free_port()?;
        Ok(standby)
    }

    /// Starts a standby on the port of a primary that is gone, as a failover moves an address. It is stopped first if it runs.
    pub fn restart_in_place_of(&mut self, primary: &Self) -> Result<()> {
        self.port = primary.port;
        self.restart()
    }

    /// Promotes a standby to primary.
    pub fn promote(&self) -> Result<()> {
        self.psql_as_superuser("SELECT pg_promote()").map(|_| ())
    }

    /// Returns the host that it listens on.
    pub fn host(&self) -> &'static str {
        "127.0.0.1"
    }

    /// Returns the port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the role that was created.
    pub fn user(&self) -> &'static str {
        USER
    }

    /// Returns the role's password.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Returns the database that was created.
    pub fn database(&self) -> &'static str {
        DATABASE
    }

    /// Returns the folder of data and log. It may be another one than was asked for (see [`Account`]).
    pub fn folder(&self) -> &Path {
        self.cluster.folder()
    }

    /// Returns the process id of the postmaster, the parent of all other processes of the server; `None` if it does not run.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Process::pid)
    }

    /// Returns the version of the server, such as 15.18.
    pub fn version(&self) -> Result<String> {
        // Debian adds its own version after a space.
        let version = self.psql("SHOW server_version")?;
        let number = version.split_whitespace().next();
        Ok(number.unwrap_or_default().to_owned())
    }

    /// Returns the environment variables that make the project's processes and tests use it.
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

    /// Makes the roles of the programs in the database that was created, as operators do. Their password is that of the role.
    pub fn create_service_roles(&self) -> Result<()> {
        let file = project::root().join("deploy/postgres/roles.sql");
        let statements = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let password = self.password();
        let passwords = [
            ("migrator_password", password),
            ("ingestor_password", password),
            ("api_password", password),
            ("reader_password", password),
        ];
        self.run_psql(
            self.user(),
            password,
            self.database(),
            &passwords,
            &statements,
        )
        .context("cannot create the roles of the programs")
        .map(drop)
    }

    /// Runs statements with `psql` as the role, and returns what they print, unaligned and without headers.
    pub fn psql(&self, statements: &str) -> Result<String> {
        self.run_psql(
            self.user(),
            self.password(),
            self.database(),
            &[],
            statements,
        )
    }

    /// Does the same as the superuser `postgres`.
    pub fn psql_as_superuser(&self, statements: &str) -> Result<String> {
        self.run_psql(
            cluster::SUPERUSER,
            self.cluster.superuser_password(),
            self.database(),
            &[],
            statements,
        )
    }

    /// Checks that the server runs.
    ///
    /// # Errors
    /// Fails, with the end of the log, if it has ended or is stopped.
    pub fn check_running(&mut self) -> Result<()> {
        match &mut self.server {
            Some(server) => server.check_running(),
            None => bail!("PostgreSQL is stopped"),
        }
    }

    /// Stops it in good order (a fast shutdown: it ends sessions and writes a checkpoint).
    pub fn stop(&mut self) -> Result<()> {
        self.stop_by(Signal::INT)
    }

    /// Stops it at once (an immediate shutdown: it drops sessions, and the next start recovers from the log).
    pub fn stop_immediately(&mut self) -> Result<()> {
        self.stop_by(Signal::QUIT)
    }

    fn stop_by(&mut self, signal: Signal) -> Result<()> {
        match self.server.take() {
            Some(mut server) => server.stop(signal, STOP_TIMEOUT),
            None => Ok(()),
        }
    }

    /// Kills the postmaster and all its children by SIGKILL, like a crash.
    pub fn kill_nine(&mut self) -> Result<()> {
        match self.server.take() {
            Some(server) => kill_tree(server.pid()),
            None => Ok(()),
        }
    }

    /// Starts it again with the same data and port. If it runs, it is stopped first.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.cluster.remove_lock_file();
        self.launch_server()
    }

    /// Another program may take the port between the look and the bind. Then another port is tried.
    fn start_on_free_port(&mut self) -> Result<()> {
        for _ in 0..5 {
            match self.launch_server() {
                Err(_) if self.cluster.says_port_is_taken() => {
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
            // With its children: a `Process` kills only its own group.
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
        // psql quotes the variables.
        self.run_psql(
            cluster::SUPERUSER,
            self.cluster.superuser_password(),
            "postgres",
            &variables,
            "CREATE ROLE :\"role\" LOGIN SUPERUSER PASSWORD :'password';\n\
             CREATE DATABASE :\"database\" OWNER :\"role\";\n",
        )
        .context("cannot create the role and the database")?;
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
        let mut launch = Launch::new("psql", self.cluster.client("psql"))
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
        // An immediate shutdown is as fast as a kill, and the postmaster still waits for its children.
        self.stop_by(Signal::QUIT).ok();
    }
}
