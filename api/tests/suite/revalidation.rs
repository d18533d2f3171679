//! What becomes of cached orders when the listener is lost, and readers who demand the database.

use shared::testing::{TcpProxy, TestDatabase, eventually};

use crate::support::copies::store_copies;
use crate::support::{PATIENCE, TestApi, generator, store};

/// So many that more than one statement is needed to compare them.
const ORDERS: usize = 1200;

#[tokio::test(flavor = "multi_thread")]
async fn reconnect_keeps_what_is_up_to_date_and_drops_the_rest() {
    let database = TestDatabase::create();
    let settings = database.settings();
    let proxy = TcpProxy::start(&settings.host, settings.port).await;
    let api = TestApi::start_with(database, |config| {
        config.database.host = "127.0.0.1".to_owned();
        config.database.port = proxy.port();
        config.cache.capacity = (2 * ORDERS).try_into().unwrap();
    })
    .await;
    let mut orders = generator();
    store_copies(&api.database, ORDERS as i64, 1);
    let warm = api
        .send("POST", "/api/v1/cache/warmup?limit=1201", &[], b"")
        .await;
    assert_eq!(warm.json()["loaded"], ORDERS + 1);
    assert_eq!(api.get("/order/absent").await.status, 404);
    let before = api.stats().await;

    proxy.cut();
    eventually("the cache is blind", PATIENCE, async || {
        api.stats().await["listener"]["state"] != "live"
    })
    .await;
    let changed = orders.order_with_uid("copy-1");
    store(&api.database, &changed);
    api.database
        .execute("DELETE FROM orders WHERE order_uid = 'copy-2'");
    store(&api.database, &orders.order_with_uid("absent"));
    proxy.mend();
    api.wait_until_live().await;

    let after = api.stats().await;
    assert_eq!(after["loads"], before["loads"], "no order was loaded again");
    let evicted = |stats: &serde_json::Value| stats["evictions"]["resync"].as_u64().unwrap();
    assert_eq!(evicted(&after) - evicted(&before), 3);
    for number in [3, 4, ORDERS] {
        let answer = api.get(&format!("/order/copy-{number}")).await;
        assert_eq!(answer.header("cache-status"), Some("orders; hit"));
    }
    assert_eq!(
        api.get("/order/copy-1").await.json(),
        serde_json::to_value(&changed).unwrap()
    );
    assert_eq!(api.get("/order/copy-2").await.status, 404);
    assert_eq!(api.get("/order/absent").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_who_demands_the_database_gets_its_answer() {
    let api = TestApi::start().await;
    let order = generator().order_with_uid("uid-1");
    api.store(&order).await;
    let no_cache = [("Cache-Control", "max-age=0, No-Cache")];
    for (headers, expected) in [
        (&[][..], "orders; fwd=miss; stored"),
        (&no_cache, "orders; fwd=request; stored"),
        (&[("Cache-Control", "max-age=0")], "orders; hit"),
        (&no_cache, "orders; fwd=request; stored"),
    ] {
        let answer = api.send("GET", "/order/uid-1", headers, b"").await;
        assert_eq!(answer.header("cache-status"), Some(expected), "{headers:?}");
        let timing = answer.header("server-timing").unwrap();
        let is_hit = expected == "orders; hit";
        assert_eq!(
            (timing == "cache", timing.starts_with("db;dur=")),
            (is_hit, !is_hit)
        );
    }
    // Written like one of our programs would write it without the event: the cache is not told.
    api.database.execute(
        "UPDATE orders SET version = nextval('order_version_seq') WHERE order_uid = 'uid-1'",
    );
    let cached = api.get("/order/uid-1").await;
    let demanded = api.send("GET", "/order/uid-1", &no_cache, b"").await;
    assert_ne!(cached.header("etag"), demanded.header("etag"));
    let renewed = api.get("/order/uid-1").await;
    assert_eq!(
        (renewed.header("etag"), renewed.header("cache-status")),
        (demanded.header("etag"), Some("orders; hit"))
    );
    let stats = api.stats().await;
    assert_eq!(
        (&stats["bypasses"], &stats["misses"]),
        (&3.into(), &1.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn read_after_a_list_is_not_older_than_the_list() {
    let api = TestApi::start().await;
    let order = generator().order_with_uid("uid-1");
    api.store(&order).await;
    let cached = api.get("/order/uid-1").await;
    api.database.execute(
        "UPDATE orders SET version = nextval('order_version_seq') WHERE order_uid = 'uid-1'",
    );
    assert_eq!(api.get("/api/v1/orders").await.status, 200);
    let after = api.get("/order/uid-1").await;
    assert_ne!(after.header("etag"), cached.header("etag"));
}
