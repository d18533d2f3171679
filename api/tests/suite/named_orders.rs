//! `order_uids=`: the orders that a client names.

use serde_json::{Value, json};
use shared::testing::TestDatabase;

use crate::support::copies::{copy, store_copies};
use crate::support::{Answer, TestApi, generator, model, store, terminate_listener};

const PATH: &str = "/api/v1/orders?order_uids=";

async fn ask(api: &TestApi, uids: &str) -> Answer {
    api.get(&[PATH, uids].concat()).await
}

fn values(orders: &[shared::order::Order]) -> Value {
    serde_json::to_value(orders).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_come_in_the_order_of_their_names_and_missing_ones_are_named() {
    let api = TestApi::start().await;
    store_copies(&api.database, 3, 2);
    let answer = ask(
        &api,
        "copy-3,absent,copy-1,b563feb7b2b84b6test,copy-3,absent",
    )
    .await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(
        answer.json(),
        json!({
            "orders": values(&[copy(3, 2), copy(1, 2), model()]), "missing": ["absent"], "remaining": [],
        }),
        "each once, at its first place"
    );
    assert_eq!(answer.header("link"), None);
    let none = ask(&api, "absent").await.json();
    assert_eq!(
        none,
        json!({"orders": [], "missing": ["absent"], "remaining": []})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn they_are_read_through_the_cache() {
    let api = TestApi::start().await;
    store_copies(&api.database, 2, 1);
    for (expected, headers) in [
        ((0, 2), &[][..]),
        ((2, 0), &[]),
        ((0, 0), &[("Cache-Control", "no-cache")]),
    ] {
        let before = api.stats().await;
        let path = [PATH, "copy-1,copy-2"].concat();
        let answer = api.send("GET", &path, headers, b"").await;
        assert_eq!(answer.json()["orders"], values(&[copy(1, 1), copy(2, 1)]));
        let after = api.stats().await;
        let more = |name: &str| after[name].as_u64().unwrap() - before[name].as_u64().unwrap();
        assert_eq!((more("hits"), more("misses")), expected, "{headers:?}");
    }
    // An event evicts what the next answer must not have.
    let mut changed = copy(1, 1);
    changed.payment.amount = 7;
    api.store(&changed).await;
    let answer = ask(&api, "copy-1,copy-2").await;
    assert_eq!(answer.json()["orders"], values(&[changed, copy(2, 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn blind_api_reads_all_of_them_from_the_database() {
    let api = TestApi::start_with(TestDatabase::create(), |config| config.pool.size = 1).await;
    store_copies(&api.database, 30, 1);
    let uids: Vec<_> = (1..=30).map(|number| format!("copy-{number}")).collect();
    // The listener may come back at any time. The answer must be right in any case.
    terminate_listener(&api.database);
    let answer = ask(&api, &uids.join(",")).await;
    let expected: Vec<_> = (1..=30).map(|number| copy(number, 1)).collect();
    assert_eq!(answer.json()["orders"], values(&expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_into_4_mib_remains() {
    let api = TestApi::start().await;
    store_copies(&api.database, 40, 1000);
    let uids: Vec<_> = (1..=40).map(|number| format!("copy-{number}")).collect();
    let mut remaining = [&uids[..], &["absent".to_owned()]].concat();
    let mut seen: Vec<String> = Vec::new();
    while !remaining.is_empty() {
        let answer = ask(&api, &remaining.join(",")).await;
        assert!(answer.body.len() <= 4 << 20);
        let page = answer.json();
        let orders = page["orders"].as_array().unwrap().iter();
        seen.extend(orders.map(|order| order["order_uid"].as_str().unwrap().to_owned()));
        let rest: Vec<String> = serde_json::from_value(page["remaining"].clone()).unwrap();
        assert_eq!(rest, remaining[remaining.len() - rest.len()..]);
        let missing = if rest.is_empty() {
            json!(["absent"])
        } else {
            json!([])
        };
        assert_eq!(page["missing"], missing);
        assert!(rest.len() < remaining.len());
        remaining = rest;
    }
    assert_eq!(seen, uids);
}

#[tokio::test(flavor = "multi_thread")]
async fn summaries_of_named_orders_are_those_of_the_list() {
    let api = TestApi::start().await;
    store_copies(&api.database, 2, 3);
    let mut unusual = generator().next_order();
    unusual.order_uid = "unusual".parse().unwrap();
    unusual.date_created = "2020-02-29T23:59:59.000001Z".parse().unwrap();
    store(&api.database, &unusual);
    let listed = api.get("/api/v1/orders?view=summary").await.json();
    let uids = "b563feb7b2b84b6test,copy-1,copy-2,unusual";
    let named = ask(&api, &[uids, "&view=summary"].concat()).await.json();
    assert_eq!(named["orders"], listed["orders"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_refused() {
    let api = TestApi::start().await;
    let hundred = vec!["a"; 100].join(",");
    assert_eq!(ask(&api, &hundred).await.status, 200);
    let more = [&hundred, ",a"].concat();
    for (uids, name) in [
        ("", "order_uids"),
        ("a,", "order_uids"),
        (",a", "order_uids"),
        ("a,,b", "order_uids"),
        ("a%20,b", "order_uids"),
        (&more, "order_uids"),
        ("a&order_uids=b", "order_uids"),
        ("a&limit=1", "limit"),
        ("a&cursor=abc", "cursor"),
        ("a&customer_id=test", "customer_id"),
        ("a&track_number=t", "track_number"),
        ("a&from=2021-01-01T00:00:00Z", "from"),
        ("a&to=2021-01-01T00:00:00Z", "to"),
        ("a&view=all", "view"),
    ] {
        let answer = ask(&api, uids).await;
        assert_eq!(
            answer.problem(),
            (400, "invalid_parameter".into()),
            "{uids}"
        );
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.starts_with(name), "{uids}: {detail}");
    }
    let path = [PATH, "a"].concat();
    let ndjson = [("Accept", "application/x-ndjson")];
    let answer = api.send("GET", &path, &ndjson, b"").await;
    assert_eq!(answer.problem(), (406, "not_acceptable".into()));
}
