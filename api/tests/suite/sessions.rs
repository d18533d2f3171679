//! The sessions of the api: how many there are, and whether they may write.

use std::sync::Arc;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use futures_util::future::join_all;
use servers::postgres::{Options, PrivatePostgres};
use shared::testing::{TestDatabase, eventually, settings_of};
use tokio::task::block_in_place;

use crate::support::missing_standby::{MissingStandby, hang_in_commit, sessions};
use crate::support::{PATIENCE, TestApi, generator, model, store};

const MODEL: &str = "/order/b563feb7b2b84b6test";

/// The pool, the listener, the session that it asks to notify it, and some that are about to end.
const MOST_SESSIONS: i64 = 4 + 2 + 4;
const PUTS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_hang_leave_no_sessions_behind() {
    let server = block_in_place(|| PrivatePostgres::start(&Options::default())).unwrap();
    let server = Arc::new(server);
    let database = TestDatabase::create_on(settings_of(&server));
    let api = TestApi::start_with(database, |config| {
        config.pool.size = 4;
        config.pool.statement_timeout = Duration::from_millis(200);
    })
    .await;
    let mut orders = generator();
    api.store(&orders.order_with_uid("by-hand")).await;
    // None of them waits for the row of another one.
    let replaced = (0..PUTS).map(|number| orders.order_with_uid(&format!("put-{number}")));
    let replaced: Vec<_> = replaced.collect();
    for order in &replaced {
        store(&api.database, order);
    }
    let missing = MissingStandby::begin(&server);
    let hanging = hang_in_commit(&api.database, "by-hand").await;
    let mut most = 0;
    for at_once in replaced.chunks(4) {
        for answer in join_all(at_once.iter().map(|order| api.put(order, &[]))).await {
            assert!(matches!(answer.status, 503 | 504), "{}", answer.body);
        }
        most = most.max(sessions(&api.database));
    }
    println!("at most {most} sessions");
    assert!(most <= MOST_SESSIONS, "{most} sessions");

    drop(missing);
    hanging.await.unwrap();
    api.wait_until_live().await;
    for order in &replaced {
        assert_eq!(api.put(order, &[]).await.status, 200);
    }
    assert_eq!(
        api.get("/order/by-hand").await.json()["delivery"]["city"],
        "BY-HAND"
    );
    eventually("no more sessions than needed", PATIENCE, async || {
        sessions(&api.database) <= 4 + 1
    })
    .await;
}

/// Runs statements in a session that may write, whatever its role may by default.
fn execute_writing(database: &TestDatabase, statements: &str) {
    let mut session = database.connect();
    let write = "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE";
    session.batch_execute(write).unwrap();
    session.batch_execute(statements).unwrap();
}

/// A role is made read-only for a move to another server, for example. Its sessions keep what held when they began.
#[tokio::test(flavor = "multi_thread")]
async fn role_that_may_write_again_writes_without_a_restart() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let role = |change: &str| {
        let name = api.database.settings().name;
        format!("ALTER ROLE orders_api IN DATABASE {name} {change} default_transaction_read_only")
    };
    let end_sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                        WHERE datname = current_database() AND application_name LIKE 'orders-api%'";
    api.database.execute(&[&role("SET"), " = on"].concat());
    api.database.execute(end_sessions);
    let degraded = async || {
        let health = api.get("/health").await.json();
        health["checks"]["writes"]["status"] == "degraded" && health["status"] == "degraded"
    };
    eventually("health says so", PATIENCE, degraded).await;
    for _ in 0..4 {
        let put = api.put(&model(), &[]).await;
        assert_eq!(put.problem(), (503, "database_unavailable".into()));
        assert!(put.body.contains("accepts no writes"), "{}", put.body);
        // These sessions stay in the pool.
        assert_eq!(api.get(MODEL).await.status, 200);
    }

    execute_writing(&api.database, &role("RESET"));
    let put = api.put(&model(), &[]).await;
    assert_eq!(put.status, 200, "{}", put.body);
    api.wait_until_live().await;
    let health = api.get("/health").await.json();
    assert_eq!(
        (&health["status"], &health["checks"]["writes"]["status"]),
        (&"ok".into(), &"ok".into())
    );
}
