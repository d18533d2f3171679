//! Two servers that both take writes: a primary, and a standby of it that was promoted. A proxy decides which of them a new
//! connection reaches. Connections that are up stay where they are.

use std::mem;
use std::sync::{Arc, Mutex};

use api::cache::listener::APPLICATION_NAME as LISTENER;
use api::config::Config;
use api::repository::APPLICATION_NAME as POOL;
use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use servers::postgres::{Options, PrivatePostgres};
use shared::config::DatabaseSettings;
use shared::db::connect_blocking;
use shared::testing::{TcpProxy, TestDatabase, settings_of};
use tokio::task::block_in_place;

use super::{Answer, TestApi, generator, store};

pub const UIDS: [&str; 4] = ["uid-1", "uid-2", "uid-3", "uid-4"];
/// What both servers hold before they part.
pub const COMMON: &str = "common";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    Former,
    Promoted,
}

pub struct Split {
    pub link: TcpProxy,
    /// On the former primary.
    pub database: Arc<TestDatabase>,
    former: PrivatePostgres,
    promoted: PrivatePostgres,
    routes: Arc<Mutex<Routes>>,
}

/// The ports that new connections reach.
#[derive(Clone, Copy)]
struct Routes {
    listener: u16,
    others: u16,
    /// Whether the next connection belongs to the listener, too: from there it notifies itself.
    is_listeners: bool,
}

impl Routes {
    fn route(&mut self, beginning: &str) -> u16 {
        let is_listeners = mem::take(&mut self.is_listeners);
        if beginning.contains(LISTENER) {
            self.is_listeners = true;
            self.listener
        } else if is_listeners {
            self.listener
        } else {
            self.others
        }
    }
}

impl Split {
    /// Starts both servers with the same orders. From then on they draw the same versions for different changes. Connections
    /// reach the former primary.
    pub async fn start() -> Self {
        let (former, promoted, database) = block_in_place(|| {
            let former = PrivatePostgres::start(&Options::default()).unwrap();
            let database = TestDatabase::create_on(settings_of(&former));
            let mut orders = generator();
            for uid in UIDS {
                let mut order = orders.order_with_uid(uid);
                order.delivery.city = COMMON.into();
                store(&database, &order);
            }
            let promoted = former.start_standby().unwrap();
            promoted.promote().unwrap();
            (former, promoted, database)
        });
        let routes = Arc::new(Mutex::new(Routes {
            listener: former.port(),
            others: former.port(),
            is_listeners: false,
        }));
        let asked = Arc::clone(&routes);
        let link = TcpProxy::start_routed(move |beginning| asked.lock().unwrap().route(beginning));
        let split = Self {
            link: link.await,
            database: Arc::new(database),
            former,
            promoted,
            routes,
        };
        for server in [Server::Former, Server::Promoted] {
            let same_versions = "SELECT setval('order_version_seq', 1000)";
            split.connect(server).batch_execute(same_versions).unwrap();
        }
        split
    }

    /// Starts an api that reaches the servers through the proxy.
    pub async fn start_api(&self, change: impl FnOnce(&mut Config)) -> TestApi {
        TestApi::start_unready(Arc::clone(&self.database), |config| {
            config.database.port = self.link.port();
            change(config);
        })
        .await
    }

    /// Lets new connections of the listener and of the pool reach these servers.
    pub fn route(&self, listener: Server, others: Server) {
        let mut routes = self.routes.lock().unwrap();
        routes.listener = self.server(listener).port();
        routes.others = self.server(others).port();
    }

    /// Changes an order, as somebody with `psql` does. It gets the next version of this server.
    pub fn write(&self, server: Server, uid: &str, city: &str) {
        let write = format!("UPDATE orders SET delivery_city = '{city}' WHERE order_uid = '{uid}'");
        let foreign = "SET orders.emits = 'off'; ";
        self.connect(server)
            .batch_execute(&[foreign, &write].concat())
            .unwrap();
    }

    /// Ends the sessions of the pool on a server.
    pub fn end_pool(&self, server: Server) {
        let end = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND application_name = '{POOL}'"
        );
        self.connect(server).batch_execute(&end).unwrap();
    }

    pub fn connect(&self, server: Server) -> PgConnection {
        let settings = DatabaseSettings {
            port: self.server(server).port(),
            ..self.database.settings()
        };
        connect_blocking(&settings, "orders-test").unwrap()
    }

    fn server(&self, server: Server) -> &PrivatePostgres {
        match server {
            Server::Former => &self.former,
            Server::Promoted => &self.promoted,
        }
    }
}

/// The city in an order, and whether the order came from the cache; `None` if the database gave no answer.
pub fn city(answer: &Answer) -> Option<(String, bool)> {
    if matches!(answer.status, 503 | 504) {
        return None;
    }
    let city = answer.json()["delivery"]["city"].as_str()?.to_owned();
    let is_hit = answer.header("cache-status") == Some("orders; hit");
    Some((city, is_hit))
}
