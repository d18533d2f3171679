//! The command line and the environment of the api.

pub mod command;
pub mod network;
pub mod origin;
pub mod tokens;

use std::fmt::Display;
use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::RangeBounds;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use clap::builder::{BoolishValueParser, RangedU64ValueParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, ValueEnum};
use shared::config::{
    DatabaseArgs, DatabaseSettings, LogSettings, OrderSettings, Secret, ShownSettings,
    ShutdownSettings, TraceArgs, TraceSettings, listen_host, name_of,
};
use shared::order::OrderRules;
use shared::server::{Deadlines, Limits};
use warp::http::uri::Authority as HostAndPort;

use command::Command;
use network::Network;
use origin::AllowedOrigin;

const MIB: usize = 1024 * 1024;
/// The name of the program in traces, unless the settings give it another one.
const SERVICE_NAME: &str = "orders-api";

/// Serves orders over HTTP from a cache that database events keep correct
#[derive(Parser, Debug)]
#[command(name = "api", version)]
pub struct Cli {
    /// What to do instead of serving
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Print the effective settings with secrets hidden, and exit
    #[arg(long)]
    pub check_config: bool,
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    cache: CacheSettings,
    #[command(flatten)]
    orders: OrderSettings,
    #[command(flatten)]
    log: LogSettings,
    #[command(flatten)]
    traces: TraceArgs,
    #[command(flatten)]
    shutdown: ShutdownSettings,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Server")]
#[expect(
    clippy::doc_markdown,
    reason = "the doc comments are help texts for a terminal"
)]
struct ServerArgs {
    /// Host name or address to listen on
    #[arg(long, env, default_value = "127.0.0.1")]
    server_host: String,
    /// Port to listen on
    #[arg(long, env, default_value_t = 8081)]
    server_port: u16,
    #[command(flatten)]
    limits: ServerLimits,
    #[command(flatten)]
    ops: OpsArgs,
    /// Maximum number of connections to PostgreSQL, not counting the listener's, 1..=1000
    #[arg(long, env, default_value_t = 8, value_parser = number(1..=1000))]
    db_pool_size: usize,
    /// File of the tokens that clients must send as "Authorization: Bearer ..."; `api token new` makes its lines
    #[arg(long, env)]
    api_tokens_file: Option<PathBuf>,
    /// One token that allows everything, 16 to 512 visible ASCII characters; empty for none
    #[arg(long, env, hide_env_values = true)]
    api_token: Option<Secret>,
    /// File that contains that one token, instead of API_TOKEN
    #[arg(long, env)]
    api_token_file: Option<PathBuf>,
    /// Without tokens, answer reads of every client that reaches the server, not only of this machine
    #[arg(long, env, action = ArgAction::Set, value_parser = BoolishValueParser::new(),
          default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL")]
    allow_unauthenticated_reads: bool,
    /// Without tokens, accept writes of every client that reaches the server, not only of this machine
    #[arg(long, env, action = ArgAction::Set, value_parser = BoolishValueParser::new(),
          default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL")]
    allow_unauthenticated_writes: bool,
    /// Host names, without ports, by which those clients may call the server, comma-separated [default: names of loopback]
    #[arg(long, env, value_delimiter = ',', value_name = "HOST,...")]
    allowed_hosts: Vec<String>,
    /// Networks or addresses of proxies whose X-Forwarded-For names the client, comma-separated
    #[arg(long, env, value_delimiter = ',', value_name = "CIDR,...")]
    trusted_proxies: Vec<Network>,
    /// Which requests to log: none, those that are refused for lack of rights, or all
    #[arg(long, env, default_value = "refused", value_name = "LOG_ACCESS")]
    log_access: AccessLog,
    /// Origins of the web pages that may use the api, written as browsers send them, comma-separated
    #[arg(long, env, value_delimiter = ',', value_name = "ORIGIN,...")]
    cors_allowed_origins: Vec<AllowedOrigin>,
    /// Maximum number of requests per minute from one client address; 0 for no limit
    #[arg(long, env, default_value_t = 0)]
    rate_limit_per_minute: u32,
    /// Milliseconds for which /readyz says 503 before connections are closed, 0..=600000; SHUTDOWN_TIMEOUT_MS begins after them
    #[arg(long, env, default_value = "0",
          value_parser = number(0..=600_000).map(|drain_ms| Duration::from_millis(drain_ms as u64)))]
    shutdown_drain_ms: Duration,
}

/// Where operators are served.
#[derive(Args, Clone, Debug)]
pub struct OpsArgs {
    /// Host name or address of the operators' port: /metrics /livez /readyz /health
    #[arg(long, env, default_value = "127.0.0.1")]
    ops_host: String,
    /// Port for operators; each api on a machine needs its own, 0 takes a free one
    #[arg(long, env, default_value_t = 8083)]
    ops_port: u16,
}

impl OpsArgs {
    /// Returns the host and the port to listen on.
    ///
    /// # Errors
    /// Returns a message that names the setting if the host is empty.
    pub fn resolve(self) -> anyhow::Result<(String, u16)> {
        Ok((listen_host("OPS_HOST", self.ops_host)?, self.ops_port))
    }
}

/// Which requests leave a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccessLog {
    /// None.
    Off,
    /// Those that are refused because of who sends them, or because they are not HTTP.
    Refused,
    /// All.
    All,
}

/// Parses a number within bounds.
fn number(bounds: impl RangeBounds<u64>) -> impl TypedValueParser<Value = usize> {
    RangedU64ValueParser::new().range(bounds)
}

/// All settings, validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// How to connect to PostgreSQL.
    pub database: DatabaseSettings,
    /// The limits of the connections to PostgreSQL.
    pub pool: PoolSettings,
    /// The host and the port to listen on.
    pub address: (String, u16),
    /// The host and the port to listen on for operators.
    pub ops_address: (String, u16),
    /// The limits of clients' connections.
    pub server: ServerLimits,
    /// The one token that allows everything.
    pub api_token: Option<Secret>,
    /// The file of all other tokens.
    pub api_tokens_file: Option<PathBuf>,
    /// Whether reads without a token are answered to all clients.
    pub allow_unauthenticated_reads: bool,
    /// Whether writes without a token are accepted from all clients.
    pub allow_unauthenticated_writes: bool,
    /// The host names by which these clients may call the server; if empty, the names of loopback.
    pub allowed_hosts: Vec<String>,
    /// The proxies whose `X-Forwarded-For` names the client.
    pub trusted_proxies: Vec<Network>,
    /// Which requests leave a line in the log.
    pub access_log: AccessLog,
    /// The origins of the web pages that may use the api.
    pub cors_allowed_origins: Vec<AllowedOrigin>,
    /// The maximum number of requests per minute from one client address.
    pub rate_limit_per_minute: Option<NonZeroU32>,
    /// The cache's limits.
    pub cache: CacheSettings,
    /// How strictly the orders of clients are checked.
    pub order_rules: OrderRules,
    /// How to log.
    pub log: LogSettings,
    /// Where traces are sent, and of what.
    pub traces: TraceSettings,
    /// How long `/readyz` fails before connections are closed.
    pub shutdown_drain: Duration,
    /// How to stop.
    pub shutdown: ShutdownSettings,
}

/// The limits of clients' connections. Operators can set only the counts; tests shorten the times.
#[derive(Args, Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Maximum number of client connections, 1..=1000000
    #[arg(long = "server-max-connections", env = "SERVER_MAX_CONNECTIONS", default_value_t = 10_000,
          value_name = "SERVER_MAX_CONNECTIONS", value_parser = number(1..=1_000_000))]
    pub max_connections: usize,
    /// Maximum number of connections from one address (for IPv6, one /64 network); a load balancer is one address
    #[arg(long = "server-max-connections-per-peer", env = "SERVER_MAX_CONNECTIONS_PER_PEER", default_value_t = 2_000,
          value_name = "SERVER_MAX_CONNECTIONS_PER_PEER", value_parser = number(1..=1_000_000))]
    pub max_connections_per_peer: usize,
    /// How long a connection may wait for the client.
    #[arg(skip)]
    pub deadlines: Deadlines,
}

impl ServerLimits {
    /// Returns the limits as the server takes them.
    pub fn limits(&self) -> Limits {
        Limits {
            max_connections: self.max_connections,
            max_connections_per_peer: self.max_connections_per_peer,
            deadlines: self.deadlines,
        }
    }
}

/// The limits of the connections to PostgreSQL. Operators can set only the size; tests shorten the times.
#[derive(Clone, Copy, Debug)]
pub struct PoolSettings {
    /// The maximum number of connections.
    pub size: usize,
    /// How long to wait for a connection: long enough for a burst, and short enough that clients do not give up first.
    pub wait: Duration,
    /// How long a statement may run.
    pub statement_timeout: Duration,
    /// How long a client waits for an answer once its request has arrived.
    pub answer_deadline: Duration,
}

impl PoolSettings {
    /// Returns the limits of a pool of this size, with the default times.
    pub fn with_size(size: usize) -> Self {
        Self {
            size,
            wait: Duration::from_secs(2),
            statement_timeout: Duration::from_secs(5),
            answer_deadline: Duration::from_secs(10),
        }
    }
}

/// The cache's limits.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Cache")]
pub struct CacheSettings {
    /// Maximum number of orders in the cache, 1..=10000000
    #[arg(long = "cache-capacity", env = "CACHE_CAPACITY", default_value = "10000", value_name = "CACHE_CAPACITY",
          value_parser = number(1..=10_000_000).try_map(NonZeroUsize::try_from))]
    pub capacity: NonZeroUsize,
    /// Maximum size of all orders in the cache together, in MiB; 0 for no bound but their number
    #[arg(long = "cache-capacity-mb", env = "CACHE_CAPACITY_MB", default_value_t = 256, value_name = "CACHE_CAPACITY_MB",
          value_parser = number(0..=1_048_576))]
    pub capacity_mb: usize,
    /// Number of the newest orders to load at start and after a reconnect, 0..=10000000
    #[arg(long = "cache-warmup", env = "CACHE_WARMUP", default_value_t = 10_000, value_name = "CACHE_WARMUP",
          value_parser = number(0..=10_000_000))]
    pub warmup: usize,
    /// Milliseconds for which the cache is served after the listener has proved that it saw every commit, 100..=60000
    #[arg(long = "cache-lease-ms", env = "CACHE_LEASE_MS", default_value = "5000", value_name = "CACHE_LEASE_MS",
          value_parser = number(100..=60_000).map(|lease_ms| Duration::from_millis(lease_ms as u64)))]
    pub lease: Duration,
}

impl CacheSettings {
    /// Returns the largest size of all orders in the cache together; `None` if only their number is bounded.
    pub fn capacity_bytes(&self) -> Option<NonZeroUsize> {
        NonZeroUsize::new(self.capacity_mb.saturating_mul(MIB))
    }
}

impl Cli {
    /// Validates the settings and reads the files that they name.
    ///
    /// # Errors
    /// Returns a message that names the setting if one is invalid or a file cannot be read.
    pub fn config(self) -> anyhow::Result<Config> {
        let Self {
            database,
            server,
            cache,
            orders,
            log,
            traces,
            shutdown,
            ..
        } = self;
        let api_token = Secret::resolve("API_TOKEN", server.api_token, server.api_token_file)?;
        for host in &server.allowed_hosts {
            check_host_name(host)?;
        }
        Ok(Config {
            database: database.resolve()?,
            pool: PoolSettings::with_size(server.db_pool_size),
            address: (
                listen_host("SERVER_HOST", server.server_host)?,
                server.server_port,
            ),
            ops_address: server.ops.resolve()?,
            server: server.limits,
            api_token,
            api_tokens_file: server.api_tokens_file,
            allow_unauthenticated_reads: server.allow_unauthenticated_reads,
            allow_unauthenticated_writes: server.allow_unauthenticated_writes,
            allowed_hosts: server.allowed_hosts,
            trusted_proxies: server.trusted_proxies,
            access_log: server.log_access,
            cors_allowed_origins: server.cors_allowed_origins,
            rate_limit_per_minute: NonZeroU32::new(server.rate_limit_per_minute),
            cache,
            order_rules: orders.order_rules,
            log,
            traces: traces.resolve(SERVICE_NAME)?,
            shutdown_drain: server.shutdown_drain_ms,
            shutdown,
        })
    }
}

/// Checks a name that the header `Host` may have.
fn check_host_name(host: &str) -> anyhow::Result<()> {
    let parsed = host.parse::<HostAndPort>();
    let is_name = parsed.is_ok_and(|parsed| parsed.host() == host);
    if !is_name || host.contains('*') {
        bail!("ALLOWED_HOSTS: {host:?} is not a host name without a port");
    }
    Ok(())
}

impl Config {
    /// Returns the settings with the secrets hidden.
    pub fn shown(&self) -> ShownSettings {
        let token = self.api_token.clone().unwrap_or_else(|| Secret::new(""));
        let origins = self.cors_allowed_origins.iter();
        let origins: Vec<_> = origins.map(AllowedOrigin::as_str).collect();
        let rate_limit = self.rate_limit_per_minute.map_or(0, NonZeroU32::get);
        let tokens_file = self.api_tokens_file.as_deref().map(Path::display);
        let tokens_file = tokens_file.map(|path| path.to_string()).unwrap_or_default();
        let proxies: Vec<_> = self
            .trusted_proxies
            .iter()
            .map(Network::to_string)
            .collect();
        let ServerLimits {
            max_connections,
            max_connections_per_peer,
            ..
        } = &self.server;
        let mut shown = self.database.shown();
        let settings: [(&'static str, &dyn Display); 22] = [
            ("DB_POOL_SIZE", &self.pool.size),
            ("SERVER_HOST", &self.address.0),
            ("SERVER_PORT", &self.address.1),
            ("OPS_HOST", &self.ops_address.0),
            ("OPS_PORT", &self.ops_address.1),
            ("SERVER_MAX_CONNECTIONS", max_connections),
            ("SERVER_MAX_CONNECTIONS_PER_PEER", max_connections_per_peer),
            ("API_TOKEN", &format!("{token:?}")),
            ("API_TOKENS_FILE", &tokens_file),
            (
                "ALLOW_UNAUTHENTICATED_READS",
                &self.allow_unauthenticated_reads,
            ),
            (
                "ALLOW_UNAUTHENTICATED_WRITES",
                &self.allow_unauthenticated_writes,
            ),
            ("ALLOWED_HOSTS", &self.allowed_hosts.join(",")),
            ("TRUSTED_PROXIES", &proxies.join(",")),
            ("LOG_ACCESS", &name_of(self.access_log)),
            ("CORS_ALLOWED_ORIGINS", &origins.join(",")),
            ("RATE_LIMIT_PER_MINUTE", &rate_limit),
            ("CACHE_CAPACITY", &self.cache.capacity),
            ("CACHE_CAPACITY_MB", &self.cache.capacity_mb),
            ("CACHE_WARMUP", &self.cache.warmup),
            ("CACHE_LEASE_MS", &self.cache.lease.as_millis()),
            ("ORDER_RULES", &name_of(self.order_rules)),
            ("SHUTDOWN_DRAIN_MS", &self.shutdown_drain.as_millis()),
        ];
        shown.extend(settings.map(|(name, value)| (name, value.to_string())));
        shown.extend(self.log.shown());
        shown.extend(self.traces.shown());
        shown.extend(self.shutdown.shown());
        shown
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn config(arguments: &[&str]) -> anyhow::Result<Config> {
        shared::testing::parse_arguments::<Cli>(arguments)?.config()
    }

    #[test]
    fn clap_accepts_the_command_line() {
        Cli::command().debug_assert();
    }

    #[test]
    fn numbers_have_bounds_and_names() {
        for arguments in [
            ["--cache-capacity", "0"],
            ["--cache-capacity-mb", "1048577"],
            ["--db-pool-size", "0"],
            ["--server-port", "65536"],
            ["--cache-lease-ms", "abc"],
            ["--rate-limit-per-minute", "-1"],
            ["--shutdown-drain-ms", "600001"],
        ] {
            assert!(config(&arguments).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn origins_are_listed_with_commas_and_checked() {
        let listed = "https://shop.example, http://localhost:3000";
        let config = config(&["--cors-allowed-origins", listed]).unwrap();
        assert_eq!(config.cors_allowed_origins.len(), 2);
        let shown = ("CORS_ALLOWED_ORIGINS", listed.replace(' ', ""));
        assert!(config.shown().contains(&shown));
    }

    #[test]
    fn wrong_origins_are_named() {
        for listed in ["*", "https://shop.example,null", "https://shop.example/"] {
            let error = config(&["--cors-allowed-origins", listed]).unwrap_err();
            assert!(error.to_string().contains("is not an origin"), "{error}");
        }
    }

    #[test]
    fn an_empty_token_is_none_and_a_token_is_never_shown() {
        assert!(config(&["--api-token", ""]).unwrap().api_token.is_none());
        let token = "canary-canary-canary";
        let config = config(&["--api-token", token, "--allow-unauthenticated-writes"]).unwrap();
        assert!(config.allow_unauthenticated_writes);
        assert_eq!(config.api_token.as_ref().map(Secret::expose), Some(token));
        assert!(!format!("{config:?} {:?}", config.shown()).contains("canary"));
    }
}
