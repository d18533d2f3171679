//! Writers with orders of their own. They write like the ingestor, through the api, and by hand.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use shared::config::DatabaseSettings;
use shared::db::{set_up_session, tokio_config};
use shared::events::{self, Operation};
use shared::order::Order;
use tokio::task::JoinHandle;
use tokio_postgres::{Client as Session, NoTls, Transaction};
use tokio_util::sync::CancellationToken;

use super::client::{Answer, Client};
use super::{ORDERS, Scene, uid};
use crate::support::coherence::{Committed, History, Observation, Write};
use crate::support::model;

const WRITERS: usize = 4;
/// How long a writer waits for an answer before it counts the outcome as unknown.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The pause between two attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// How people change the items of the order `$1` by hand. After each of these groups of statements, `$2` is the price of the
/// first item.
const CHANGES_OF_ITEMS: [&[&str]; 5] = [
    &["UPDATE orders SET items[0]['price'] = to_jsonb($2::bigint) WHERE order_uid = $1"],
    &[
        "UPDATE orders SET items = jsonb_set(items, '{0,price}', to_jsonb($2::bigint)) WHERE order_uid = $1",
    ],
    // An item is added at the end.
    &[
        "UPDATE orders SET items = items || jsonb_set(items[0], '{price}', to_jsonb($2::bigint)) WHERE order_uid = $1",
        "UPDATE orders SET items[0] = items[-1] WHERE order_uid = $1",
    ],
    // A new item is added behind the first one, and then the first one is removed.
    &[
        "UPDATE orders SET items = jsonb_insert(items, '{1}', items[0] || jsonb_build_object('price', $2::bigint)) \
          WHERE order_uid = $1",
        "UPDATE orders SET items = items - 0 WHERE order_uid = $1",
    ],
    &[
        "UPDATE orders SET items = jsonb_build_array(items[0] || jsonb_build_object('price', $2::bigint)) WHERE order_uid = $1",
    ],
];

/// How an order is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A row and its event in one transaction, by a session that says that it emits events.
    AsIngestor,
    /// PUT to the process with this number.
    Put(usize),
    /// UPDATE by a session that does not emit events.
    Foreign,
    /// DELETE by such a session. The next write brings the order back.
    ForeignDelete,
}

pub struct Writers {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<Writer>>,
}

impl Writers {
    /// Starts the writers, each with this pause between two writes.
    pub fn start(scene: &Scene, pause: Duration) -> Self {
        Self::start_from(scene, pause, 1)
    }

    /// Does what [`Self::start`] does, with later sequence numbers.
    pub fn start_from(scene: &Scene, pause: Duration, first_sequence: i64) -> Self {
        let stop = CancellationToken::new();
        let tasks = (0..WRITERS)
            .map(|number| {
                let writer = Writer::new(scene, first_sequence);
                tokio::spawn(writer.run(number, pause, stop.clone()))
            })
            .collect();
        Self { stop, tasks }
    }

    /// Stops the writers, and returns what they wrote and what PUT answered.
    pub async fn finish(self) -> History {
        self.stop.cancel();
        let mut history = History::default();
        for task in self.tasks {
            let writer = task.await.unwrap();
            history.writes.extend(writer.history.writes);
            history.observations.extend(writer.history.observations);
        }
        history
    }
}

/// Writes an order with a version that was already given out in a history that was lost.
pub async fn reissue(scene: &Scene, order: usize, version: i64, sequence: i64) {
    let mut writer = Writer::new(scene, sequence);
    let session = writer.session(true).await.unwrap();
    let before = "SELECT setval('order_version_seq', $1::bigint - 1)";
    session.execute(before, &[&version]).await.unwrap();
    let written = write_by_hand(session, Kind::AsIngestor, order, sequence).await;
    assert_eq!(written.unwrap(), Some(version));
}

/// Empties the table, by a session that says that it emits events or by one that does not.
pub async fn truncate(scene: &Scene, emits: bool) -> Vec<Write> {
    let mut writer = Writer::new(scene, 1);
    let sent = scene.now();
    let session = writer.session(emits).await.unwrap();
    let transaction = session.transaction().await.unwrap();
    transaction.execute("TRUNCATE orders", &[]).await.unwrap();
    let draw = "SELECT nextval('order_version_seq')";
    let version = transaction.query_one(draw, &[]).await.unwrap().get(0);
    transaction.commit().await.unwrap();
    let committed = Some(Committed {
        version,
        acknowledged: scene.now(),
    });
    let deletion = |order| Write {
        order,
        sequence: None,
        sent,
        committed,
    };
    (0..ORDERS).map(deletion).collect()
}

struct Writer {
    database: DatabaseSettings,
    start: Instant,
    ports: [u16; 2],
    /// The sessions, by whether they emit events.
    sessions: HashMap<bool, Session>,
    next_sequence: i64,
    history: History,
}

impl Writer {
    fn new(scene: &Scene, first_sequence: i64) -> Self {
        Self {
            database: DatabaseSettings {
                host: "127.0.0.1".to_owned(),
                port: scene.writers_link.port(),
                ..scene.database.settings()
            },
            start: scene.started,
            ports: scene.ports(),
            sessions: HashMap::new(),
            next_sequence: first_sequence,
            history: History::default(),
        }
    }

    async fn run(mut self, number: usize, pause: Duration, stop: CancellationToken) -> Self {
        let orders: Vec<usize> = (number..ORDERS).step_by(WRITERS).collect();
        for order in &orders {
            // At first the order does not exist, which is the oldest of its states.
            self.history.writes.push(Write {
                order: *order,
                sequence: None,
                sent: Duration::ZERO,
                committed: Some(Committed {
                    version: 0,
                    acknowledged: Duration::ZERO,
                }),
            });
            self.write(*order, Kind::AsIngestor).await;
        }
        while !stop.is_cancelled() {
            let kind = match fastrand::u8(0..100) {
                0..60 => Kind::AsIngestor,
                60..80 => Kind::Put(fastrand::usize(0..2)),
                80..98 => Kind::Foreign,
                _ => Kind::ForeignDelete,
            };
            let order = orders[fastrand::usize(0..orders.len())];
            self.write(order, kind).await;
            tokio::time::sleep(pause).await;
        }
        self
    }

    async fn write(&mut self, order: usize, kind: Kind) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let sent = self.start.elapsed();
        let outcome = match kind {
            Kind::Put(process) => self.put(process, order, sequence).await,
            _ => match self.session(kind == Kind::AsIngestor).await {
                Some(session) => {
                    let written = write_by_hand(session, kind, order, sequence);
                    match tokio::time::timeout(TIMEOUT, written).await {
                        Ok(Ok(version)) => Outcome::of(version),
                        _ => {
                            self.sessions.remove(&(kind == Kind::AsIngestor));
                            Outcome::Unknown
                        }
                    }
                }
                None => Outcome::Nothing,
            },
        };
        let acknowledged = self.start.elapsed();
        let committed = match outcome {
            Outcome::Nothing => return,
            Outcome::Unknown => None,
            Outcome::Version(version) => Some(Committed {
                version,
                acknowledged,
            }),
        };
        self.history.writes.push(Write {
            order,
            sequence: (kind != Kind::ForeignDelete).then_some(sequence),
            sent,
            committed,
        });
    }

    /// Returns a session if the server can be reached.
    async fn session(&mut self, emits: bool) -> Option<&mut Session> {
        if !self.sessions.contains_key(&emits) {
            let config = tokio_config(&self.database, "orders-test");
            let connecting = async {
                let (session, connection) = config.connect(NoTls).await?;
                tokio::spawn(connection);
                if emits {
                    set_up_session(&session, "").await?;
                }
                anyhow::Ok(session)
            };
            let Ok(Ok(session)) = tokio::time::timeout(TIMEOUT, connecting).await else {
                tokio::time::sleep(RECONNECT_PAUSE).await;
                return None;
            };
            self.sessions.insert(emits, session);
        }
        self.sessions.get_mut(&emits)
    }

    async fn put(&mut self, process: usize, order: usize, sequence: i64) -> Outcome {
        let body = serde_json::to_string(&numbered(order, sequence)).unwrap();
        let mut client = Client::new(self.ports[process]);
        let started = self.start.elapsed();
        let answer = client.put(&uid(order), &body, TIMEOUT).await;
        let Ok(Answer::Order { seen, .. }) = answer else {
            return Outcome::Unknown;
        };
        // From now on this process must not answer with an older version.
        if seen.is_some() {
            self.history.observations.push(Observation {
                process,
                order,
                started,
                ended: self.start.elapsed(),
                seen,
                is_hit: false,
            });
        }
        Outcome::of(seen.map(|seen| seen.version))
    }
}

enum Outcome {
    /// Nothing was changed for certain.
    Nothing,
    Unknown,
    Version(i64),
}

impl Outcome {
    fn of(version: Option<i64>) -> Self {
        version.map_or(Self::Nothing, Self::Version)
    }
}

fn numbered(order: usize, sequence: i64) -> Order {
    let mut numbered = model();
    numbered.order_uid = uid(order).parse().unwrap();
    numbered.payment.amount = sequence;
    numbered.items[0].price = sequence;
    numbered
}

/// Writes the order, and returns its new version; `None` if there was nothing to change.
async fn write_by_hand(
    session: &mut Session,
    kind: Kind,
    order: usize,
    sequence: i64,
) -> Result<Option<i64>, tokio_postgres::Error> {
    let uid = uid(order);
    let transaction = session.transaction().await?;
    let version = match kind {
        Kind::Foreign => update_by_hand(&transaction, &uid, sequence).await?,
        Kind::ForeignDelete => delete_by_hand(&transaction, &uid).await?,
        Kind::AsIngestor | Kind::Put(_) => {
            Some(store_and_emit(&transaction, &uid, sequence).await?)
        }
    };
    transaction.commit().await?;
    Ok(version)
}

async fn store_and_emit(
    transaction: &Transaction<'_>,
    uid: &str,
    sequence: i64,
) -> Result<i64, tokio_postgres::Error> {
    let update = "UPDATE orders SET payment_amount = $2, items = jsonb_set(template_items, '{0,price}', to_jsonb($2::bigint)), \
                         version = nextval('order_version_seq') \
                    FROM (SELECT items AS template_items FROM template_orders) AS template \
                   WHERE order_uid = $1 RETURNING version";
    let updated = transaction.query_opt(update, &[&uid, &sequence]).await?;
    let row = match updated {
        Some(row) => row,
        None => {
            let insert = "INSERT INTO orders SELECT copied.* FROM template_orders, \
                          LATERAL jsonb_populate_record(template_orders, jsonb_build_object( \
                              'order_uid', $1::text, 'payment_amount', $2::bigint, \
                              'items', jsonb_set(items, '{0,price}', to_jsonb($2::bigint)), \
                              'version', nextval('order_version_seq'))) copied RETURNING version";
            transaction.query_one(insert, &[&uid, &sequence]).await?
        }
    };
    let notify = "SELECT pg_notify($1, $2)";
    for payload in events::encode(Operation::Upsert, [uid]) {
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] =
            [&events::CHANNEL, &payload];
        transaction.execute(notify, &parameters).await?;
    }
    Ok(row.get(0))
}

async fn update_by_hand(
    transaction: &Transaction<'_>,
    uid: &str,
    sequence: i64,
) -> Result<Option<i64>, tokio_postgres::Error> {
    let update = "UPDATE orders SET payment_amount = $2 WHERE order_uid = $1";
    let changes = CHANGES_OF_ITEMS[fastrand::usize(0..CHANGES_OF_ITEMS.len())];
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&uid, &sequence];
    for statement in [&[update], changes].concat() {
        let used = if statement.contains("$2") { 2 } else { 1 };
        transaction.execute(statement, &parameters[..used]).await?;
    }
    let version = "SELECT version FROM orders WHERE order_uid = $1";
    let row = transaction.query_opt(version, &[&uid]).await?;
    Ok(row.map(|row| row.get(0)))
}

async fn delete_by_hand(
    transaction: &Transaction<'_>,
    uid: &str,
) -> Result<Option<i64>, tokio_postgres::Error> {
    let delete = "DELETE FROM orders WHERE order_uid = $1";
    if transaction.execute(delete, &[&uid]).await? == 0 {
        return Ok(None);
    }
    let draw = "SELECT nextval('order_version_seq')";
    let row = transaction.query_one(draw, &[]).await?;
    Ok(Some(row.get(0)))
}
