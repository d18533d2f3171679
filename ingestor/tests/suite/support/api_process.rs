//! An api in this process, with a client that speaks TCP.

use api::config::{Cli, Config};
use serde_json::Value;
use shared::db::rights::Role;
use shared::testing::{TestDatabase, parse_arguments};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// A running api, which ends with the test.
pub struct Api {
    port: u16,
    _runtime: Runtime,
}

/// The api's answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

impl Api {
    pub fn start(database: &TestDatabase) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let arguments = ["--cache-warmup=1000", "--shutdown-timeout-ms=1000"];
        let cli = parse_arguments::<Cli>(&arguments).unwrap();
        let config = Config {
            database: database.settings_as(Role::Api),
            ..cli.config().unwrap()
        };
        runtime.spawn(api::run(config, listener, CancellationToken::new()));
        Self {
            port,
            _runtime: runtime,
        }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, None)
    }

    pub fn order(&self, uid: &str) -> Answer {
        self.get(&format!("/order/{uid}"))
    }

    pub fn request(&self, method: &str, path: &str, body: Option<&str>) -> Answer {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let response = minreq::Request::new(minreq::Method::Custom(method.to_owned()), url)
            .with_header("content-type", "application/json")
            .with_body(body.unwrap_or_default())
            .with_timeout(15)
            .send()
            .unwrap();
        Answer {
            status: response.status_code,
            body: response.as_str().unwrap().to_owned(),
            headers: response.headers,
        }
    }
}
