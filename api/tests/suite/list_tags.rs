//! The `ETag` of a list, and 304.

use crate::support::copies::store_copies;
use crate::support::{TestApi, model};

const PATHS: [&str; 5] = [
    "/api/v1/orders",
    "/api/v1/orders?limit=3",
    "/api/v1/orders?view=summary",
    "/api/v1/orders?limit=3&count=exact",
    "/api/v1/orders?order_uids=b563feb7b2b84b6test,copy-1,new",
];

async fn tags(api: &TestApi) -> Vec<String> {
    let mut tags = Vec::new();
    for path in PATHS {
        let answer = api.get(path).await;
        let tag = answer.header("etag").unwrap().to_owned();
        let known = [("If-None-Match", tag.as_str())];
        for method in ["GET", "HEAD"] {
            let again = api.send(method, path, &known, b"").await;
            assert_eq!((again.status, again.body.as_str()), (304, ""), "{path}");
            assert_eq!(again.header("etag"), Some(tag.as_str()));
            assert_eq!(again.header("cache-control"), Some("private, no-cache"));
            assert_eq!(again.headers("vary"), ["Accept", "Accept-Encoding"]);
        }
        let other = [("If-None-Match", "W/\"0123456789abcdef\"")];
        let full = api.send("GET", path, &other, b"").await;
        assert_eq!((full.status, &full.body), (200, &answer.body), "{path}");
        tags.push(tag);
    }
    tags
}

/// Every answer of [`PATHS`] must have changed.
async fn all_differ(api: &TestApi, before: &mut Vec<String>, what: &str) {
    let now = tags(api).await;
    for ((path, old), new) in PATHS.iter().zip(&*before).zip(&now) {
        assert_ne!(old, new, "{path} after {what}");
    }
    *before = now;
}

#[tokio::test(flavor = "multi_thread")]
async fn tag_of_a_list_changes_whenever_its_body_does() {
    let api = TestApi::start().await;
    store_copies(&api.database, 5, 2);
    let mut before = tags(&api).await;
    let distinct: std::collections::HashSet<_> = before.iter().collect();
    assert_eq!(distinct.len(), PATHS.len());
    assert_eq!(tags(&api).await, before, "nothing has changed");
    api.store(&model()).await;
    all_differ(&api, &mut before, "a new version").await;
    let mut new = model();
    new.order_uid = "new".parse().unwrap();
    api.store(&new).await;
    all_differ(&api, &mut before, "a new order").await;
    let path = "/api/v1/orders/new";
    assert_eq!(api.send("DELETE", path, &[], b"").await.status, 204);
    all_differ(&api, &mut before, "a deletion").await;
    assert_eq!(api.get("/order/copy-1").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn tag_changes_with_the_history_of_the_database() {
    let api = TestApi::start().await;
    store_copies(&api.database, 5, 2);
    let mut before = tags(&api).await;
    api.database
        .execute("UPDATE service_history SET id = gen_random_uuid()");
    // The listener's next heartbeat finds it. The pool then has no connection from before.
    let path = "/order/copy-1";
    let old = api.get(path).await.header("etag").unwrap().to_owned();
    shared::testing::eventually("it is noticed", crate::support::PATIENCE, async || {
        let path = "/order/copy-1";
        api.get(path).await.header("etag") != Some(&old)
    })
    .await;
    api.wait_until_live().await;
    all_differ(&api, &mut before, "a new history").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tag_changes_when_another_page_follows() {
    let api = TestApi::start().await;
    store_copies(&api.database, 2, 1);
    let path = "/api/v1/orders?limit=3";
    let before = api.get(path).await;
    assert!(before.json()["next_cursor"].is_null());
    let mut older = model();
    older.order_uid = "older".parse().unwrap();
    older.date_created = "2001-01-01T00:00:00Z".parse().unwrap();
    api.store(&older).await;
    let after = api.get(path).await;
    assert_eq!(after.json()["orders"], before.json()["orders"]);
    assert_ne!(after.header("etag"), before.header("etag"));
}
