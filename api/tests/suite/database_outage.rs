//! The database is away, slow, or without its schema, or all of its connections are busy.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::testing::{TcpProxy, TestDatabase, eventually};

use crate::support::program::Program;
use crate::support::{PATIENCE, TableLock, TestApi, model, store};

const MODEL: &str = "/order/b563feb7b2b84b6test";

#[tokio::test(flavor = "multi_thread")]
async fn api_that_starts_before_its_database_answers_503_and_then_200() {
    let database = TestDatabase::create();
    store(&database, &model());
    let settings = database.settings();
    let proxy = TcpProxy::start(&settings.host, settings.port).await;
    proxy.cut();
    let api = TestApi::start_unready(Arc::new(database), |config| {
        config.database.host = "127.0.0.1".to_owned();
        config.database.port = proxy.port();
    })
    .await;
    for path in [MODEL, "/api/v1/orders"] {
        let answer = api.get(path).await;
        assert_eq!(
            answer.problem(),
            (503, "database_unavailable".into()),
            "{path}"
        );
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    assert_eq!(
        api.put(&model(), &[]).await.problem(),
        (503, "database_unavailable".into())
    );
    assert_eq!(api.get("/readyz").await.status, 503);
    proxy.mend();
    api.wait_until_live().await;
    assert_eq!(api.get(MODEL).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn api_waits_for_a_missing_schema_and_says_so() {
    let api = TestApi::start_unready(Arc::new(TestDatabase::create_empty()), |_| {}).await;
    eventually("the api says what it waits for", PATIENCE, async || {
        let ready = api.get("/readyz").await;
        ready.status == 503 && ready.json()["detail"] == "waiting for the schema"
    })
    .await;
    assert_eq!(
        api.get(MODEL).await.problem(),
        (503, "database_unavailable".into())
    );
    let database = Arc::clone(&api.database);
    tokio::task::spawn_blocking(move || {
        shared::db::migrate(&mut database.connect(), || false).unwrap()
    })
    .await
    .unwrap();
    api.wait_until_live().await;
    assert_eq!(
        api.get(MODEL).await.problem(),
        (404, "order_not_found".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn schema_from_before_the_first_release_is_never_ready() {
    let database = TestDatabase::create_empty();
    database.execute(
        "CREATE SEQUENCE order_version_seq; \
         CREATE TABLE orders (order_uid text PRIMARY KEY, version bigint NOT NULL DEFAULT nextval('order_version_seq')); \
         CREATE TABLE order_items (order_uid text REFERENCES orders, position integer, PRIMARY KEY (order_uid, position)); \
         INSERT INTO orders VALUES ('b563feb7b2b84b6test')",
    );
    let command = Command::new(env!("CARGO_BIN_EXE_api"));
    let program = Program::start_unready(command, &database, &[]).await;
    // The ingestor refuses this schema as well. Its message says that a person can create an empty database.
    program
        .wait_until_logged("waiting for the schema: run `ingestor migrate`")
        .await;
    let ready = program.get("/readyz").await;
    assert_eq!(
        (ready.status, &ready.json()["detail"]),
        (503, &"waiting for the schema".into())
    );
    for path in [MODEL, "/api/v1/orders"] {
        let answer = program.get(path).await;
        assert_eq!(answer.problem(), (503, "database_unavailable".into()));
    }

    // It is enough to empty this one.
    database.execute("DROP TABLE order_items, orders; DROP SEQUENCE order_version_seq");
    shared::db::migrate(&mut database.connect(), || false).unwrap();
    program.wait_until_ready().await;
    assert_eq!(program.get(MODEL).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_statement_and_busy_pool_get_different_answers() {
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.pool.size = 1;
        config.pool.wait = Duration::from_millis(200);
        config.pool.statement_timeout = Duration::from_millis(1500);
    })
    .await;
    api.store(&model()).await;
    let lock = TableLock::take(&api.database, "orders");
    let slow = api.get(MODEL);
    let crowded = async {
        eventually("the only connection is taken", PATIENCE, async || {
            api.stats().await["loads"]["started"] == 1
        })
        .await;
        api.get("/api/v1/orders").await
    };
    let (slow, crowded) = tokio::join!(slow, crowded);
    assert_eq!(slow.problem(), (504, "database_timeout".into()));
    assert_eq!(crowded.problem(), (503, "overloaded".into()));
    assert_eq!(crowded.header("retry-after"), Some("1"));
    let write = api.put(&model(), &[]).await;
    assert_eq!(write.problem(), (504, "database_timeout".into()));
    lock.release();
    assert_eq!(api.put(&model(), &[]).await.status, 200);
    assert_eq!(api.get(MODEL).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_waits_longer_than_the_deadline() {
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.pool.statement_timeout = Duration::from_secs(60);
        config.pool.answer_deadline = Duration::from_millis(500);
    })
    .await;
    api.store(&model()).await;
    let lock = TableLock::take(&api.database, "orders");
    let started = Instant::now();
    let ndjson = [("Accept", "application/x-ndjson")];
    for answer in [
        api.get(MODEL).await,
        api.get("/api/v1/orders").await,
        api.send("GET", "/api/v1/orders", &ndjson, b"").await,
        api.put(&model(), &[]).await,
        api.send("DELETE", "/api/v1/orders/absent", &[], b"").await,
    ] {
        assert_eq!(answer.problem(), (504, "database_timeout".into()));
    }
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    lock.release();
    eventually("the api answers again", PATIENCE, async || {
        api.get(MODEL).await.status == 200 && api.get("/api/v1/orders").await.status == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_the_server_ended_are_replaced() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    for _ in 0..3 {
        assert_eq!(api.get("/api/v1/orders").await.status, 200);
        api.database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND application_name LIKE 'orders-api%'",
        );
        eventually("the api answers again", PATIENCE, async || {
            let answer = api.get("/api/v1/orders").await;
            assert!(matches!(answer.status, 200 | 503), "{}", answer.body);
            answer.status == 200
        })
        .await;
    }
    api.wait_until_live().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_cut_by_a_restart_is_503() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let _lock = TableLock::take(&api.database, "orders");
    let cut = async {
        let waiting = "SELECT count(*) AS value FROM pg_stat_activity WHERE datname = current_database() \
                       AND application_name = 'orders-api' AND wait_event_type = 'Lock'";
        eventually("the statement waits", PATIENCE, async || {
            api.database.integer(waiting) == 1
        })
        .await;
        api.database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
             AND application_name = 'orders-api' AND wait_event_type = 'Lock'",
        );
    };
    let (answer, ()) = tokio::join!(api.get(MODEL), cut);
    assert_eq!(answer.problem(), (503, "database_unavailable".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn log_stays_short_however_many_requests_fail() {
    let database = TestDatabase::create();
    let settings = database.settings();
    let proxy = TcpProxy::start(&settings.host, settings.port).await;
    let port = proxy.port().to_string();
    let settings = [("DB_HOST", "127.0.0.1"), ("DB_PORT", port.as_str())];
    let program = Program::start(&database, &settings).await;
    program.wait_until_logged("listener is live").await;
    proxy.cut();
    let request = format!("GET {MODEL} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let started = Instant::now();
    for _ in 0..300 {
        assert_eq!(program.send(&request).await.status, 503);
    }
    let seconds = started.elapsed().as_secs_f64();
    let lines = program.read_log().matches(" WARN ").count() as f64;
    assert!(
        lines < 20.0 + 10.0 * seconds,
        "{lines} lines in {seconds} s"
    );
}
