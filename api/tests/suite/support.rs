//! Starts an `api` for one test, with a client that sends exactly the given bytes.

pub mod coherence;
pub mod conformity;
pub mod copies;
pub mod download;
pub mod missing_standby;
pub mod program;
pub mod split;
pub mod tokens;

use std::time::Duration;

use api::config::{Cli, Config};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use serde_json::Value;
use servers::postgres::PrivatePostgres;
use shared::config::{DatabaseSettings, Secret};
use shared::db::models::{NewOrder, Source};
use shared::db::orders::UpsertOrders;
use shared::db::rights::Role;
use shared::events::{self, Operation};
use shared::order::Order;
use shared::testing::{OrderGenerator, TestDatabase, eventually, model_json, parse_arguments};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longer than anything takes on a busy machine. A test that waits for so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The token of [`TestApi::start_with_token`]. It allows everything.
pub const TOKEN: &str = "a-token-that-allows-everything";

pub struct TestApi {
    pub database: std::sync::Arc<TestDatabase>,
    pub port: u16,
    pub shutdown: CancellationToken,
    /// The header that sends the token, if there is one.
    token: Option<(&'static str, String)>,
    pub server: Option<JoinHandle<anyhow::Result<()>>>,
}

impl TestApi {
    /// Starts with a database of its own and waits until the cache is live.
    pub async fn start() -> Self {
        Self::start_with(TestDatabase::create(), |_| {}).await
    }

    pub async fn start_with(database: TestDatabase, change: impl FnOnce(&mut Config)) -> Self {
        let api = Self::start_unready(database.into(), change).await;
        api.wait_until_live().await;
        api
    }

    /// Starts with [`TOKEN`], which whoever comes through a proxy or speaks HTTP/1.0 must send.
    pub async fn start_with_token() -> Self {
        Self::start_with(TestDatabase::create(), |config| {
            config.api_token = Some(Secret::new(TOKEN));
        })
        .await
    }

    pub async fn start_unready(
        database: std::sync::Arc<TestDatabase>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = config(database.settings_as(Role::Api));
        change(&mut config);
        let listener = TcpListener::bind((config.address.0.as_str(), 0))
            .await
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        let shutdown = CancellationToken::new();
        let token = config.api_token.as_ref();
        let token = token.map(|token| ("Authorization", format!("Bearer {}", token.expose())));
        let server = tokio::spawn(api::run(config, listener, shutdown.clone()));
        Self {
            database,
            port,
            shutdown,
            token,
            server: Some(server),
        }
    }

    /// Waits until requests are answered. Unlike [`Self::wait_until_live`] it needs no right to read.
    pub async fn wait_until_ready(&self) {
        eventually("the api is ready", PATIENCE, async || {
            self.get("/readyz").await.json()["detail"] == "ready"
        })
        .await;
    }

    /// Returns the status of an answer, and gives a stream up after it.
    pub async fn status_of(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
        let mut head = request_head(method, path, headers);
        head.push_str("Connection: close\r\n\r\n");
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await;
        read.expect("no answer in time").unwrap();
        let status = answer.strip_prefix(b"HTTP/1.1 ").unwrap();
        str::from_utf8(status).unwrap().parse().unwrap()
    }

    pub async fn wait_until_live(&self) {
        eventually("the cache is live", PATIENCE, async || {
            self.stats().await["listener"]["state"] == "live"
                && self.get("/readyz").await.status == 200
        })
        .await;
    }

    /// Writes an order as another process would, and waits until its event has arrived.
    pub async fn store(&self, order: &Order) {
        let before = self.events().await;
        store(&self.database, order);
        self.wait_for_event_after(before).await;
    }

    /// Returns how many events the listener has received.
    pub async fn events(&self) -> u64 {
        self.stats().await["listener"]["events"].as_u64().unwrap()
    }

    /// Waits until one more event has arrived. Until then the event may still evict an entry.
    pub async fn wait_for_event_after(&self, before: u64) {
        eventually("the event has arrived", PATIENCE, async || {
            self.events().await > before
        })
        .await;
    }

    pub async fn stats(&self) -> Value {
        let token = self
            .token
            .iter()
            .map(|(name, value)| (*name, value.as_str()));
        let headers: Vec<_> = token.collect();
        self.send("GET", "/api/v1/cache/stats", &headers, b"")
            .await
            .json()
    }

    /// Returns the value of a series of `/metrics`, named with its labels; 0 while there is none.
    pub async fn metric(&self, name: &str) -> u64 {
        let metrics = self.get("/metrics").await.body;
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        metrics.lines().find_map(value).unwrap_or(0)
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"").await
    }

    pub async fn put(&self, order: &Order, headers: &[(&str, &str)]) -> Answer {
        let path = format!("/api/v1/orders/{}", order.order_uid);
        let headers = [&[("Content-Type", "application/json")], headers].concat();
        self.send("PUT", &path, &headers, &serde_json::to_vec(order).unwrap())
            .await
    }

    pub async fn post(&self, order: &Order, headers: &[(&str, &str)]) -> Answer {
        let headers = [&[("Content-Type", "application/json")], headers].concat();
        let body = serde_json::to_vec(order).unwrap();
        self.send("POST", "/api/v1/orders", &headers, &body).await
    }

    /// Sends a merge patch of an order.
    pub async fn patch(&self, uid: &str, patch: &str, headers: &[(&str, &str)]) -> Answer {
        let media_type = ("Content-Type", "application/merge-patch+json");
        let headers = [&[media_type], headers].concat();
        let path = format!("/api/v1/orders/{uid}");
        self.send("PATCH", &path, &headers, patch.as_bytes()).await
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let mut head = request_head(method, path, headers);
        let is_chunked = headers.iter().any(|(name, _)| *name == "Transfer-Encoding");
        if !is_chunked && !body.is_empty() {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("Connection: close\r\n\r\n");
        let answer = self.send_bytes(&[head.as_bytes(), body].concat()).await;
        conformity::check(method, path, &answer);
        answer
    }

    /// Sends bytes and reads the answer until the server closes.
    pub async fn send_bytes(&self, bytes: &[u8]) -> Answer {
        send_bytes(self.port, bytes).await
    }

    pub async fn stop(mut self) {
        self.shutdown.cancel();
        self.server.take().unwrap().await.unwrap().unwrap();
    }
}

impl Drop for TestApi {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// The lines of a request before the empty one. `Host` is added if it is missing.
fn request_head(method: &str, path: &str, headers: &[(&str, &str)]) -> String {
    let mut head = format!("{method} {path} HTTP/1.1\r\n");
    let mut names = headers.iter().map(|(name, _)| name);
    if !names.any(|name| name.eq_ignore_ascii_case("host")) {
        head.push_str("Host: localhost\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head
}

/// Connects from another address of this machine. On Linux, all of 127.0.0.0/8 is loopback.
pub async fn connect_from(source: [u8; 4], port: u16) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    socket.connect(([127, 0, 0, 1], port).into()).await.unwrap()
}

/// Asks on a connection that stays open, and reads the answer, whose length must be known. Returns its status.
pub async fn ask_on(stream: &mut TcpStream, path: &str) -> u16 {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(stream.read_line(&mut head).await.unwrap(), 0, "{head}");
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length = length.unwrap().parse().unwrap();
    stream.read_exact(&mut vec![0; length]).await.unwrap();
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Sends bytes to a local port and reads the answer until the server closes.
pub async fn send_bytes(port: u16, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    read.expect("no answer in time").unwrap();
    Answer::parse(&answer)
}

pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (head, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no answer: {text:?}"));
        let mut lines = head.split("\r\n");
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Self {
            status,
            headers,
            body: body.to_owned(),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(each, _)| each.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn headers(&self, name: &str) -> Vec<&str> {
        let found = self.headers.iter().filter(|(each, _)| each == name);
        found.map(|(_, value)| value.as_str()).collect()
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// Returns the status and the code of a problem, and checks its whole form.
    pub fn problem(&self) -> (u16, String) {
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{}",
            self.body
        );
        let problem = self.json();
        assert_eq!(problem["status"], self.status);
        assert_eq!(problem["request_id"].as_str(), self.header("x-request-id"));
        let code = problem["code"].as_str().unwrap().to_owned();
        assert_eq!(problem["type"], format!("urn:order-service:problem:{code}"));
        assert!(
            !problem["title"].as_str().unwrap().is_empty()
                && !problem["detail"].as_str().unwrap().is_empty()
        );
        assert!(problem["errors"].is_array());
        (self.status, code)
    }
}

pub fn config(database: DatabaseSettings) -> Config {
    let arguments = [
        "--db-pool-size=4",
        "--cache-capacity=1000",
        "--cache-warmup=0",
        "--shutdown-timeout-ms=5000",
    ];
    let cli = parse_arguments::<Cli>(&arguments).unwrap();
    Config {
        database,
        ..cli.config().unwrap()
    }
}

pub fn model() -> Order {
    Order::decode(model_json().as_bytes()).unwrap()
}

pub fn generator() -> OrderGenerator {
    OrderGenerator::new(7, "2026-01-01T00:00:00Z".parse().unwrap())
}

/// Writes an order as another process would, including the event.
pub fn store(database: &TestDatabase, order: &Order) {
    let source = Source {
        partition: 0,
        incarnation: 0,
        offset: 1,
    };
    database
        .connect()
        .transaction(|connection| {
            UpsertOrders::new(&[NewOrder::new(order, Some(source))]).execute(connection)?;
            events::notify(Operation::Upsert, [order.order_uid.as_str()]).execute(connection)
        })
        .unwrap();
}

pub fn notify(connection: &mut PgConnection, payload: &str) -> QueryResult<()> {
    diesel::sql_query("SELECT pg_notify($1, $2)")
        .bind::<diesel::sql_types::Text, _>(events::CHANNEL)
        .bind::<diesel::sql_types::Text, _>(payload)
        .execute(connection)
        .map(|_| ())
}

/// A lock that lets nobody else read a table.
pub struct TableLock(PgConnection);

impl TableLock {
    pub fn take(database: &TestDatabase, table: &str) -> Self {
        let mut connection = database.connect();
        let lock = ["BEGIN; LOCK TABLE ", table].concat();
        connection.batch_execute(&lock).unwrap();
        Self(connection)
    }

    pub fn release(mut self) {
        self.0.batch_execute("COMMIT").unwrap();
    }
}

/// Terminates the sessions of all listeners of the database.
pub fn terminate_listener(database: &TestDatabase) {
    database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND application_name = 'orders-api-listener'",
    );
}

/// Runs statements in a database of a private server as its superuser.
pub fn as_superuser(server: &PrivatePostgres, database: &TestDatabase, statements: &str) {
    let connect = format!("\\connect {}\n", database.settings().name);
    let statements = [&connect, statements].concat();
    server.psql_as_superuser(&statements).unwrap();
}
