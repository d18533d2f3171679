//! The auditor finds changes that came without an event, and raises no false alarm.

use servers::postgres::{Options, PrivatePostgres};
use shared::events::{self, Operation};
use shared::testing::{TestDatabase, eventually, settings_of};
use tokio::task::block_in_place;

use crate::support::split::city;
use crate::support::{PATIENCE, TestApi, as_superuser, generator, notify, store};

/// Pitfall 14: a write that skips the events. The session claims that it emits them, and does not.
#[tokio::test(flavor = "multi_thread")]
async fn write_without_an_event_is_found_evicted_counted_and_reported() {
    let api = TestApi::start().await;
    let mut orders = generator();
    for uid in ["uid-1", "uid-2", "uid-3"] {
        api.store(&orders.order_with_uid(uid)).await;
        api.get(&format!("/order/{uid}")).await;
    }
    eventually("the orders are audited", PATIENCE, async || {
        api.stats().await["audit"]["checked"].as_u64() >= Some(3)
    })
    .await;
    assert_eq!(
        api.get("/health").await.json()["checks"]["audit"]["status"],
        "ok"
    );

    api.database.execute(
        "UPDATE orders SET track_number = 'BY-HAND', version = nextval('order_version_seq') WHERE order_uid = 'uid-1'",
    );
    api.database
        .execute("DELETE FROM orders WHERE order_uid = 'uid-2'");
    eventually("the mismatches are found", PATIENCE, async || {
        api.stats().await["audit"]["mismatches"] == 2
    })
    .await;
    let stats = api.stats().await;
    assert_eq!(
        (&stats["evictions"]["audit"], &stats["size"]),
        (&2.into(), &1.into())
    );
    assert_eq!(
        api.get("/order/uid-1").await.json()["track_number"],
        "BY-HAND"
    );
    assert_eq!(api.get("/order/uid-2").await.status, 404);
    let health = api.get("/health").await;
    assert_eq!(
        (health.status, &health.json()["status"]),
        (200, &"degraded".into())
    );
    assert_eq!(health.json()["checks"]["audit"]["status"], "degraded");
    let metrics = api.get("/metrics").await.body;
    assert!(
        metrics.contains("orders_api_cache_audit_mismatches_total 2\n"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn late_event_is_no_mismatch() {
    let api = TestApi::start().await;
    api.store(&generator().order_with_uid("uid-1")).await;
    api.get("/order/uid-1").await;
    api.database
        .execute("UPDATE orders SET version = nextval('order_version_seq')");
    let checked = async || api.stats().await["audit"]["checked"].as_u64().unwrap();
    let before = checked().await;
    eventually("the mismatch is seen", PATIENCE, async || {
        checked().await > before
    })
    .await;
    notify(
        &mut api.database.connect(),
        &events::encode(Operation::Upsert, ["uid-1"])[0],
    )
    .unwrap();
    api.get("/order/uid-1").await;
    let before = checked().await;
    eventually("the second look is over", PATIENCE, async || {
        api.get("/order/uid-1").await;
        checked().await > before
    })
    .await;
    let stats = api.stats().await;
    assert_eq!(
        (&stats["audit"]["mismatches"], &stats["evictions"]["event"]),
        (&0.into(), &1.into())
    );
}

async fn assert_one_mismatch(api: &TestApi) {
    let stats = api.stats().await;
    assert_eq!(
        (&stats["audit"]["mismatches"], &stats["evictions"]["audit"]),
        (&1.into(), &1.into())
    );
    let health = api.get("/health").await.json();
    assert_eq!(
        (&health["status"], &health["checks"]["audit"]["status"]),
        (&"degraded".into(), &"degraded".into())
    );
}

/// Such a session fires no trigger, so nobody draws a version and nobody is told.
#[tokio::test(flavor = "multi_thread")]
async fn content_that_changed_under_its_version_is_found_and_gets_another_etag() {
    let server = block_in_place(|| PrivatePostgres::start(&Options::default())).unwrap();
    let database = TestDatabase::create_on(settings_of(&server));
    let api = TestApi::start_with(database, |_| {}).await;
    api.store(&generator().order_with_uid("uid-1")).await;
    let before = api.get("/order/uid-1").await;
    let etag = before.header("etag").unwrap();
    block_in_place(|| {
        as_superuser(
            &server,
            &api.database,
            "SET session_replication_role = replica; UPDATE orders SET delivery_city = 'BY-HAND'",
        );
    });
    eventually("the hit shows the change", PATIENCE, async || {
        let headers = [("If-None-Match", etag)];
        let answer = api.send("GET", "/order/uid-1", &headers, b"").await;
        answer.status == 200 && city(&answer) == Some(("BY-HAND".to_owned(), true))
    })
    .await;
    assert_one_mismatch(&api).await;
    let version = "SELECT version AS value FROM orders";
    let after = api.get("/order/uid-1").await;
    let drawn = format!("\"{}-", api.database.integer(version));
    assert!(after.header("etag").unwrap().starts_with(&drawn));
    assert!(!etag.starts_with(&drawn));
}

#[tokio::test(flavor = "multi_thread")]
async fn order_that_was_inserted_past_the_triggers_ends_its_known_absence() {
    let api = TestApi::start().await;
    let order = generator().order_with_uid("uid-2");
    store(&api.database, &order);
    eventually("it is cached", PATIENCE, async || {
        let answer = api.get("/order/uid-2").await;
        answer.header("cache-status") == Some("orders; hit")
    })
    .await;
    let before = api.events().await;
    for _ in 0..2 {
        api.get("/order/uid-1").await;
    }
    let absent = api.get("/order/uid-1").await;
    assert_eq!(
        (absent.status, absent.header("cache-status")),
        (404, Some("orders; hit"))
    );
    // The session claims that it tells the caches, and does not.
    api.database.execute(
        "INSERT INTO orders SELECT copied.* FROM orders, LATERAL jsonb_populate_record(orders, jsonb_build_object( \
             'order_uid', 'uid-1', 'version', nextval('order_version_seq'))) copied",
    );
    eventually("the order is answered", PATIENCE, async || {
        api.get("/order/uid-1").await.status == 200
    })
    .await;
    assert_one_mismatch(&api).await;
    assert_eq!(api.events().await, before);
}
