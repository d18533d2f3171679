//! Creating an order: POST, and PUT with `If-None-Match: *`.

use std::sync::Arc;

use futures_util::future::join_all;
use shared::order::Order;
use shared::testing::{TestDatabase, eventually};

use crate::support::{Answer, PATIENCE, TestApi, generator, model, store};

const MODEL: &str = "/api/v1/orders/b563feb7b2b84b6test";
const LIST: &str = "/api/v1/orders";
const ABSENT: (&str, &str) = ("If-None-Match", "*");

fn json(order: &Order) -> String {
    serde_json::to_string(order).unwrap() + "\n"
}

/// What an answer says about an order: its status, its `Location` and its `ETag`.
fn about(answer: &Answer) -> (u16, Option<&str>, Option<&str>) {
    (
        answer.status,
        answer.header("location"),
        answer.header("etag"),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn post_creates_an_order_here_at_once_and_in_other_processes_soon() {
    let api = TestApi::start().await;
    let other = TestApi::start_unready(Arc::clone(&api.database), |_| {}).await;
    other.wait_until_live().await;
    // Both processes remember that there is no such order.
    for process in [&api, &other] {
        assert_eq!(process.get(MODEL).await.status, 404);
    }
    let created = api.post(&model(), &[]).await;
    let etag = created.header("etag").unwrap();
    assert_eq!(about(&created), (201, Some(MODEL), Some(etag)));
    assert_eq!(created.body, json(&model()));
    let read = api.get(created.header("location").unwrap()).await;
    assert_eq!(
        (&read.body, read.header("etag")),
        (&created.body, Some(etag))
    );
    eventually("the other process sees it", PATIENCE, async || {
        other.get(MODEL).await.body == created.body
    })
    .await;
    let unsourced = "SELECT count(*) AS value FROM orders WHERE source_partition IS NULL AND source_offset IS NULL \
                     AND source_incarnation IS NULL";
    assert_eq!(api.database.integer(unsourced), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_exists_is_not_created_again() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let rows = "SELECT concat_ws(' ', version, xmin, source_offset) AS value FROM orders";
    let before = api.database.texts(rows);
    let etag = api.get(MODEL).await.header("etag").unwrap().to_owned();
    let rival = generator().order_with_uid("b563feb7b2b84b6test");
    // The list has no preconditions.
    for headers in [&[][..], &[ABSENT], &[("If-Match", etag.as_str())]] {
        let refused = api.post(&rival, headers).await;
        assert_eq!(
            refused.problem(),
            (409, "order_exists".into()),
            "{headers:?}"
        );
        assert_eq!(about(&refused), (409, Some(MODEL), Some(etag.as_str())));
    }
    let refused = api.put(&rival, &[ABSENT]).await;
    assert_eq!(refused.problem(), (412, "version_mismatch".into()));
    assert_eq!(about(&refused), (412, None, Some(etag.as_str())));
    assert_eq!(api.database.texts(rows), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn put_creates_an_order_only_if_the_client_demands_that_there_is_none() {
    let api = TestApi::start().await;
    let not_found = api.put(&model(), &[]).await.problem();
    assert_eq!(not_found, (404, "order_not_found".into()));
    let created = api.put(&model(), &[ABSENT]).await;
    assert_eq!(
        (created.status, created.body.as_str()),
        (201, json(&model()).as_str())
    );
    assert_eq!(created.header("location"), Some(MODEL));
    let read = api.get(MODEL).await;
    assert_eq!(
        (&read.body, read.header("etag")),
        (&created.body, created.header("etag"))
    );
    let replaced = api.put(&model(), &[]).await;
    assert_eq!((replaced.status, replaced.header("location")), (200, None));
}

/// RFC 9110, section 13.2.2: `If-Match` is evaluated first, and a missing order has no state that it could match.
#[tokio::test(flavor = "multi_thread")]
async fn both_preconditions_together_never_create_an_order() {
    let api = TestApi::start().await;
    let refused = (412, "version_mismatch".to_owned());
    for if_match in ["*", "\"1-0000000000000000\"", "none"] {
        let answer = api.put(&model(), &[("If-Match", if_match), ABSENT]).await;
        assert_eq!(
            (answer.problem(), answer.header("etag")),
            (refused.clone(), None)
        );
        assert!(answer.body.contains("there is no order"), "{}", answer.body);
    }
    assert_eq!(api.get(MODEL).await.status, 404);
    let etag = api
        .post(&model(), &[])
        .await
        .header("etag")
        .unwrap()
        .to_owned();
    for if_match in ["*", etag.as_str(), "\"0\""] {
        let answer = api.put(&model(), &[("If-Match", if_match), ABSENT]).await;
        assert_eq!(
            (answer.problem(), answer.header("etag")),
            (refused.clone(), Some(etag.as_str()))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn post_checks_media_type_then_size_then_json_then_order_then_existence() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let valid = json(&model());
    let invalid = valid.replace("\"amount\":1817", "\"amount\":-1");
    let large = " ".repeat(256 * 1024 + 1);
    for (media_type, body, status, code) in [
        ("text/plain", large.as_str(), 415, "unsupported_media_type"),
        ("application/json", &large, 413, "body_too_large"),
        ("application/json", "{", 400, "malformed_json"),
        ("application/json", "[]", 422, "invalid_order"),
        ("application/json", &invalid, 422, "invalid_order"),
        ("application/json", &valid, 409, "order_exists"),
    ] {
        let headers = [("Content-Type", media_type)];
        let answer = api.send("POST", LIST, &headers, body.as_bytes()).await;
        assert_eq!(answer.problem(), (status, code.into()), "{media_type}");
    }
    let headers = [("Content-Type", "application/json")];
    let answer = api
        .send("POST", "/api/v1/orders?limit=1", &headers, b"{}")
        .await;
    assert_eq!(answer.problem(), (400, "unknown_parameter".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_thirty_who_create_one_order_exactly_one_does() {
    let api = TestApi::start_with(TestDatabase::create(), |config| config.pool.size = 16).await;
    let mut orders = generator();
    for round in 0..5 {
        let uid = format!("new-{round}");
        let rivals: Vec<_> = (0..30).map(|_| orders.order_with_uid(&uid)).collect();
        let answers = rivals.iter().enumerate().map(async |(number, order)| {
            if number % 2 == 0 {
                api.post(order, &[]).await
            } else {
                api.put(order, &[ABSENT]).await
            }
        });
        let answers = join_all(answers).await;
        let (winners, losers): (Vec<_>, Vec<_>) =
            answers.iter().partition(|answer| answer.status == 201);
        assert_eq!(winners.len(), 1, "{uid}");
        for loser in losers {
            assert!(matches!(loser.status, 409 | 412), "{}", loser.body);
            assert_eq!(loser.header("etag"), winners[0].header("etag"));
        }
        let read = api.get(&format!("/order/{uid}")).await;
        assert_eq!(read.body, winners[0].body);
    }
}

/// Orders are created and deleted at once. Every 201 must be followed by one 204, or the order still exists.
#[tokio::test(flavor = "multi_thread")]
async fn those_who_create_and_delete_one_order_alternate() {
    let api = TestApi::start_with(TestDatabase::create(), |config| config.pool.size = 16).await;
    let order = model();
    let answers = (0..60).map(async |number| {
        if number % 2 == 0 {
            api.post(&order, &[]).await.status
        } else {
            api.send("DELETE", MODEL, &[], b"").await.status
        }
    });
    let answers = join_all(answers).await;
    let count = |status| answers.iter().filter(|each| **each == status).count();
    assert_eq!(count(201) + count(409), 30, "{answers:?}");
    assert_eq!(count(204) + count(404), 30, "{answers:?}");
    let exists = usize::from(api.get(MODEL).await.status == 200);
    assert_eq!(count(201), count(204) + exists, "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answered_post_is_never_followed_by_an_older_answer() {
    let api = TestApi::start().await;
    let mut orders = generator();
    for round in 0..50 {
        let uid = format!("new-{round}");
        let path = format!("/order/{uid}");
        // The absence is cached, so only an eviction can make the order visible.
        assert_eq!(api.get(&path).await.status, 404);
        let body = serde_json::to_string(&orders.order_with_uid(&uid)).unwrap();
        // Both requests are sent at once on one connection, so the read begins before the event can have come back from the
        // database.
        let requests = format!(
            "POST {LIST} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}\
             GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let answers = api.send_bytes(requests.as_bytes()).await;
        assert_eq!(answers.body.matches(&body).count(), 2, "{}", answers.body);
    }
}

/// The message is written as the ingestor writes it, by the statement that both processes share.
#[tokio::test(flavor = "multi_thread")]
async fn removed_order_can_be_created_again_and_a_later_message_replaces_it() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let entries = "SELECT count(*) AS value FROM removed_orders";
    let sources = "SELECT count(*) AS value FROM orders WHERE source_offset IS NOT NULL";
    let mut etags = vec![api.get(MODEL).await.header("etag").unwrap().to_owned()];
    for create_by_put in [false, true] {
        let deleted = api.send("DELETE", MODEL, &[], b"").await;
        assert_eq!(deleted.status, 204);
        let created = match create_by_put {
            true => api.put(&model(), &[ABSENT]).await,
            false => api.post(&model(), &[]).await,
        };
        assert_eq!(created.status, 201);
        etags.push(created.header("etag").unwrap().to_owned());
        assert_eq!(api.database.integer(entries), 1, "the entry stays");
        assert_eq!(api.database.integer(sources), 0);
    }
    let distinct: std::collections::BTreeSet<_> = etags.iter().collect();
    assert_eq!(distinct.len(), 3, "no tag stands for two states: {etags:?}");

    let message = generator().order_with_uid("b563feb7b2b84b6test");
    store(&api.database, &message);
    eventually("the message has replaced it", PATIENCE, async || {
        api.get(MODEL).await.body == json(&message)
    })
    .await;
    assert_eq!(api.database.integer(sources), 1);
    let lost = api.put(&model(), &[("If-Match", &etags[2])]).await;
    assert_eq!(lost.status, 412);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_whose_id_is_the_name_of_another_route_is_where_location_says() {
    let api = TestApi::start().await;
    let mut order = model();
    order.order_uid = "search".parse().unwrap();
    let body = json(&order);
    let json = [("Content-Type", "application/json")];
    let created = api
        .send("POST", "/api/v1/orders", &json, body.as_bytes())
        .await;
    assert_eq!(created.status, 201);
    let location = created.header("location").unwrap();
    assert_eq!(api.get(location).await.json(), created.json());
    assert_eq!(
        api.send("PUT", location, &json, body.as_bytes())
            .await
            .status,
        200
    );
    assert_eq!(api.send("DELETE", location, &[], b"").await.status, 204);
}
