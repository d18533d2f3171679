//! Starts an api for the commands of the page, and runs them.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, LazyLock};

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use regex::Regex;
use serde_json::Value;
use shared::testing::{TcpProxy, TestDatabase, eventually};

use super::{ADDRESS, HISTORY};
use crate::support::program::Program;
use crate::support::tokens::TokenFile;
use crate::support::{PATIENCE, generator, model, store};

/// An api whose database has the sample order and three others, and may be broken on purpose.
pub struct Api {
    program: Arc<Program>,
    database: TestDatabase,
    /// The database's history as `ETag`s have it.
    history: String,
    proxy: TcpProxy,
    _tokens: TokenFile,
    lock: Option<PgConnection>,
}

impl Api {
    /// Starts an api with settings, each written as `NAME=value`. `database=...` breaks the database afterwards, and
    /// `shop=SCOPES` makes a file of tokens with one token.
    pub async fn start(setup: &str) -> Self {
        let database = TestDatabase::create();
        store(&database, &model());
        let mut generator = generator();
        for _ in 0..3 {
            store(&database, &generator.next_order());
        }
        let server = database.settings();
        let proxy = TcpProxy::start(&server.host, server.port).await;
        let proxy_port = proxy.port().to_string();
        let words = setup.split(' ').filter_map(|word| word.split_once('='));
        let (ailments, words): (Vec<_>, Vec<_>) = words.partition(|(name, _)| *name == "database");
        let (shops, mut settings): (Vec<_>, Vec<_>) =
            words.into_iter().partition(|(name, _)| *name == "shop");
        let tokens = TokenFile::new(&shops);
        if !shops.is_empty() {
            settings.push(("API_TOKENS_FILE", tokens.path.to_str().unwrap()));
        }
        settings.extend([("DB_HOST", "127.0.0.1"), ("DB_PORT", &*proxy_port)]);
        let mut api = Self {
            program: Arc::new(Program::start(&database, &settings).await),
            history: format!("{:016x}", database.history().0),
            database,
            proxy,
            _tokens: tokens,
            lock: None,
        };
        for (_, ailment) in ailments {
            api.let_database_ail(ailment).await;
        }
        api
    }

    async fn let_database_ail(&mut self, ailment: &str) {
        match ailment {
            "away" => {
                self.proxy.cut();
                eventually("it is noticed", PATIENCE, async || {
                    self.stats().await["listener"]["state"] != "live"
                })
                .await;
            }
            // Without the table itself, the listener would soon take the database for another one.
            "broken" => self
                .database
                .execute("ALTER TABLE orders RENAME COLUMN locale TO renamed"),
            "locked" => self.lock_orders(),
            "crowded" => {
                self.lock_orders();
                let before = self.stats().await["loads"]["started"].as_u64();
                let program = Arc::clone(&self.program);
                tokio::spawn(async move { program.send(&get("/order/absent")).await });
                eventually("the only connection is taken", PATIENCE, async || {
                    self.stats().await["loads"]["started"].as_u64() > before
                })
                .await;
            }
            other => panic!("database={other} is not known"),
        }
    }

    fn lock_orders(&mut self) {
        let mut lock = self.database.connect();
        lock.batch_execute("BEGIN; LOCK TABLE orders").unwrap();
        self.lock = Some(lock);
    }

    async fn stats(&self) -> Value {
        self.program.send(&get("/api/v1/cache/stats")).await.json()
    }

    /// Runs a command as readers of the page would, and waits until the cache has received the events of its writes.
    pub async fn output_of(&self, command: &str) -> String {
        if !(command.contains("-X PUT") || command.contains("-X DELETE")) {
            return self.run(command).await;
        }
        let before = self.stats().await["listener"]["events"].as_u64();
        let output = self.run(command).await;
        if command.contains("/api/v1/orders/") && output.starts_with("HTTP/1.1 20") {
            eventually("the event has come", PATIENCE, async || {
                self.stats().await["listener"]["events"].as_u64() > before
            })
            .await;
        }
        output
    }

    /// Returns what a command prints, without the progress that curl shows.
    async fn run(&self, command: &str) -> String {
        let address = format!("localhost:{}", self.program.port);
        let command = command
            .replace(ADDRESS, &address)
            .replace(HISTORY, &self.history);
        let mut shell = Command::new("bash");
        shell
            .args(["-c", &command])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            // Ignores the curl settings of the developer.
            .env("CURL_HOME", env!("CARGO_TARGET_TMPDIR"))
            .env("no_proxy", "*");
        let ended = tokio::task::spawn_blocking(move || shell.output());
        let output = ended.await.unwrap().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(
            !printed.is_empty(),
            "{command} has printed nothing: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        printed
            .replace('\r', "")
            .replace(&address, ADDRESS)
            .replace(&self.history, HISTORY)
            .trim_end()
            .to_owned()
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

/// Removes from an output what differs from run to run: request ids, dates, times, counts of background work, and what
/// changes with the files of the web page or with the version.
pub fn without_what_varies(output: &str) -> String {
    static VARYING: LazyLock<Regex> = LazyLock::new(|| {
        let patterns = [
            "^(date|x-request-id|age|content-length): .*$",
            "^etag: (W/)?\"[0-9a-f]{16}\"$",
            "dur=[0-9.]+",
            "^id: [0-9a-f]{16}-[0-9]+$",
            "^(retry-after: |ratelimit: .*t=)[0-9]{2}$",
            "\"(request_id|started_at|version)\":\"[^\"]*\"",
            "\"(proof_age_ms|duration_ms|checked|blind_seconds_total)\":[0-9.]+",
            "\"state\":\"(starting|connecting|subscribing|syncing|suspect)\"",
        ];
        Regex::new(&format!("(?m){}", patterns.join("|"))).unwrap()
    });
    VARYING.replace_all(output, "...").into_owned()
}
