//! The settings that both processes share, and the rules for reading all settings.
//!
//! Flags have precedence over the environment, and the environment over a `.env` file in the working directory. An empty
//! variable counts as not set. Secrets may come from a file (`..._FILE`). They are never printed.

mod traces;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::builder::Resettable;
use clap::{Args, Command, Parser, ValueEnum};

use crate::order::OrderRules;
pub use traces::{Collector, SamplerKind, TraceArgs, TraceSettings};

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. Do not log it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Takes the secret from the variable `name` or from the file that `..._FILE` names. Line breaks at the end of the file
    /// do not count.
    ///
    /// # Errors
    /// Returns an error if both are given, or if the file cannot be read or is empty.
    pub fn resolve(
        name: &str,
        direct: Option<Self>,
        file: Option<PathBuf>,
    ) -> anyhow::Result<Option<Self>> {
        let direct = direct.filter(|secret| !secret.0.is_empty());
        match (direct, file) {
            (Some(_), Some(_)) => bail!("{name} and {name}_FILE are both set: keep one of them"),
            (direct, None) => Ok(direct),
            (None, Some(path)) => {
                let text = std::fs::read_to_string(&path)
                    .with_context(|| format!("{name}_FILE: cannot read {}", path.display()))?;
                let secret = text.trim_end_matches(['\r', '\n']);
                if secret.is_empty() {
                    // Whoever names a file wants a secret. Without a token, writes would be open.
                    bail!("{name}_FILE: {} is empty", path.display());
                }
                Ok(Some(Self(secret.to_owned())))
            }
        }
    }
}

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0.is_empty() {
            "(empty)"
        } else {
            "(set, not shown)"
        })
    }
}

/// Effective settings for people: variable and value, without secrets.
pub type ShownSettings = Vec<(&'static str, String)>;

/// Reads `.env` and then the configuration of a program. `--help` and `--version` print and end the process.
///
/// # Errors
/// Returns an error of one line that names the setting.
pub fn parse<T: Parser>() -> anyhow::Result<T> {
    match dotenvy::from_path(".env") {
        Ok(()) => {}
        Err(error) if error.not_found() => {}
        // The error itself quotes the line, which may contain a secret.
        Err(dotenvy::Error::LineParse(_, position)) => {
            bail!(".env: a line cannot be parsed near its column {position}")
        }
        Err(error) => bail!(".env: {error}"),
    }
    parse_from(std::env::args_os()).map_err(|error| {
        if error.use_stderr() {
            anyhow::anyhow!(one_line(&error))
        } else {
            error.exit()
        }
    })
}

/// The commands that have their own arguments and need no other setting. They work while a setting is wrong: a health check
/// must only say whether the process lives.
const WITHOUT_SETTINGS: [&str; 2] = ["completions", "livez"];

fn parse_from<T: Parser>(arguments: impl IntoIterator<Item = OsString>) -> Result<T, clap::Error> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let mut command = without_empty_variables(T::command());
    if (WITHOUT_SETTINGS.iter()).any(|name| arguments.get(1).is_some_and(|first| first == name)) {
        // Those of the command itself stay.
        command = command.mut_args(|argument| argument.env(Resettable::Reset));
    }
    let mut matches = command.try_get_matches_from(arguments)?;
    T::from_arg_matches_mut(&mut matches)
}

/// Makes an empty variable count as not set. That is what `NAME=` means in a `.env` or Compose file.
///
/// Otherwise clap would refuse an empty path or number, and would accept an empty `DB_HOST`, which is libpq's Unix socket.
fn without_empty_variables(command: Command) -> Command {
    let command = command.mut_args(|argument| {
        let value = argument.get_env().and_then(std::env::var_os);
        if value.is_some_and(|value| value.is_empty()) {
            argument.env(Resettable::Reset)
        } else {
            argument
        }
    });
    command.mut_subcommands(without_empty_variables)
}

/// Clap's message in one line, without the usage.
pub(crate) fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let message = text.split("\n\n").next().unwrap_or(&text);
    let words: Vec<&str> = message
        .trim_start_matches("error: ")
        .split_whitespace()
        .collect();
    words.join(" ")
}

/// The flags and variables that say how to reach PostgreSQL.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Database")]
#[expect(
    clippy::doc_markdown,
    reason = "the doc comments are help texts for a terminal"
)]
pub struct DatabaseArgs {
    /// Host name or address of PostgreSQL
    #[arg(
        long,
        env = "DB_HOST",
        default_value = "localhost",
        value_name = "DB_HOST"
    )]
    db_host: String,
    /// Port of PostgreSQL
    #[arg(long, env = "DB_PORT", default_value_t = 5432, value_name = "DB_PORT")]
    db_port: u16,
    /// Role to log in as
    #[arg(
        long,
        env = "DB_USER",
        default_value = "myapp_user",
        value_name = "DB_USER"
    )]
    db_user: String,
    /// Password of the role [default: myapp_password]
    #[arg(
        long,
        env = "DB_PASSWORD",
        value_name = "DB_PASSWORD",
        hide_env_values = true
    )]
    db_password: Option<Secret>,
    /// File with the password, in place of DB_PASSWORD
    #[arg(long, env = "DB_PASSWORD_FILE", value_name = "DB_PASSWORD_FILE")]
    db_password_file: Option<PathBuf>,
    /// Name of the database
    #[arg(
        long,
        env = "DB_NAME",
        default_value = "myapp_db",
        value_name = "DB_NAME"
    )]
    db_name: String,
    /// Whether to use TLS, and what to check of the server's certificate
    #[arg(
        long,
        env = "DB_SSLMODE",
        default_value = "disable",
        value_name = "DB_SSLMODE"
    )]
    db_sslmode: SslMode,
    /// PEM file with the certificates of the CAs that may have signed the server's
    #[arg(long, env = "DB_SSLROOTCERT", value_name = "DB_SSLROOTCERT")]
    db_sslrootcert: Option<PathBuf>,
}

/// libpq's `sslmode`, with its meanings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS if the server has it. The certificate is not checked.
    Prefer,
    /// TLS. The certificate is checked only if `DB_SSLROOTCERT` is set, and then like `verify-ca` does.
    Require,
    /// TLS, and a CA of `DB_SSLROOTCERT` must have signed the certificate.
    VerifyCa,
    /// Like `verify-ca`, and the certificate must name `DB_HOST`.
    VerifyFull,
}

/// How to reach PostgreSQL.
#[derive(Clone, Debug)]
pub struct DatabaseSettings {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Role.
    pub user: String,
    /// Password of the role.
    pub password: Secret,
    /// Database.
    pub name: String,
    /// TLS mode.
    pub sslmode: SslMode,
    /// PEM file of the trusted CAs.
    pub sslrootcert: Option<PathBuf>,
}

impl DatabaseArgs {
    /// Checks the combination and reads the files.
    ///
    /// # Errors
    /// Returns an error of one line that names the variable.
    pub fn resolve(self) -> anyhow::Result<DatabaseSettings> {
        let sslrootcert = self.db_sslrootcert;
        if matches!(self.db_sslmode, SslMode::VerifyCa | SslMode::VerifyFull)
            && sslrootcert.is_none()
        {
            bail!(
                "DB_SSLMODE={} needs DB_SSLROOTCERT, the PEM file of the CA (Debian's public CAs are in \
                 /etc/ssl/certs/ca-certificates.crt)",
                name_of(self.db_sslmode)
            );
        }
        let password = Secret::resolve("DB_PASSWORD", self.db_password, self.db_password_file)?;
        Ok(DatabaseSettings {
            host: self.db_host,
            port: self.db_port,
            user: self.db_user,
            password: password.unwrap_or_else(|| Secret::new("myapp_password")),
            name: self.db_name,
            sslmode: self.db_sslmode,
            sslrootcert,
        })
    }
}

impl DatabaseSettings {
    /// The settings without the password.
    pub fn shown(&self) -> ShownSettings {
        vec![
            ("DB_HOST", self.host.clone()),
            ("DB_PORT", self.port.to_string()),
            ("DB_USER", self.user.clone()),
            ("DB_PASSWORD", format!("{:?}", self.password)),
            ("DB_NAME", self.name.clone()),
            ("DB_SSLMODE", name_of(self.sslmode)),
            (
                "DB_SSLROOTCERT",
                self.sslrootcert
                    .as_ref()
                    .map(|path| path.display().to_string())
                    .unwrap_or_default(),
            ),
        ]
    }
}

/// Returns a host to listen on as the system takes it. An IPv6 address may have brackets, as in a URL.
///
/// # Errors
/// Returns an error that names the variable if the host is empty.
pub fn listen_host(name: &str, host: String) -> anyhow::Result<String> {
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let host = bare.map(str::to_owned).unwrap_or(host);
    if host.is_empty() {
        bail!("{name} must not be empty");
    }
    Ok(host)
}

/// The settings of the log.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logging")]
pub struct LogSettings {
    /// Form of the log's lines
    #[arg(
        id = "log_format",
        long = "log-format",
        env = "LOG_FORMAT",
        default_value = "text",
        value_name = "LOG_FORMAT"
    )]
    pub format: LogFormat,
    /// What to log, by target and level
    #[arg(
        id = "log_filter",
        long = "log-filter",
        env = "RUST_LOG",
        default_value = "info",
        value_name = "RUST_LOG"
    )]
    pub filter: String,
}

/// Form of the log's lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

impl LogSettings {
    /// The settings as given.
    pub fn shown(&self) -> ShownSettings {
        vec![
            ("LOG_FORMAT", name_of(self.format)),
            ("RUST_LOG", self.filter.clone()),
        ]
    }
}

/// The rules for orders.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Orders")]
pub struct OrderSettings {
    /// Whether e-mail, phone and currency must have their usual form, or may be any text
    #[arg(
        long = "order-rules",
        env = "ORDER_RULES",
        default_value = "standard",
        global = true,
        value_name = "ORDER_RULES"
    )]
    pub order_rules: OrderRules,
}

/// The settings of the shutdown.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Process")]
pub struct ShutdownSettings {
    /// Milliseconds to finish after SIGTERM or SIGINT
    #[arg(
        long,
        env = "SHUTDOWN_TIMEOUT_MS",
        default_value_t = 10_000,
        value_name = "SHUTDOWN_TIMEOUT_MS"
    )]
    shutdown_timeout_ms: u64,
}

impl ShutdownSettings {
    /// Makes the settings for a test, which has no command line.
    pub fn new(timeout: Duration) -> Self {
        Self {
            shutdown_timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// The time to finish after the first signal.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.shutdown_timeout_ms)
    }

    /// The settings as given.
    pub fn shown(&self) -> ShownSettings {
        vec![("SHUTDOWN_TIMEOUT_MS", self.shutdown_timeout_ms.to_string())]
    }
}

/// The value as it is written in a variable. For [`SslMode`] this is also its name in libpq.
pub fn name_of(value: impl ValueEnum) -> String {
    let name = value.to_possible_value().expect("no value is skipped");
    name.get_name().to_owned()
}

/// Writes settings as `NAME=value` lines.
pub fn to_lines(settings: &ShownSettings) -> String {
    settings
        .iter()
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::parse_arguments;

    #[derive(Parser, Debug)]
    struct Program {
        #[command(flatten)]
        database: DatabaseArgs,
        #[command(flatten)]
        log: LogSettings,
        #[command(flatten)]
        shutdown: ShutdownSettings,
    }

    fn database(arguments: &[&str]) -> anyhow::Result<DatabaseSettings> {
        parse_arguments::<Program>(arguments)?.database.resolve()
    }

    #[test]
    fn clap_accepts_the_groups() {
        use clap::CommandFactory;
        Program::command().debug_assert();
    }

    #[test]
    fn secrets_are_not_printed() {
        let settings = database(&["--db-password", "canary"]).unwrap();
        assert!(!format!("{settings:?} {:?}", settings.shown()).contains("canary"));
        assert_eq!(settings.password.expose(), "canary");
    }

    /// A file that is removed when the test ends.
    struct SecretFile(PathBuf);

    impl SecretFile {
        fn with_text(text: &str) -> Self {
            let name = format!("orders-secret-{}", uuid::Uuid::new_v4());
            let file = Self(std::env::temp_dir().join(name));
            std::fs::write(&file.0, text).unwrap();
            file
        }

        fn path(&self) -> &str {
            self.0.to_str().unwrap()
        }
    }

    impl Drop for SecretFile {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).ok();
        }
    }

    #[test]
    fn a_secret_may_be_in_a_file_but_not_in_both_places() {
        let file = SecretFile::with_text("from file\n");
        let settings = database(&["--db-password-file", file.path()]).unwrap();
        assert_eq!(settings.password.expose(), "from file");
        let both = database(&["--db-password-file", file.path(), "--db-password", "x"]);
        assert_eq!(
            both.unwrap_err().to_string(),
            "DB_PASSWORD and DB_PASSWORD_FILE are both set: keep one of them"
        );
    }

    #[test]
    fn a_secret_file_must_exist_and_must_not_be_empty() {
        let file = SecretFile::with_text("\n");
        let empty = database(&["--db-password-file", file.path()]).unwrap_err();
        assert_eq!(
            empty.to_string(),
            format!("DB_PASSWORD_FILE: {} is empty", file.path())
        );
        let gone = database(&["--db-password-file", "/no/such/file"]).unwrap_err();
        assert_eq!(
            gone.to_string(),
            "DB_PASSWORD_FILE: cannot read /no/such/file"
        );
    }

    /// A process with several threads cannot set variables safely, so the test runs itself again with them.
    #[test]
    fn an_empty_variable_counts_as_not_set() {
        use clap::CommandFactory;
        const CHILD: &str = "ORDERS_TEST_READS_EMPTY_VARIABLES";
        if std::env::var_os(CHILD).is_some() {
            let program: Program = parse_from(["program".into()]).unwrap();
            let without_environment: Program = parse_arguments(&[]).unwrap();
            assert_eq!(format!("{program:?}"), format!("{without_environment:?}"));
            return;
        }
        let command = Program::command();
        let variables: Vec<_> = command
            .get_arguments()
            .filter_map(clap::Arg::get_env)
            .collect();
        assert!(variables.len() > 10, "{variables:?}");
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "config::tests::an_empty_variable_counts_as_not_set",
            ])
            .env(CHILD, "1")
            .envs(variables.into_iter().map(|name| (name, "")))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
    }

    #[test]
    fn an_empty_password_counts_as_not_given() {
        let settings = database(&["--db-password", ""]).unwrap();
        assert_eq!(settings.password.expose(), "myapp_password");
    }

    #[test]
    fn faults_are_one_line_that_names_the_variable() {
        for (arguments, name) in [
            (["--db-port", "abc"], "DB_PORT"),
            (["--db-sslmode", "maybe"], "DB_SSLMODE"),
            (["--db-sslmode", "verify-full"], "DB_SSLROOTCERT"),
        ] {
            let message = database(&arguments).unwrap_err().to_string();
            assert!(
                message.contains(name) && !message.contains('\n'),
                "{message}"
            );
        }
    }
}
