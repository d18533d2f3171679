//! The database is no longer what it was: another server, or a restored state. Nothing of the one passes for the other.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use servers::postgres::{Options, PrivatePostgres};
use shared::order::Order;
use shared::testing::{TestDatabase, eventually, settings_of};
use tokio::task::block_in_place;

use crate::support::copies::store_copies;
use crate::support::split::{COMMON, Server, Split, UIDS, city};
use crate::support::{PATIENCE, TestApi, as_superuser, generator};

/// For how long listener and pool reach different servers.
const SPLIT: Duration = Duration::from_secs(3);
/// Within this time a restore must be noticed. A heartbeat looks every second. The rest is for a busy machine.
const NOTICED_WITHIN: Duration = Duration::from_secs(6);

/// Reads all orders for a while, and returns how many came from the database. Whatever comes from the cache must be of the
/// server that the listener hears.
async fn read_during_the_split(api: &TestApi, heard: &[&str]) -> usize {
    let started = Instant::now();
    let mut read = 0;
    while started.elapsed() < SPLIT {
        for uid in UIDS {
            let path = format!("/order/{uid}");
            let demanded = api.send("GET", &path, &[("Cache-Control", "no-cache")], b"");
            for answer in [api.get(&path).await, demanded.await] {
                match city(&answer) {
                    Some((city, true)) => assert!(heard.contains(&city.as_str()), "{city}"),
                    Some((_, false)) => read += 1,
                    None => {}
                }
            }
        }
    }
    read
}

async fn assert_all_come_from_the_cache(api: &TestApi, expected: &str) {
    eventually("the cache equals the server", PATIENCE, async || {
        for uid in UIDS {
            let answer = api.get(&format!("/order/{uid}")).await;
            if city(&answer) != Some((expected.to_owned(), true)) {
                return false;
            }
        }
        true
    })
    .await;
}

/// The former primary does not notice that it was replaced, and goes on to take writes. Connections to it stay up.
#[tokio::test(flavor = "multi_thread")]
async fn switch_of_servers_never_puts_the_rows_of_one_beside_the_events_of_the_other() {
    let split = Split::start().await;
    let api = split.start_api(|_| {}).await;
    api.wait_until_live().await;
    assert_all_come_from_the_cache(&api, COMMON).await;

    split.route(Server::Former, Server::Promoted);
    for uid in UIDS {
        split.write(Server::Former, uid, "former");
        split.write(Server::Promoted, uid, "promoted");
    }
    // The connections from before are used until they end.
    assert_all_come_from_the_cache(&api, "former").await;
    let former = api.get("/order/uid-1").await;
    split.end_pool(Server::Former);
    let read = read_during_the_split(&api, &["former"]).await;
    assert!(read > 10, "{read} reads of the promoted server");

    split.route(Server::Promoted, Server::Promoted);
    assert_all_come_from_the_cache(&api, "promoted").await;
    let promoted = api.get("/order/uid-1").await;
    let version = |etag: &str| etag.split('-').next().unwrap().to_owned();
    let (former, promoted) = (former.header("etag").unwrap(), promoted.header("etag"));
    assert_eq!(promoted.map(version), Some(version(former)));
    let headers = [("If-None-Match", former)];
    let known = api.send("GET", "/order/uid-1", &headers, b"").await;
    assert_eq!(known.status, 200, "another order with the same version");

    for uid in UIDS {
        split.write(Server::Former, uid, "former again");
    }
    assert_all_come_from_the_cache(&api, "promoted").await;
    for uid in UIDS {
        split.write(Server::Promoted, uid, "promoted again");
    }
    assert_all_come_from_the_cache(&api, "promoted again").await;
}

/// The warm-up and the readers ask the former primary, while the listener hears the promoted server.
#[tokio::test(flavor = "multi_thread")]
async fn listener_and_pool_that_reach_different_servers_at_the_start_store_nothing() {
    let split = Split::start().await;
    for uid in UIDS {
        split.write(Server::Former, uid, "former");
        split.write(Server::Promoted, uid, "promoted");
    }
    split.route(Server::Promoted, Server::Former);
    let api = split.start_api(|config| config.cache.warmup = 100).await;
    eventually("the listener is connected", PATIENCE, async || {
        let state = api.stats().await["listener"]["state"].clone();
        state == "syncing" || state == "live"
    })
    .await;
    let read = read_during_the_split(&api, &["promoted"]).await;
    assert!(read > 10, "{read} reads of the former primary");

    split.route(Server::Promoted, Server::Promoted);
    assert_all_come_from_the_cache(&api, "promoted").await;
}

/// Whether an order comes from the cache like this; `None` stands for its absence.
async fn is_cached(api: &TestApi, uid: &str, expected: Option<&Order>) -> bool {
    let answer = api.get(&format!("/order/{uid}")).await;
    let is_hit = answer.header("cache-status") == Some("orders; hit");
    let is_right = match expected {
        Some(order) => {
            answer.status == 200 && answer.json() == serde_json::to_value(order).unwrap()
        }
        None => answer.status == 404,
    };
    is_hit && is_right
}

/// Somebody restores a dump into the database that is in use. No event tells of it.
#[tokio::test(flavor = "multi_thread")]
async fn restore_of_a_dump_ends_every_hit_and_every_etag_from_before() {
    let api = TestApi::start().await;
    let mut orders = generator();
    let [before, after] = [0; 2].map(|_| orders.order_with_uid("changed"));
    let [deleted, inserted] = ["deleted", "inserted"].map(|uid| orders.order_with_uid(uid));
    api.store(&before).await;
    api.store(&deleted).await;
    let dump = block_in_place(|| api.database.dump());
    api.store(&after).await;
    api.store(&inserted).await;
    let path = "/api/v1/orders/deleted";
    assert_eq!(api.send("DELETE", path, &[], b"").await.status, 204);
    let former = [
        ("changed", Some(&after)),
        ("deleted", None),
        ("inserted", Some(&inserted)),
    ];
    for (uid, expected) in former {
        eventually("it is cached", PATIENCE, async || {
            is_cached(&api, uid, expected).await
        })
        .await;
    }
    let answer = api.get("/order/changed").await;
    let etag = answer.header("etag").unwrap();

    block_in_place(|| api.database.restore(&dump));
    eventually("no hit is from before", NOTICED_WITHIN, async || {
        for (uid, expected) in former {
            if is_cached(&api, uid, expected).await {
                return false;
            }
        }
        true
    })
    .await;
    for (uid, expected) in [
        ("changed", Some(&before)),
        ("deleted", Some(&deleted)),
        ("inserted", None),
    ] {
        eventually("what was restored is cached", PATIENCE, async || {
            is_cached(&api, uid, expected).await
        })
        .await;
    }

    let version = etag.trim_matches('"').split('-').next().unwrap();
    let events = api.events().await;
    let draw_again = format!(
        "SELECT setval('order_version_seq', {version}, false); \
         UPDATE orders SET delivery_city = 'again' WHERE order_uid = 'changed'"
    );
    let mut by_hand = api.database.connect_foreign();
    by_hand.batch_execute(&draw_again).unwrap();
    api.wait_for_event_after(events).await;
    for is_hit in [false, true] {
        let headers = [("If-None-Match", etag)];
        let read = api.send("GET", "/order/changed", &headers, b"").await;
        assert_eq!(
            (read.status, city(&read)),
            (200, Some(("again".to_owned(), is_hit)))
        );
        let now = read.header("etag").unwrap();
        let same_version = format!("\"{version}-");
        assert!(
            now.starts_with(&same_version) && now != etag,
            "{now} {etag}"
        );
    }
    let put = api.put(&after, &[("If-Match", etag)]).await;
    assert_eq!(put.problem(), (412, "version_mismatch".into()));
}

/// Somebody puts old rows back into the same table, with their old versions and past the triggers. Then the database gets a
/// new history.
#[tokio::test(flavor = "multi_thread")]
async fn new_id_of_the_history_drops_every_entry() {
    const COPIES: i64 = 100;
    let server = block_in_place(|| PrivatePostgres::start(&Options::default())).unwrap();
    let database = TestDatabase::create_on(settings_of(&server));
    store_copies(&database, COPIES, 1);
    database.execute(
        "CREATE TABLE kept AS SELECT * FROM orders; \
         UPDATE orders SET delivery_city = 'later', version = nextval('order_version_seq')",
    );
    let api = TestApi::start_with(database, |_| {}).await;
    let are_cached = async |is_expected: fn(&str) -> bool| {
        let mut are_cached = true;
        // Each of them is read, because reading fills the cache.
        for number in 1..=COPIES {
            let city = city(&api.get(&format!("/order/copy-{number}")).await);
            are_cached &= city.is_some_and(|(city, is_hit)| is_hit && is_expected(&city));
        }
        are_cached
    };
    eventually("all are cached", PATIENCE, async || {
        are_cached(|city| city == "later").await
    })
    .await;
    block_in_place(|| {
        as_superuser(
            &server,
            &api.database,
            "SET session_replication_role = replica; \
             BEGIN; TRUNCATE orders; INSERT INTO orders SELECT * FROM kept; COMMIT; \
             UPDATE service_history SET id = gen_random_uuid();",
        );
    });
    eventually("the old rows are cached", NOTICED_WITHIN, async || {
        are_cached(|city| city != "later").await
    })
    .await;
    // The auditor would have found them one after another.
    let stats = api.stats().await;
    assert_eq!(stats["listener"]["reconnects"], 1);
    assert!(
        stats["evictions"]["audit"].as_i64() < Some(COPIES / 2),
        "{stats}"
    );
}
