//! Loads share statements, and an order that cannot be read fails no other load.

use std::time::{Duration, Instant};

use api::repository::Repository;
use diesel::connection::SimpleConnection;
use diesel::sql_types::BigInt;
use futures_util::future::join_all;
use serde_json::Value;
use shared::db::rights::Role;
use shared::db::{PoolLimits, pool};
use shared::events::{self, Operation};
use shared::testing::{TestDatabase, eventually};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::program::Program;
use crate::support::{PATIENCE, TableLock, TestApi, generator, model, store};

async fn with_orders(count: usize) -> (TestApi, Vec<String>) {
    let api = TestApi::start().await;
    let mut orders = generator();
    let mut uids = Vec::new();
    for number in 0..count {
        let uid = format!("uid-{number}");
        api.store(&orders.order_with_uid(&uid)).await;
        uids.push(uid);
    }
    (api, uids)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_who_miss_take_few_connections() {
    let (api, uids) = with_orders(30).await;
    let lock = TableLock::take(&api.database, "orders");
    let paths: Vec<String> = uids.iter().map(|uid| format!("/order/{uid}")).collect();
    let readers = join_all(paths.iter().map(|path| api.get(path)));
    let unlock = async {
        eventually("all readers wait", PATIENCE, async || {
            api.stats().await["loads"]["started"] == 30
        })
        .await;
        lock.release();
    };
    let (answers, ()) = tokio::join!(readers, unlock);
    // There are two sessions for the loads. The auditor may have needed a third one.
    let sessions = api.database.integer(
        "SELECT count(*) AS value FROM pg_stat_activity \
         WHERE datname = current_database() AND application_name = 'orders-api'",
    );
    assert!((1..=3).contains(&sessions), "{sessions}");
    for (uid, answer) in uids.iter().zip(answers) {
        assert_eq!(
            (answer.status, &answer.json()["order_uid"]),
            (200, &uid.as_str().into())
        );
        assert_eq!(
            answer.header("cache-status"),
            Some("orders; fwd=miss; stored")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn order_that_cannot_be_read_fails_no_other_load() {
    let (api, uids) = with_orders(4).await;
    api.database.execute(&break_items_of("uid-2"));
    let warmed = api.send("POST", "/api/v1/cache/warmup?limit=4", &[], b"");
    let warmed = warmed.await;
    assert_eq!((warmed.status, &warmed.json()["loaded"]), (200, &3.into()));
    for uid in &uids {
        let expected = if uid == "uid-2" { 500 } else { 200 };
        let answer = api.get(&format!("/order/{uid}")).await;
        assert_eq!(answer.status, expected, "{uid}");
    }
}

/// Removes the name of an item. The session claims that it checks what it writes, so the triggers do not check it.
fn break_items_of(uid: &str) -> String {
    format!("UPDATE orders SET items = items #- '{{0,name}}' WHERE order_uid = '{uid}'")
}

#[tokio::test(flavor = "multi_thread")]
async fn order_that_cannot_be_read_is_named_in_the_log() {
    let database = TestDatabase::create();
    let mut orders = generator();
    for uid in ["uid-1", "uid-2", "uid-3"] {
        store(&database, &orders.order_with_uid(uid));
    }
    let program = Program::start(&database, &[("LOG_FORMAT", "json")]).await;
    // After the warm-up at the start, each order is read alone.
    program.wait_until_logged("cache warmed up").await;
    let notify = events::encode(Operation::Upsert, ["uid-2"]).remove(0);
    database.execute(&format!(
        "{}; SELECT pg_notify('{}', '{notify}')",
        break_items_of("uid-2"),
        events::CHANNEL
    ));
    eventually("the event has come", PATIENCE, async || {
        program.get("/order/uid-2").await.status != 200
    })
    .await;
    for uid in ["uid-1", "uid-2", "uid-3"] {
        let answer = program.get(&format!("/order/{uid}")).await;
        match uid {
            "uid-2" => assert_eq!(answer.problem(), (500, "internal".into())),
            _ => assert_eq!(answer.json()["order_uid"], uid),
        }
    }
    // A list without this order would be wrong, so there is no list.
    let list = program.get("/api/v1/orders").await;
    assert_eq!(list.problem(), (500, "internal".into()));

    let log = program.read_log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &Value| line["level"] == "ERROR" && line["target"] == "api::repository")
        .collect();
    // At least two reads of the order alone, and the list.
    assert!(lines.len() >= 3, "{log}");
    for line in &lines {
        assert_eq!(line["order.id"], "uid-2", "{log}");
    }
    let message = lines[0]["message"].as_str().unwrap();
    assert!(message.contains("missing field `name`"), "{message}");
    let (_, find) = message.split_once("to find all such orders: ").unwrap();
    let found = format!(
        "SELECT concat_ws(': ', order_uid, order_items_fault) AS value FROM ({find}) AS found"
    );
    let expected = "uid-2: items[0].name must be a text of 1 to 256 characters";
    assert_eq!(database.texts(&found), [expected]);

    let mend = "UPDATE orders SET items[0]['name'] = '\"Comb\"' WHERE order_uid = 'uid-2'";
    database.connect_foreign().batch_execute(mend).unwrap();
    eventually("it can be read again", PATIENCE, async || {
        program.get("/order/uid-2").await.status == 200
    })
    .await;
    assert_eq!(program.get("/api/v1/orders").await.status, 200);
}

#[tokio::test]
async fn orders_are_read_with_a_plan_that_is_made_once() {
    let database = TestDatabase::create();
    let limit = Duration::from_secs(10);
    let limits = PoolLimits {
        size: 1,
        wait: limit,
        statement_timeout: limit,
    };
    let pool = pool(&database.settings_as(Role::Api), "test", limits).unwrap();
    let repository = Repository::new(pool.clone(), pool.clone(), limit);
    for uids in [&["a"][..], &["a", "b"], &["a"]].iter().cycle().take(400) {
        repository.find_orders(uids).await.unwrap();
    }

    #[derive(diesel::QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        generic_plans: i64,
    }
    let statistics = "SELECT generic_plans FROM pg_prepared_statements WHERE statement LIKE 'SELECT \"orders\"%'";
    let query = diesel::sql_query(statistics);
    let mut connection = pool.get().await.unwrap();
    let row: Row = diesel_async::RunQueryDsl::get_result(query, &mut connection)
        .await
        .unwrap();
    // PostgreSQL also plans some statements by their values, to compare. It plans more of them if the statistics of the tables
    // change meanwhile.
    assert!(row.generic_plans > 200, "{}", row.generic_plans);
}

#[tokio::test(flavor = "multi_thread")]
async fn loads_that_every_reader_has_left_are_not_run() {
    const READERS: usize = 2000;
    const AT_ONCE: usize = 500;
    // Two statements run, with at most 64 loads each.
    const MOST_RUN: u64 = 128;
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.pool.statement_timeout = Duration::from_secs(60);
    })
    .await;
    api.store(&model()).await;
    let lock = TableLock::take(&api.database, "orders");
    for wave in 0..READERS / AT_ONCE {
        let mut readers = Vec::new();
        for number in 0..AT_ONCE {
            let request =
                format!("GET /order/left-{wave}-{number} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            let mut reader = TcpStream::connect(("127.0.0.1", api.port)).await.unwrap();
            reader.write_all(request.as_bytes()).await.unwrap();
            readers.push(reader);
        }
        eventually("all of them wait", PATIENCE, async || {
            api.stats().await["loads"]["started"] == (wave + 1) * AT_ONCE
        })
        .await;
    }
    eventually("all of them have left", PATIENCE, async || {
        let metrics = api.get("/metrics").await.body;
        metrics.contains("orders_api_http_connections 1\n")
    })
    .await;
    lock.release();
    let released = Instant::now();
    let answer = api.get("/order/b563feb7b2b84b6test").await;
    let waited = released.elapsed();
    assert_eq!(answer.status, 200);
    assert!(waited < Duration::from_secs(1), "{waited:?}");
    let stats = api.stats().await;
    let failed = stats["loads"]["failed"].as_u64().unwrap();
    assert!(failed >= READERS as u64 - MOST_RUN, "{stats}");
}
