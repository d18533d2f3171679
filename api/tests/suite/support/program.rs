//! Runs the program in a process of its own, with its own memory and log.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command};

use servers::ports::free_port;
use shared::db::rights::Role;
use shared::testing::{TestDatabase, eventually};
use tokio::net::TcpStream;

use super::{Answer, PATIENCE, send_bytes};

pub struct Program {
    pub process: Child,
    pub port: u16,
    /// The log goes to a file, because a pipe that nobody reads would block the program.
    log: PathBuf,
}

impl Program {
    /// Starts the program with additional settings and waits until it is ready.
    pub async fn start(database: &TestDatabase, settings: &[(&str, &str)]) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_api")), database, settings).await
    }

    /// Starts the program by a command that executes it.
    pub async fn start_by(
        command: Command,
        database: &TestDatabase,
        settings: &[(&str, &str)],
    ) -> Self {
        let program = Self::start_unready(command, database, settings).await;
        program.wait_until_ready().await;
        program
    }

    /// The same, without waiting until it is ready.
    pub async fn start_unready(
        command: Command,
        database: &TestDatabase,
        settings: &[(&str, &str)],
    ) -> Self {
        Self::start_on(free_port().unwrap(), command, database, settings)
    }

    /// Starts the program on a port, and does not wait.
    pub fn start_on(
        port: u16,
        mut command: Command,
        database: &TestDatabase,
        settings: &[(&str, &str)],
    ) -> Self {
        let server = database.settings_as(Role::Api);
        let log = std::env::temp_dir().join(format!("api-{}.log", uuid::Uuid::new_v4()));
        let process = command
            .env("DB_HOST", &server.host)
            .env("DB_PORT", server.port.to_string())
            .env("DB_USER", &server.user)
            .env("DB_PASSWORD", server.password.expose())
            .env("DB_NAME", &server.name)
            .env("SERVER_PORT", port.to_string())
            .env("OPS_PORT", "0")
            .envs(settings.iter().copied())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { process, port, log }
    }

    pub async fn wait_until_ready(&self) {
        eventually("the program is ready", PATIENCE, async || {
            TcpStream::connect(("127.0.0.1", self.port)).await.is_ok()
                && self.get("/readyz").await.status == 200
        })
        .await;
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        ))
        .await
    }

    /// Sends a request that asks the server to close the connection.
    pub async fn send(&self, request: &str) -> Answer {
        send_bytes(self.port, request.as_bytes()).await
    }

    pub async fn wait_until_logged(&self, text: &str) {
        self.wait_until_logged_times(text, 1).await;
    }

    pub async fn wait_until_logged_times(&self, text: &str, times: usize) {
        let description = format!("{text:?} is in the log {times} times");
        eventually(&description, PATIENCE, async || {
            self.read_log().matches(text).count() >= times
        })
        .await;
    }

    /// Stops the program and returns its log.
    pub fn log(mut self) -> String {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.read_log()
    }

    pub fn read_log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        if std::thread::panicking() {
            eprintln!("log of the program:\n{}", self.read_log());
        }
        fs::remove_file(&self.log).ok();
    }
}
