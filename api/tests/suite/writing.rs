//! PUT and DELETE.

use std::sync::Arc;

use shared::order::{Item, Order};
use shared::testing::{TestDatabase, eventually};

use crate::support::{PATIENCE, TestApi, generator, model};

const MODEL: &str = "/api/v1/orders/b563feb7b2b84b6test";

async fn etag(api: &TestApi) -> String {
    api.get(MODEL).await.header("etag").unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn put_replaces_the_whole_order_here_at_once_and_in_other_processes_soon() {
    let api = TestApi::start().await;
    let other = TestApi::start_unready(Arc::clone(&api.database), |_| {}).await;
    other.wait_until_live().await;
    api.store(&model()).await;
    let path = "/order/b563feb7b2b84b6test";
    let old = api.get(path).await;
    assert_eq!(other.get(path).await.body, old.body);

    let mut changed = generator().order_with_uid("b563feb7b2b84b6test");
    changed.items.extend(changed.items.clone());
    let put = api.put(&changed, &[]).await;
    assert_eq!(
        (put.status, put.json()),
        (200, serde_json::to_value(&changed).unwrap())
    );
    assert_ne!(put.header("etag"), old.header("etag"));
    let read = api.get(path).await;
    assert_eq!(
        (&read.body, read.header("etag")),
        (&put.body, put.header("etag"))
    );
    eventually("the other process sees it", PATIENCE, async || {
        other.get(path).await.body == put.body
    })
    .await;
    let unsourced = "SELECT count(*) AS value FROM orders WHERE source_partition IS NULL AND source_offset IS NULL \
                     AND updated_at > created_at";
    assert_eq!(api.database.integer(unsourced), 1);

    assert_eq!(
        api.send("DELETE", "/api/v1/orders/b563feb7b2b84b6test", &[], b"")
            .await
            .status,
        204
    );
    assert_eq!(
        api.get(path).await.problem(),
        (404, "order_not_found".into())
    );
    assert_eq!(
        api.database
            .integer("SELECT count(*) AS value FROM order_items"),
        0
    );
    eventually("the other process sees it", PATIENCE, async || {
        other.get(path).await.status == 404
    })
    .await;
}

/// Returns the model with so many items, each with its own number.
fn with_items(count: i64) -> Order {
    let mut order = model();
    order.items = (0..count)
        .map(|number| Item {
            chrt_id: number,
            ..order.items[0].clone()
        })
        .collect();
    order
}

#[tokio::test(flavor = "multi_thread")]
async fn order_with_a_thousand_items_is_written_as_one_row() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    api.store(&generator().order_with_uid("other")).await;
    let other =
        "SELECT concat_ws(' ', version, xmin) AS value FROM orders WHERE order_uid = 'other'";
    let untouched = api.database.texts(other);
    let rows = || api.database.integer("SELECT count(*) AS value FROM orders");
    let items = || {
        api.database.integer(
            "SELECT count(*) AS value FROM order_items WHERE order_uid <> 'other' AND position = chrt_id",
        )
    };

    let large = with_items(1000);
    let expected = serde_json::to_string(&large).unwrap() + "\n";
    let before = api.events().await;
    let put = api.put(&large, &[]).await;
    assert_eq!(put.status, 200);
    api.wait_for_event_after(before).await;
    // `assert_eq` would print both texts in full.
    assert!(
        put.body == expected,
        "the answer differs from what was sent"
    );
    for cache_status in ["orders; fwd=miss; stored", "orders; hit"] {
        let read = api.get("/order/b563feb7b2b84b6test").await;
        assert_eq!(read.header("cache-status"), Some(cache_status));
        assert!(read.body == expected, "a read differs from what was sent");
        assert_eq!(read.header("etag"), put.header("etag"));
    }
    assert_eq!((rows(), items()), (2, 1000));

    let refused = api.put(&with_items(1001), &[]).await;
    assert_eq!(refused.problem(), (422, "invalid_order".into()));
    assert_eq!((rows(), items()), (2, 1000));

    let small = with_items(2);
    assert_eq!(api.put(&small, &[]).await.status, 200);
    let read = api.get("/order/b563feb7b2b84b6test").await;
    assert_eq!(read.json(), serde_json::to_value(&small).unwrap());
    assert_eq!((rows(), items()), (2, 2));

    assert_eq!(api.send("DELETE", MODEL, &[], b"").await.status, 204);
    assert_eq!((rows(), items()), (1, 0));
    assert_eq!(api.database.texts(other), untouched);
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_of_an_order_that_is_not_there_are_404_even_with_a_precondition() {
    let api = TestApi::start().await;
    for headers in [
        &[][..],
        &[("If-Match", "*")],
        &[("If-Match", "\"1\"")],
        &[("If-None-Match", "\"1\"")],
        &[("If-None-Match", "*")],
    ] {
        // PUT with `If-None-Match: *` creates the order.
        if *headers != [("If-None-Match", "*")] {
            assert_eq!(
                api.put(&model(), headers).await.problem(),
                (404, "order_not_found".into())
            );
        }
        let deleted = api
            .send("DELETE", "/api/v1/orders/absent", headers, b"")
            .await;
        assert_eq!(deleted.problem(), (404, "order_not_found".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusal_by_a_precondition_names_the_present_version() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let etag = api
        .get("/order/b563feb7b2b84b6test")
        .await
        .header("etag")
        .unwrap()
        .to_owned();
    for given in ["\"0\"", "1", "\"\"", "W/\"0\", \"-1\""] {
        let put = api.put(&model(), &[("If-Match", given)]).await;
        assert_eq!(put.problem(), (412, "version_mismatch".into()), "{given}");
        assert_eq!(put.header("etag"), Some(etag.as_str()));
        let deleted = api
            .send(
                "DELETE",
                "/api/v1/orders/b563feb7b2b84b6test",
                &[("If-Match", given)],
                b"",
            )
            .await;
        assert_eq!(deleted.status, 412);
    }
    assert_eq!(
        api.put(&model(), &[("If-Match", &format!("W/{etag}"))])
            .await
            .status,
        200
    );
    assert_eq!(
        api.put(&model(), &[("If-Match", &etag)]).await.status,
        412,
        "that version is gone"
    );
}

/// A star in a list would make the write unconditional.
#[tokio::test(flavor = "multi_thread")]
async fn a_precondition_that_is_malformed_is_refused() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let headers = [("If-Match", "\"0\", *")];
    let put = api.put(&model(), &headers).await;
    let deleted = api.send("DELETE", MODEL, &headers, b"").await;
    let read = api.send("GET", MODEL, &headers, b"").await;
    for answer in [put, deleted, read] {
        assert_eq!(answer.problem(), (400, "bad_request".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_that_a_precondition_excludes_are_not_written() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let etag = etag(&api).await;
    let listed = format!("\"0\", {etag}");
    for headers in [
        &[("If-None-Match", "*")][..],
        &[("If-None-Match", listed.as_str())],
        &[
            ("If-Match", etag.as_str()),
            ("If-None-Match", etag.as_str()),
        ],
    ] {
        let put = api.put(&model(), headers).await;
        assert_eq!(
            put.problem(),
            (412, "version_mismatch".into()),
            "{headers:?}"
        );
        let deleted = api.send("DELETE", MODEL, headers, b"").await;
        assert_eq!(
            deleted.problem(),
            (412, "version_mismatch".into()),
            "{headers:?}"
        );
    }
    assert_eq!(
        api.put(&model(), &[("If-None-Match", "\"0\"")])
            .await
            .status,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_writers_with_one_version_exactly_one_wins() {
    let api = TestApi::start_with(TestDatabase::create(), |config| config.pool.size = 16).await;
    let mut orders = generator();
    for _ in 0..4 {
        api.store(&model()).await;
        let etag = etag(&api).await;
        let headers = [("If-Match", etag.as_str())];
        let rivals: Vec<_> = (0..50)
            .map(|_| orders.order_with_uid("b563feb7b2b84b6test"))
            .collect();
        let answers = rivals.iter().enumerate().map(async |(number, order)| {
            if number % 2 == 0 {
                api.put(order, &headers).await
            } else {
                api.send("DELETE", MODEL, &headers, b"").await
            }
        });
        let answers = futures_util::future::join_all(answers).await;
        let winners: Vec<_> = answers
            .iter()
            .filter(|answer| matches!(answer.status, 200 | 204))
            .collect();
        assert_eq!(winners.len(), 1);
        // A writer that comes after a DELETE finds no order, and one that comes after a PUT finds another version.
        let lost = if winners[0].status == 200 { 412 } else { 404 };
        assert_eq!(
            answers
                .iter()
                .filter(|answer| answer.status == lost)
                .count(),
            49
        );
        let read = api.get(MODEL).await;
        match winners[0].status {
            200 => assert_eq!(
                (&read.body, read.header("etag")),
                (&winners[0].body, winners[0].header("etag"))
            ),
            _ => assert_eq!(read.status, 404),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answered_put_is_never_followed_by_an_older_answer() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let mut orders = generator();
    for _ in 0..50 {
        // The order is cached, so only an eviction can make the new version visible.
        api.get("/order/b563feb7b2b84b6test").await;
        let body = serde_json::to_string(&orders.order_with_uid("b563feb7b2b84b6test")).unwrap();
        // Both requests are sent at once on one connection, so the read begins before the event can have come back from the
        // database.
        let requests = format!(
            "PUT /api/v1/orders/b563feb7b2b84b6test HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}\
             GET /order/b563feb7b2b84b6test HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let answers = api.send_bytes(requests.as_bytes()).await;
        assert_eq!(answers.body.matches(&body).count(), 2, "{}", answers.body);
    }
}
