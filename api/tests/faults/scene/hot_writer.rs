//! One order that is changed thousands of times per second.

use std::time::Duration;

use futures_util::future::join_all;
use shared::db::{set_up_session, tokio_config};
use shared::events::{self, Operation};
use tokio::task::JoinHandle;
use tokio::time::interval;
use tokio_postgres::{Client as Session, NoTls, Statement};
use tokio_util::sync::CancellationToken;

use super::{Scene, uid};
use crate::support::coherence::{Committed, Moment, Write};

/// The number of updates that are sent together, each as a transaction of its own. A session that does not wait for answers
/// commits thousands of times per second.
const BATCH: i64 = 100;
const INTERVAL: Duration = Duration::from_millis(20);
const UPDATE: &str = "UPDATE orders SET payment_amount = $2, items[0]['price'] = to_jsonb($2::bigint), \
                                        version = nextval('order_version_seq') \
                       WHERE order_uid = $1 RETURNING version, pg_notify($3, $4)";

pub struct HotWriter {
    stop: CancellationToken,
    task: JoinHandle<Vec<Write>>,
}

impl HotWriter {
    /// Starts to change order 0, which must exist.
    pub fn start(scene: &Scene, first_sequence: i64) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let config = tokio_config(&scene.database.settings(), "orders-test");
        let start = scene.started;
        let task = tokio::spawn(async move {
            let (session, connection) = config.connect(NoTls).await.unwrap();
            tokio::spawn(connection);
            set_up_session(&session, "").await.unwrap();
            let update = session.prepare(UPDATE).await.unwrap();
            let mut ticks = interval(INTERVAL);
            let mut writes = Vec::new();
            let mut sequence = first_sequence;
            while !stopped.is_cancelled() {
                ticks.tick().await;
                let batch = sequence..sequence + BATCH;
                let updates =
                    batch.map(|sequence| write(&session, &update, sequence, || start.elapsed()));
                writes.extend(join_all(updates).await);
                sequence += BATCH;
            }
            writes
        });
        Self { stop, task }
    }

    pub async fn finish(self) -> Vec<Write> {
        self.stop.cancel();
        self.task.await.unwrap()
    }
}

async fn write(
    session: &Session,
    update: &Statement,
    sequence: i64,
    now: impl Fn() -> Moment,
) -> Write {
    let uid = uid(0);
    let sent = now();
    let payload = events::encode(Operation::Upsert, [uid.as_str()]).remove(0);
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
        [&uid, &sequence, &events::CHANNEL, &payload];
    let row = session.query_one(update, &parameters).await.unwrap();
    Write {
        order: 0,
        sequence: Some(sequence),
        sent,
        committed: Some(Committed {
            version: row.get(0),
            acknowledged: now(),
        }),
    }
}
