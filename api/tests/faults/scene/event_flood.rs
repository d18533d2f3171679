//! Events of orders that nobody reads, at the rate of a busy ingestor.

use std::time::Duration;

use shared::db::tokio_config;
use tokio::task::JoinHandle;
use tokio::time::interval;
use tokio_postgres::NoTls;
use tokio_util::sync::CancellationToken;

use super::Scene;

/// Twenty events per commit, and a hundred commits per second.
const EVENTS: u64 = 20;
const INTERVAL: Duration = Duration::from_millis(10);
/// Each event is about 1,700 bytes long.
const NOTIFY: &str = "SELECT pg_notify('order_events', '{\"v\":1,\"op\":\"upsert\",\"uids\":[\"flood-' || number || \
                      repeat('\",\"flood-aaaaaaaaaa', 90) || '\"]}') FROM generate_series(1, 20) number";

pub struct EventFlood {
    stop: CancellationToken,
    task: JoinHandle<u64>,
}

impl EventFlood {
    pub fn start(scene: &Scene) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let config = tokio_config(&scene.database.settings(), "orders-test");
        let task = tokio::spawn(async move {
            let (session, connection) = config.connect(NoTls).await.unwrap();
            tokio::spawn(connection);
            let mut ticks = interval(INTERVAL);
            let mut events = 0;
            while !stopped.is_cancelled() {
                ticks.tick().await;
                session.batch_execute(NOTIFY).await.unwrap();
                events += EVENTS;
            }
            events
        });
        Self { stop, task }
    }

    /// Stops the flood, and returns how many events were sent.
    pub async fn finish(self) -> u64 {
        self.stop.cancel();
        self.task.await.unwrap()
    }
}
