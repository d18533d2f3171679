//! Two processes of the program on one database, writers that change its orders in every possible way, readers that record
//! their answers, and a link that can be broken.

mod client;
mod event_flood;
mod hot_writer;
mod readers;
mod writers;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use servers::postgres::PrivatePostgres;
use shared::config::DatabaseSettings;
use shared::testing::{TcpProxy, TestDatabase, eventually, settings_of};

use crate::support::coherence::{History, Judgement, Moment, Seen};
use crate::support::program::Program;
use crate::support::{model, store};
use client::{Answer, Client};
pub use event_flood::EventFlood;
pub use hot_writer::HotWriter;
pub use readers::Readers;
pub use writers::{Writers, reissue, truncate};

/// The promised age of an answer: the default of `CACHE_LEASE_MS`.
pub const LEASE: Duration = Duration::from_secs(5);
/// How long after a fault no trace of it may be left.
const HEALING: Duration = Duration::from_secs(30);
/// The number of orders is small, so that each is read and written often.
pub const ORDERS: usize = 40;
/// The largest number of violations that are shown.
const SHOWN: usize = 20;

pub struct Scene {
    pub database: TestDatabase,
    /// Between the programs and the database.
    pub link: TcpProxy,
    /// Between the writers and the database.
    pub writers_link: TcpProxy,
    pub programs: [Program; 2],
    started: Instant,
}

impl Scene {
    pub async fn start() -> Self {
        Self::start_on(TestDatabase::create()).await
    }

    /// Starts on this server.
    pub async fn start_on_server(server: &PrivatePostgres) -> Self {
        Self::start_on(TestDatabase::create_on(settings_of(server))).await
    }

    async fn start_on(database: TestDatabase) -> Self {
        store(&database, &model());
        database
            .execute("CREATE TABLE template_orders AS SELECT * FROM orders; DELETE FROM orders");
        let DatabaseSettings { host, port, .. } = database.settings();
        let link = TcpProxy::start(&host, port).await;
        let writers_link = TcpProxy::start(&host, port).await;
        let link_port = link.port().to_string();
        let settings = [
            ("DB_HOST", "127.0.0.1"),
            ("DB_PORT", &link_port),
            ("RUST_LOG", "warn,api::cache=info"),
        ];
        let small = [&settings[..], &[("CACHE_CAPACITY", "16")]].concat();
        let programs = [
            Program::start(&database, &settings).await,
            Program::start(&database, &small).await,
        ];
        for program in &programs {
            program.wait_until_logged("listener is live").await;
        }
        Self {
            database,
            link,
            writers_link,
            programs,
            started: Instant::now(),
        }
    }

    pub fn now(&self) -> Moment {
        self.started.elapsed()
    }

    pub fn signal(&self, program: usize, signal: Signal) {
        kill_process(Pid::from_child(&self.programs[program].process), signal).unwrap();
    }

    /// The statistics of both processes.
    pub async fn stats(&self) -> [Value; 2] {
        let request =
            "GET /api/v1/cache/stats HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let [one, two] = &self.programs;
        [
            one.send(request).await.json(),
            two.send(request).await.json(),
        ]
    }

    fn ports(&self) -> [u16; 2] {
        self.programs.each_ref().map(|program| program.port)
    }

    /// Ends the load, demands that no trace of the fault is left, and returns what was written and seen.
    pub async fn conclude(&self, writers: Writers, readers: Readers) -> History {
        let mut history = writers.finish().await;
        self.assert_converged().await;
        history.observations.extend(readers.finish().await);
        assert!(hits(&history) > 50, "too few hits to prove anything");
        history
    }

    /// Waits until every process has answered each order from its cache as the table holds it, for as long as healing may take.
    pub async fn assert_converged(&self) {
        for port in self.ports() {
            // Not all at once: the cache of the second process does not hold all orders, and the readers evict some meanwhile.
            // If an order were answered wrongly later, the judge of the history would see it.
            let mut missing: Vec<usize> = (0..ORDERS).collect();
            eventually("the cache equals the table", HEALING, async || {
                // Read each time: a write that the process has begun may still end.
                let rows = self.rows();
                let mut client = Client::new(port);
                let mut still_missing = Vec::new();
                for order in missing.drain(..) {
                    let uid = uid(order);
                    // The first request may fill the cache.
                    client.order(&uid).await.ok();
                    let is_equal = match client.order(&uid).await {
                        Ok(Answer::Order { seen, is_hit: true }) => {
                            seen.as_ref() == rows.get(&order)
                        }
                        _ => false,
                    };
                    if !is_equal {
                        still_missing.push(order);
                    }
                }
                missing = still_missing;
                missing.is_empty()
            })
            .await;
        }
    }

    /// What the table holds, for each order that exists.
    pub fn rows(&self) -> BTreeMap<usize, Seen> {
        let rows = self.database.texts(
            "SELECT concat_ws(' ', substr(order_uid, 7), version, payment_amount, price) AS value \
             FROM orders JOIN order_items USING (order_uid) WHERE position = 0",
        );
        let rows = rows.iter().map(|row| {
            let numbers: Vec<i64> = row.split(' ').map(|part| part.parse().unwrap()).collect();
            let seen = Seen {
                version: numbers[1],
                sequence: numbers[2],
                item_sequence: numbers[3],
            };
            (usize::try_from(numbers[0]).unwrap(), seen)
        });
        rows.collect()
    }
}

/// Fails if a promise was broken, and shows the first violations. Prints how much was seen.
#[track_caller]
pub fn assert_kept(history: &History) {
    let Judgement { violations, oldest } = history.judge(LEASE);
    println!(
        "{} writes, {} answers, {} of them out of a cache, the oldest {oldest:?} old",
        history.writes.len(),
        history.observations.len(),
        hits(history),
    );
    assert!(
        violations.is_empty(),
        "{} violations, the first are {:#?}",
        violations.len(),
        &violations[..violations.len().min(SHOWN)]
    );
    assert!(
        history.writes.len() > 100 && history.observations.len() > 500,
        "too little to prove anything"
    );
}

fn hits(history: &History) -> usize {
    let answers = history.observations.iter();
    answers.filter(|observation| observation.is_hit).count()
}

fn uid(order: usize) -> String {
    format!("order-{order}")
}
