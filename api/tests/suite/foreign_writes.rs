//! An order that is changed by hand in psql reaches the cache like any other write. Our own writes are announced once.

use std::time::Duration;

use api::repository::{Precondition, Repository};
use diesel::connection::SimpleConnection;
use diesel::result::DatabaseErrorKind;
use diesel::result::Error::DatabaseError;
use shared::db::{PoolLimits, pool};
use shared::events::Operation;
use shared::order::Order;
use shared::testing::{Notifications, TestDatabase, eventually};

use crate::support::{PATIENCE, TestApi, model};

const MODEL: &str = "/order/b563feb7b2b84b6test";
const UID: &str = "b563feb7b2b84b6test";

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_foreign_write_evicts_the_order_and_changes_its_etag() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let mut psql = api.database.connect_foreign();
    for (statement, pointer, expected) in [
        (
            "UPDATE orders SET delivery_city = 'Berlin'",
            "/delivery/city",
            "Berlin",
        ),
        (
            "UPDATE orders SET items[0]['name'] = '\"Comb\"'",
            "/items/0/name",
            "Comb",
        ),
        (
            "UPDATE orders SET items = jsonb_set(items, '{0,brand}', '\"Hand\"')",
            "/items/0/brand",
            "Hand",
        ),
        (
            "UPDATE orders SET items = items || jsonb_set(items[0], '{name}', '\"Brush\"')",
            "/items/1/name",
            "Brush",
        ),
        (
            "UPDATE orders SET items = items - 0",
            "/items/0/name",
            "Brush",
        ),
        (
            "UPDATE orders SET items = jsonb_build_array(items[0] || '{\"name\": \"Soap\"}', items[0])",
            "/items/0/name",
            "Soap",
        ),
    ] {
        let before = api.get(MODEL).await;
        assert_eq!(
            api.get(MODEL).await.header("cache-status"),
            Some("orders; hit")
        );
        psql.batch_execute(statement).unwrap();
        eventually(statement, PATIENCE, async || {
            let order = api.get(MODEL).await.json();
            order
                .pointer(pointer)
                .is_some_and(|value| value == expected)
        })
        .await;
        let after = api.get(MODEL).await;
        assert_eq!(after.header("cache-status"), Some("orders; hit"));
        let if_old = [("If-None-Match", before.header("etag").unwrap())];
        assert_eq!(
            api.send("GET", MODEL, &if_old, b"").await.status,
            200,
            "{statement}"
        );
    }

    psql.batch_execute("CREATE TABLE kept AS SELECT * FROM orders; DELETE FROM orders")
        .unwrap();
    eventually("the order is deleted", PATIENCE, async || {
        api.get(MODEL).await.status == 404
    })
    .await;
    // The absence is cached as well.
    api.get(MODEL).await;
    psql.batch_execute("INSERT INTO orders SELECT * FROM kept")
        .unwrap();
    eventually("the order is back again", PATIENCE, async || {
        api.get(MODEL).await.status == 200
    })
    .await;
    api.get(MODEL).await;
    psql.batch_execute("TRUNCATE orders").unwrap();
    eventually("the order is gone", PATIENCE, async || {
        api.get(MODEL).await.status == 404
    })
    .await;
    // The listener understood every event.
    assert_eq!(api.stats().await["listener"]["malformed"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_write_that_would_break_the_items_is_refused_and_evicts_nothing() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let before = api.get(MODEL).await;
    let mut notifications = Notifications::listen(&api.database);
    let mut psql = api.database.connect_foreign();
    for items in [
        "items - 0",
        "'null'",
        "items[0]",
        "items[0] || '[{}]'",
        "jsonb_build_array(items[0] - 'name')",
        "jsonb_set(items, '{0,name}', '\"\"')",
        "jsonb_set(items, '{0,price}', '\"5\"')",
        "jsonb_set(items, '{0,price}', '0.5')",
        "jsonb_set(items, '{0,sale}', '101')",
    ] {
        let statement = format!("UPDATE orders SET items = {items}");
        let refused = psql.batch_execute(&statement).unwrap_err();
        assert!(
            matches!(refused, DatabaseError(DatabaseErrorKind::CheckViolation, _)),
            "{statement}: {refused}"
        );
    }
    // `order_items` is a view.
    for statement in [
        "UPDATE order_items SET price = 5",
        "DELETE FROM order_items",
        "TRUNCATE order_items",
    ] {
        psql.batch_execute(statement).unwrap_err();
    }
    assert_eq!(notifications.payloads(), [""; 0]);
    let after = api.get(MODEL).await;
    assert_eq!(after.header("cache-status"), Some("orders; hit"));
    assert_eq!(
        (&after.body, after.header("etag")),
        (&before.body, before.header("etag"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn put_and_delete_are_announced_once() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let mut notifications = Notifications::listen(&api.database);
    let put = api.put(&model(), &[]).await;
    assert_eq!(put.status, 200);
    // The trigger for foreign writes did not run: it would have drawn another version. (Its notification would not show: it
    // has the same text as ours, so PostgreSQL would merge them.)
    let if_match = [("If-Match", put.header("etag").unwrap())];
    let path = ["/api/v1/orders/", UID].concat();
    assert_eq!(api.send("DELETE", &path, &if_match, b"").await.status, 204);
    let events = notifications.events();
    let seen: Vec<_> = events
        .iter()
        .map(|event| (event.operation, event.uids.join(" ")))
        .collect();
    let expected =
        [Operation::Upsert, Operation::Delete].map(|operation| (operation, UID.to_owned()));
    assert_eq!(seen, expected);
}

/// A pooler may give a transaction a session without our settings. The triggers would then take it for a foreign writer, draw
/// another version than the one that the client is told, and notify twice.
#[tokio::test(flavor = "multi_thread")]
async fn our_writes_on_a_session_that_has_lost_its_settings_have_one_version_and_one_event() {
    let database = TestDatabase::create();
    let limit = Duration::from_secs(10);
    let limits = PoolLimits {
        size: 1,
        wait: limit,
        statement_timeout: limit,
    };
    let pool = pool(&database.settings(), "test", limits).unwrap();
    let repository = Repository::new(pool.clone(), pool.clone(), limit);
    let lose_settings = async || {
        let mut session = pool.get().await.unwrap();
        let reset = diesel::sql_query("RESET orders.emits");
        diesel_async::RunQueryDsl::execute(reset, &mut session)
            .await
            .unwrap();
    };
    let mut notifications = Notifications::listen(&database);
    let mut must_be_whole = |version: i64| {
        let stored = "SELECT version AS value FROM orders";
        assert_eq!(database.integer(stored), version);
        assert_eq!(notifications.events().len(), 1);
    };
    let any = Precondition::default();
    lose_settings().await;
    let created = repository.create_order(&model()).await.unwrap();
    must_be_whole(created.revision.version);
    lose_settings().await;
    let replaced = repository.put_order(&model(), &any).await.unwrap();
    must_be_whole(replaced.revision.version);
    lose_settings().await;
    let edit = |order: &Order| {
        Ok(Order {
            locale: "de".into(),
            ..order.clone()
        })
    };
    let edited = repository.edit_order(UID, &edit, &any).await.unwrap();
    must_be_whole(edited.written.revision.version);
    lose_settings().await;
    repository.delete_order(UID, &any).await.unwrap();
    assert_eq!(notifications.events().len(), 1);
}
