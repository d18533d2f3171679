//! The cache follows the writes of other processes.

use diesel::prelude::*;
use shared::db::connect_blocking;
use shared::testing::{TcpProxy, TestDatabase, eventually};

use crate::support::copies::store_copies;
use crate::support::{
    PATIENCE, TableLock, TestApi, generator, model, notify, store, terminate_listener,
};

const MODEL: &str = "/order/b563feb7b2b84b6test";

#[tokio::test(flavor = "multi_thread")]
async fn write_of_another_process_is_seen_and_then_answered_from_the_cache() {
    let api = TestApi::start().await;
    let mut orders = generator();
    let mut order = orders.order_with_uid("uid-1");
    assert_eq!(
        api.get("/order/uid-1").await.header("cache-status"),
        Some("orders; fwd=miss; stored")
    );
    let absent = api.get("/order/uid-1").await;
    assert_eq!(
        (absent.status, absent.header("cache-status")),
        (404, Some("orders; hit"))
    );
    for _ in 0..10 {
        store(&api.database, &order);
        let expected = serde_json::to_value(&order).unwrap();
        eventually("the new version is answered", PATIENCE, async || {
            let answer = api.get("/order/uid-1").await;
            answer.status == 200 && answer.json() == expected
        })
        .await;
        assert_eq!(
            api.get("/order/uid-1").await.header("cache-status"),
            Some("orders; hit")
        );
        order = orders.order_with_uid("uid-1");
    }
    let stats = api.stats().await;
    assert_eq!(stats["evictions"]["event"], 10);
    assert_eq!(stats["listener"]["events"], 10);
    assert_eq!(stats["bypasses"], 0);
    assert_eq!(stats["loads"]["started"], stats["misses"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_add_up_and_have_the_documented_form() {
    let api = TestApi::start().await;
    let fresh = api.stats().await;
    assert_eq!(
        (&fresh["hit_ratio"], &fresh["size"]),
        (&serde_json::Value::Null, &0.into())
    );
    api.store(&model()).await;
    for path in [MODEL, MODEL, MODEL, "/order/absent", "/order/absent"] {
        api.get(path).await;
    }
    let stats = api.stats().await;
    let count = |name: &str| stats[name].as_u64().unwrap();
    assert_eq!(
        [
            count("hits"),
            count("negative_hits"),
            count("misses"),
            count("bypasses")
        ],
        [2, 1, 2, 0]
    );
    assert_eq!(
        [count("size"), count("negative_size"), count("capacity")],
        [1, 1, 1000]
    );
    assert_eq!(stats["hit_ratio"], 0.6);
    assert!(count("weight_bytes") > 800);
    for pointer in [
        "/loads/started",
        "/loads/succeeded",
        "/loads/not_found",
        "/loads/failed",
        "/loads/coalesced",
        "/loads/discarded",
        "/evictions/capacity",
        "/evictions/event",
        "/evictions/resync",
        "/evictions/audit",
        "/listener/epoch",
        "/listener/reconnects",
        "/listener/proof_age_ms",
        "/listener/lease_ms",
        "/listener/events",
        "/listener/malformed",
        "/audit/checked",
        "/audit/mismatches",
    ] {
        assert!(
            stats
                .pointer(pointer)
                .is_some_and(serde_json::Value::is_u64),
            "{pointer}"
        );
    }
    assert!(stats["listener"]["blind_seconds_total"].is_f64());
    let metrics = api.get("/metrics").await.body;
    assert!(
        metrics.contains("orders_api_cache_lookups_total{outcome=\"hit\"} 2\n"),
        "{metrics}"
    );
    assert!(!metrics.contains("b563feb7b2b84b6test"));
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_event_drops_every_entry() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    for (number, payload) in ["", "{", r#"{"v":2,"op":"upsert","uids":[]}"#]
        .into_iter()
        .enumerate()
    {
        api.get(MODEL).await;
        assert_eq!(
            api.get(MODEL).await.header("cache-status"),
            Some("orders; hit")
        );
        notify(&mut api.database.connect(), payload).unwrap();
        eventually("every entry is dropped", PATIENCE, async || {
            let stats = api.stats().await;
            stats["listener"]["malformed"] == number + 1 && stats["size"] == 0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn newest_orders_are_loaded_at_the_start_and_on_demand() {
    let database = TestDatabase::create();
    let mut orders = generator();
    let stored: Vec<_> = (0..5).map(|_| orders.next_order()).collect();
    stored.iter().for_each(|order| store(&database, order));
    let api = TestApi::start_with(database, |config| config.cache.warmup = 3).await;
    eventually("the cache is warm", PATIENCE, async || {
        api.stats().await["size"] == 3
    })
    .await;
    for (index, order) in stored.iter().enumerate() {
        let answer = api.get(&format!("/order/{}", order.order_uid)).await;
        let expected = if index < 2 {
            "orders; fwd=miss; stored"
        } else {
            "orders; hit"
        };
        assert_eq!(answer.header("cache-status"), Some(expected), "{index}");
    }
    assert_eq!(
        api.send("DELETE", "/api/v1/cache", &[], b"").await.status,
        204
    );
    assert_eq!(api.stats().await["size"], 0);
    let warmups = (0..4).map(|_| api.send("POST", "/api/v1/cache/warmup?limit=4", &[], b""));
    for answer in futures_util::future::join_all(warmups).await {
        assert_eq!((answer.status, &answer.json()["loaded"]), (200, &4.into()));
        assert!(answer.json()["duration_ms"].is_u64());
    }
    assert_eq!(api.stats().await["size"], 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_orders_fill_the_cache_by_their_bytes() {
    let database = TestDatabase::create();
    // About 200 kB each: five of them fit. They are there before the listener, so that no late event evicts one.
    store_copies(&database, 20, 1000);
    let api = TestApi::start_with(database, |config| config.cache.capacity_mb = 1).await;
    let warmed = api.send("POST", "/api/v1/cache/warmup", &[], b"").await;
    assert_eq!(warmed.json()["loaded"], 0, "warm-up is off by default");
    let warm_up = "/api/v1/cache/warmup?limit=1000";
    let loaded = api.send("POST", warm_up, &[], b"").await.json()["loaded"].as_u64();
    let stats = api.stats().await;
    assert!((4..7).contains(&loaded.unwrap()), "{stats}");
    assert_eq!(stats["size"].as_u64(), loaded);
    assert_eq!(
        stats["evictions"]["capacity"], 0,
        "warm-up pushes out nothing"
    );
    let started = stats["loads"]["started"].as_u64().unwrap();
    assert!(started <= 21);
    for number in 1..=20 {
        let path = format!("/order/copy-{number}");
        api.get(&path).await;
        let again = api.get(&path).await;
        assert_eq!(again.header("cache-status"), Some("orders; hit"), "{path}");
    }
    let stats = api.stats().await;
    assert!(
        stats["weight_bytes"].as_u64().unwrap() <= 1024 * 1024,
        "{stats}"
    );
    assert!(
        stats["evictions"]["capacity"].as_u64().unwrap() >= 14,
        "{stats}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_says_how_far_a_warm_up_is() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let lock = TableLock::take(&api.database, "orders");
    let warmup = api.send("POST", "/api/v1/cache/warmup?limit=7", &[], b"");
    let unlock = async {
        eventually("the warm-up runs", PATIENCE, async || {
            let ready = api.get("/readyz").await;
            let progress = serde_json::json!({"seen": 0, "limit": 7});
            (ready.status, &ready.json()["warmup"]) == (200, &progress)
        })
        .await;
        lock.release();
    };
    let (warmed, ()) = tokio::join!(warmup, unlock);
    assert_eq!(warmed.json()["loaded"], 1);
    assert!(api.get("/readyz").await.json().get("warmup").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_one_order_share_one_load_even_if_the_first_hangs_up() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let mut connection = api.database.connect();
    connection
        .transaction(|connection| {
            diesel::sql_query("LOCK TABLE orders").execute(connection)?;
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(async {
                    let hanging_up =
                        tokio::time::timeout(std::time::Duration::from_millis(200), api.get(MODEL));
                    assert!(hanging_up.await.is_err());
                });
            });
            QueryResult::Ok(())
        })
        .unwrap();
    // The load goes on without the reader that began it.
    eventually("the load has ended", PATIENCE, async || {
        api.stats().await["loads"]["succeeded"] == 1
    })
    .await;

    api.send("DELETE", "/api/v1/cache", &[], b"").await;
    let lock = TableLock::take(&api.database, "orders");
    let readers = futures_util::future::join_all((0..20).map(|_| api.get(MODEL)));
    let unlock = async {
        eventually("all readers wait", PATIENCE, async || {
            api.stats().await["loads"]["coalesced"] == 19
        })
        .await;
        lock.release();
    };
    let (answers, ()) = tokio::join!(readers, unlock);
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(api.stats().await["loads"]["started"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_is_blind_while_the_listener_is_lost_and_answers_nothing_stale() {
    let database = TestDatabase::create();
    let settings = database.settings();
    let proxy = TcpProxy::start(&settings.host, settings.port).await;
    let api = TestApi::start_with(database, |config| {
        config.database.host = "127.0.0.1".to_owned();
        config.database.port = proxy.port();
        config.cache.warmup = 10;
    })
    .await;
    let mut orders = generator();
    api.store(&orders.order_with_uid("uid-1")).await;
    api.get("/order/uid-1").await;
    assert_eq!(
        api.get("/order/uid-1").await.header("cache-status"),
        Some("orders; hit")
    );

    proxy.cut();
    eventually("the cache is blind", PATIENCE, async || {
        api.stats().await["listener"]["state"] != "live"
    })
    .await;
    let changed = orders.order_with_uid("uid-1");
    store(&api.database, &changed);
    let away = api.get("/order/uid-1").await;
    assert_eq!(away.problem(), (503, "database_unavailable".into()));
    assert_eq!(away.header("retry-after"), Some("1"));
    assert_eq!(api.get("/livez").await.status, 200);
    assert_eq!(api.get("/readyz").await.status, 503);
    let health = api.get("/health").await;
    assert_eq!(
        (health.status, &health.json()["status"]),
        (503, &"down".into())
    );

    proxy.mend();
    api.wait_until_live().await;
    let expected = serde_json::to_value(&changed).unwrap();
    assert_eq!(api.get("/order/uid-1").await.json(), expected);
    eventually("the cache is warm again", PATIENCE, async || {
        api.get("/order/uid-1").await.header("cache-status") == Some("orders; hit")
    })
    .await;
    let stats = api.stats().await;
    assert_eq!(
        (
            &stats["listener"]["epoch"],
            &stats["listener"]["reconnects"]
        ),
        (&1.into(), &1.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn blind_cache_reads_the_primary_and_stores_nothing() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    api.get(MODEL).await;
    // No new listener is accepted: it demands a session that may write, and new sessions are read-only from now on.
    let refuse = [
        "ALTER DATABASE ",
        &api.database.settings().name,
        " SET default_transaction_read_only = on",
    ]
    .concat();
    api.database.execute(&refuse);
    terminate_listener(&api.database);
    eventually("the cache is blind", PATIENCE, async || {
        api.stats().await["listener"]["state"] != "live"
    })
    .await;
    for _ in 0..3 {
        let answer = api.get(MODEL).await;
        assert_eq!(
            (answer.status, answer.header("cache-status")),
            (200, Some("orders; fwd=bypass; detail=blind"))
        );
    }
    let ready = api.get("/readyz").await;
    assert_eq!(
        (ready.status, &ready.json()["status"]),
        (200, &"degraded".into())
    );
    let warmup = api.send("POST", "/api/v1/cache/warmup", &[], b"").await;
    assert_eq!(warmup.problem(), (503, "database_unavailable".into()));
    let stats = api.stats().await;
    assert_eq!((&stats["bypasses"], &stats["size"]), (&3.into(), &1.into()));
    assert_eq!(stats["loads"]["started"], 1);

    let name = api.database.settings().name;
    let server = shared::config::DatabaseSettings {
        name: "postgres".to_owned(),
        ..api.database.settings()
    };
    let mut connection = connect_blocking(&server, "orders-test").unwrap();
    diesel::sql_query(
        [
            "ALTER DATABASE ",
            &name,
            " RESET default_transaction_read_only",
        ]
        .concat(),
    )
    .execute(&mut connection)
    .unwrap();
    api.wait_until_live().await;
}
