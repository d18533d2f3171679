//! The files of a cluster: its folder, its settings, its passwords.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::account::{Account, make_folder, remove_cluster_folder};
use super::{Options, TlsFiles, find_binaries, find_client};
use crate::process::Launch;
use crate::temporary;

/// The superuser's name. Only this crate uses it.
pub(super) const SUPERUSER: &str = "postgres";

/// A cluster on disk.
#[derive(Debug)]
pub(super) struct Cluster {
    /// The folder that was asked for.
    wanted: PathBuf,
    /// The folder that it is in, see [`Account`].
    folder: PathBuf,
    is_temporary: bool,
    binaries: PathBuf,
    account: Option<Account>,
    superuser_password: String,
}

impl Cluster {
    /// Creates the folder and runs initdb.
    pub(super) fn create(options: &Options) -> Result<Self> {
        let cluster = Self::empty(options.folder.as_deref(), random_password()?)?;
        cluster.initialise(options)?;
        Ok(cluster)
    }

    /// Creates a temporary folder and runs `pg_basebackup`. The result is a standby of a server that runs.
    pub(super) fn copy_of(primary: &Self, host: &str, port: u16) -> Result<Self> {
        let standby = Self::empty(None, primary.superuser_password.clone())?;
        let password = &primary.superuser_password;
        Launch::new("pg_basebackup", standby.client("pg_basebackup"))
            .arg("-D")
            .arg(standby.data())
            .arg("-d")
            .arg(format!(
                "host={host} port={port} user={SUPERUSER} password={password}"
            ))
            .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"])
            .directory(&standby.folder)
            .user(standby.account.map(Account::ids))
            .log_to(standby.folder.join("pg_basebackup.log"))
            .run()?;
        Ok(standby)
    }

    fn empty(folder: Option<&Path>, superuser_password: String) -> Result<Self> {
        let binaries = find_binaries()?;
        let account = Account::for_postgres()?;
        if account.is_some_and(|account| !account.can_enter(&binaries)) {
            bail!(
                "the user postgres cannot enter {}: copy PostgreSQL to a place that this user can enter, and set POSTGRES_BIN",
                binaries.display()
            );
        }
        let wanted = match folder {
            Some(folder) => std::path::absolute(folder)
                .with_context(|| format!("cannot find {}", folder.display()))?,
            None => temporary::folder("postgres"),
        };
        Ok(Self {
            folder: make_folder(&wanted, account)?,
            wanted,
            is_temporary: folder.is_none(),
            binaries,
            account,
            superuser_password,
        })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn log(&self) -> PathBuf {
        self.folder.join("postgres.log")
    }

    pub(super) fn superuser_password(&self) -> &str {
        &self.superuser_password
    }

    pub(super) fn client(&self, name: &str) -> PathBuf {
        find_client(&self.binaries, name)
    }

    /// Prepares the start of the server.
    pub(super) fn launch(&self, port: u16) -> Launch {
        // SIGQUIT is an immediate shutdown, which also ends the children and frees the shared memory.
        Launch::with_death_signal("PostgreSQL", self.binaries.join("postgres"), "QUIT")
            .arg("-D")
            .arg(self.data())
            .args(["-c", &format!("port={port}")])
            .directory(&self.folder)
            .user(self.account.map(Account::ids))
            .log_to(self.log())
    }

    /// Returns whether the server with this process id takes connections. Its lock file says so.
    pub(super) fn is_ready(&self, pid: u32) -> bool {
        fs::read_to_string(self.lock_file()).is_ok_and(|text| lock_file_says_ready(&text, pid))
    }

    /// Removes the lock file of a killed server. Another process may have its process id by now.
    pub(super) fn remove_lock_file(&self) {
        fs::remove_file(self.lock_file()).ok();
    }

    pub(super) fn says_port_is_taken(&self) -> bool {
        fs::read_to_string(self.log()).is_ok_and(|text| text.contains("Address already in use"))
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn lock_file(&self) -> PathBuf {
        self.data().join("postmaster.pid")
    }

    fn initialise(&self, options: &Options) -> Result<()> {
        let password_file = self.folder.join("superuser-password");
        self.write_private(&password_file, self.superuser_password.as_bytes())?;
        // SCRAM, not "trust": a wrong password must fail here as it does in production. Nothing is synced to disk, because
        // there is no data yet that a crash of the machine could lose.
        Launch::new("initdb", self.binaries.join("initdb"))
            .arg("-D")
            .arg(self.data())
            .args(["--username", SUPERUSER, "--auth", "scram-sha-256"])
            .arg("--pwfile")
            .arg(&password_file)
            .args(["--encoding", "UTF8", "--no-locale", "--no-sync"])
            .directory(&self.folder)
            .user(self.account.map(Account::ids))
            .log_to(self.folder.join("initdb.log"))
            .run()?;
        if let Some(tls) = &options.tls {
            self.copy_tls_files(tls)?;
        }
        let settings = self.data().join("private.conf");
        self.write_private(&settings, render_settings(options).as_bytes())?;
        // It is included, so that ALTER SYSTEM (postgresql.auto.conf) still overrides it.
        let main_settings = self.data().join("postgresql.conf");
        let mut text = fs::read_to_string(&main_settings)
            .with_context(|| format!("cannot read {}", main_settings.display()))?;
        text.push_str("\ninclude 'private.conf'\n");
        fs::write(&main_settings, text)
            .with_context(|| format!("cannot write {}", main_settings.display()))
    }

    fn copy_tls_files(&self, tls: &TlsFiles) -> Result<()> {
        for (source, name) in [(&tls.certificate, "server.crt"), (&tls.key, "server.key")] {
            let bytes =
                fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
            self.write_private(&self.data().join(name), &bytes)?;
        }
        Ok(())
    }

    fn write_private(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .with_context(|| format!("cannot restrict the access to {}", path.display()))?;
        self.account.map_or(Ok(()), |account| account.own(path))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.is_temporary {
            remove_cluster_folder(&self.wanted).ok();
        }
    }
}

/// Renders the settings of a private cluster on a small machine that also compiles.
fn render_settings(options: &Options) -> String {
    let mut settings = vec![
        ("listen_addresses", "127.0.0.1"),
        // No socket file: its path may have at most 107 bytes, and the path of a clone may be longer.
        ("unix_socket_directories", ""),
        // Each test has its own database and pools.
        ("max_connections", "200"),
        ("shared_buffers", "256MB"),
        ("max_wal_size", "2GB"),
        ("checkpoint_timeout", "15min"),
        // `on` is pglz, which needs 40 us of CPU for the image of a page. That is several times what an order costs.
        ("wal_compression", "off"),
        ("jit", "off"),
        ("timezone", "UTC"),
        ("log_timezone", "UTC"),
        ("log_line_prefix", "%m [%p] %a "),
        ("synchronous_commit", "on"),
    ];
    if !options.is_durable {
        settings.push(("fsync", "off"));
        settings.push(("full_page_writes", "off"));
    }
    if options.tls.is_some() {
        settings.push(("ssl", "on"));
        settings.push(("ssl_cert_file", "server.crt"));
        settings.push(("ssl_key_file", "server.key"));
    }
    settings.extend(&options.settings);
    settings
        .into_iter()
        .map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''")))
        .collect()
}

/// The first line of a lock file is the process id, its eighth is the state. A standby that takes connections is `standby`.
fn lock_file_says_ready(text: &str, pid: u32) -> bool {
    let mut lines = text.lines().map(str::trim);
    let is_of_server = lines.next() == Some(&pid.to_string());
    let state = lines.nth(6);
    is_of_server && matches!(state, Some("ready" | "standby"))
}

fn random_password() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_quoted_and_given_ones_come_last() {
        let options = Options {
            is_durable: true,
            settings: vec![("max_connections", "it's 5")],
            ..Options::default()
        };
        let text = render_settings(&options);
        assert!(text.ends_with("max_connections = 'it''s 5'\n"), "{text}");
        assert!(!text.contains("fsync"), "{text}");
        assert!(!text.contains("ssl"), "{text}");
        assert!(render_settings(&Options::default()).contains("fsync = 'off'\n"));
    }

    #[test]
    fn readiness_is_read_from_the_lock_file_of_this_server_only() {
        let text = "42\n/data\n1700000000\n5433\n\n127.0.0.1\n  123  4\nready   \n";
        assert!(lock_file_says_ready(text, 42));
        assert!(!lock_file_says_ready(text, 43));
        assert!(!lock_file_says_ready(
            &text.replace("ready", "starting"),
            42
        ));
        assert!(lock_file_says_ready(&text.replace("ready", "standby"), 42));
        assert!(!lock_file_says_ready("42\n", 42));
    }
}
