//! A COMMIT hangs, and with it every other one that notifies. The api gives up and tries again for as long as that lasts.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use servers::postgres::{Options, PrivatePostgres};
use shared::order::Order;
use shared::testing::{TestDatabase, eventually, settings_of};
use tokio::task::block_in_place;

use crate::support::missing_standby::{MissingStandby, hang_in_commit, sessions};
use crate::support::program::Program;
use crate::support::{PATIENCE, generator, store};

/// The default of `DB_POOL_SIZE`.
const POOL: i64 = 8;
/// The pool, the listener, the session that it asks to notify it, and some that are about to end.
const MOST_SESSIONS: i64 = POOL + 2 + 4;
const RECONNECTS: usize = 20;
const PUTS: usize = 20;
/// A reconnect takes five seconds and a wait of at most two.
const RECONNECTED_WITHIN: Duration = Duration::from_secs(400);
const LISTENERS: &str = "SELECT pid::text AS value FROM pg_stat_activity \
                         WHERE datname = current_database() AND application_name = 'orders-api-listener'";

/// The orders that are replaced. None of them waits for the row of another one.
fn replaced() -> Vec<Order> {
    let mut orders = generator();
    let uids = (0..PUTS).map(|number| format!("put-{number}"));
    uids.map(|uid| orders.order_with_uid(&uid)).collect()
}

fn put(order: &Order) -> String {
    let body = serde_json::to_string(order).unwrap();
    let uid = &order.order_uid;
    format!(
        "PUT /api/v1/orders/{uid} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn puts_time_out(program: &Program) {
    let puts: Vec<String> = replaced().iter().map(put).collect();
    for answer in join_all(puts.iter().map(|put| program.send(put))).await {
        assert!(matches!(answer.status, 503 | 504), "{}", answer.body);
    }
}

async fn is_live(program: &Program) -> bool {
    let stats = program.get("/api/v1/cache/stats").await.json();
    let put = put(&replaced()[0]);
    stats["listener"]["state"] == "live" && program.send(&put).await.status == 200
}

async fn start() -> (Arc<PrivatePostgres>, Arc<TestDatabase>, Program) {
    let server = block_in_place(|| PrivatePostgres::start(&Options::default())).unwrap();
    let database = TestDatabase::create_on(settings_of(&server));
    for order in replaced() {
        store(&database, &order);
    }
    store(&database, &generator().order_with_uid("by-hand"));
    let program = Program::start(&database, &[]).await;
    program.wait_until_logged("listener is live").await;
    (Arc::new(server), Arc::new(database), program)
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_reconnects_and_twenty_puts_leave_no_sessions_behind_a_commit_that_hangs() {
    let (server, database, program) = start().await;
    let missing = MissingStandby::begin(&server);
    let hanging = hang_in_commit(&database, "by-hand").await;
    let (mut listeners, mut most) = (HashSet::new(), 0);
    let started = Instant::now();
    let watching = eventually("it has reconnected", RECONNECTED_WITHIN, async || {
        listeners.extend(database.texts(LISTENERS));
        most = most.max(sessions(&database));
        listeners.len() > RECONNECTS
    });
    tokio::join!(watching, puts_time_out(&program));
    println!(
        "{} reconnects in {:?}, at most {most} sessions",
        listeners.len() - 1,
        started.elapsed()
    );
    assert!(most <= MOST_SESSIONS, "{most} sessions");

    drop(missing);
    hanging.await.unwrap();
    eventually("all is well again", PATIENCE, async || {
        is_live(&program).await
    })
    .await;
    assert!(sessions(&database) <= POOL + 1);
}

/// Here a COMMIT of the api itself is the one that hangs: that of a PUT or that of a heartbeat.
#[tokio::test(flavor = "multi_thread")]
async fn own_commits_that_hang_leave_no_sessions_behind() {
    let (server, database, program) = start().await;
    let missing = MissingStandby::begin(&server);
    let mut most = 0;
    let started = Instant::now();
    let watching = async {
        while started.elapsed() < Duration::from_secs(60) {
            most = most.max(sessions(&database));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let putting = async {
        for _ in 0..3 {
            puts_time_out(&program).await;
        }
    };
    tokio::join!(watching, putting);
    println!("at most {most} sessions");
    assert!(most <= MOST_SESSIONS, "{most} sessions");
    drop(missing);
    eventually("all is well again", PATIENCE, async || {
        is_live(&program).await
    })
    .await;
    assert!(sessions(&database) <= POOL + 1);
}
