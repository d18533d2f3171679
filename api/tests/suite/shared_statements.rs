//! Loads share statements, and what one of them cannot read costs the others nothing.

use std::time::Duration;

use api::repository::Repository;
use diesel::connection::SimpleConnection;
use diesel::sql_types::BigInt;
use futures_util::future::join_all;
use serde_json::Value;
use shared::db::{PoolLimits, pool};
use shared::events::{self, Operation};
use shared::testing::{TestDatabase, eventually};

use crate::support::program::Program;
use crate::support::{PATIENCE, TableLock, TestApi, generator, store};

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
        eventually("all wait", PATIENCE, async || {
            api.stats().await["loads"]["started"] == 30
        })
        .await;
        lock.release();
    };
    let (answers, ()) = tokio::join!(readers, unlock);
    // Two for the loads; the auditor may have come in between.
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
async fn order_that_cannot_be_read_costs_the_others_nothing() {
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

/// An item without a name, by a session that says that it checks what it writes: the triggers let it pass.
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
    // The warm-up at the start is over: what is read from now on is read alone.
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
    // A list without it would be a wrong one.
    let list = program.get("/api/v1/orders").await;
    assert_eq!(list.problem(), (500, "internal".into()));

    let log = program.read_log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &Value| line["level"] == "ERROR" && line["target"] == "api::repository")
        .collect();
    let message = lines[0]["message"].as_str().unwrap();
    assert_eq!(lines[0]["order.id"], "uid-2", "{log}");
    assert!(message.contains("missing field `name`"), "{message}");
    let (of_list, of_order): (Vec<&Value>, Vec<&Value>) =
        lines.iter().partition(|line| line["order.id"].is_null());
    assert!(of_list.len() == 1 && of_order.len() >= 2, "{log}");
    // Which one of the list it was is not known; what the log says finds it.
    let (_, find) = of_list[0]["message"]
        .as_str()
        .unwrap()
        .split_once("to find all such orders: ")
        .unwrap();
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
async fn orders_are_read_by_a_plan_that_is_made_once() {
    let database = TestDatabase::create();
    let limit = Duration::from_secs(10);
    let limits = PoolLimits {
        size: 1,
        wait: limit,
        statement_timeout: limit,
    };
    let pool = pool(&database.settings(), "test", limits).unwrap();
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
    // Some are planned by their values, to compare: more where statistics of the tables change meanwhile.
    assert!(row.generic_plans > 200, "{}", row.generic_plans);
}
