//! Loads share statements, and what one of them cannot read costs the others nothing.

use std::time::Duration;

use api::repository::Repository;
use diesel::sql_types::BigInt;
use diesel_async::RunQueryDsl;
use futures_util::future::join_all;
use shared::db::{PoolLimits, pool};
use shared::testing::{TestDatabase, eventually};

use crate::support::{PATIENCE, TableLock, TestApi, generator};

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
    // What no check lets in.
    TestDatabase::execute(
        &api.database,
        "ALTER TABLE order_items ALTER COLUMN name DROP NOT NULL;
         UPDATE order_items SET name = NULL WHERE order_uid = 'uid-2'",
    );
    let warmed = api.send("POST", "/api/v1/cache/warmup?limit=4", &[], b"");
    let warmed = warmed.await;
    assert_eq!((warmed.status, &warmed.json()["loaded"]), (200, &3.into()));
    for uid in &uids {
        let expected = if uid == "uid-2" { 500 } else { 200 };
        let answer = api.get(&format!("/order/{uid}")).await;
        assert_eq!(answer.status, expected, "{uid}");
    }
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
    let row: Row = diesel::sql_query(statistics)
        .get_result(&mut pool.get().await.unwrap())
        .await
        .unwrap();
    // Some are planned by their values, to compare: more where statistics of the tables change meanwhile.
    assert!(row.generic_plans > 200, "{}", row.generic_plans);
}
