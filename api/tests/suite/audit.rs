//! The auditor finds changes that came without an event, and raises no false alarm.

use shared::events::{self, Operation};
use shared::testing::eventually;

use crate::support::{PATIENCE, TestApi, generator, notify};

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
