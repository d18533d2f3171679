//! `count=`: how many orders match.

use serde_json::{Value, json};

use crate::support::TestApi;
use crate::support::copies::store_copies;

async fn total(api: &TestApi, query: &str) -> Value {
    let answer = api.get(&["/api/v1/orders?", query].concat()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["total"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn totals_are_counted_or_estimated_on_demand_only() {
    let api = TestApi::start().await;
    store_copies(&api.database, 399, 1);
    api.database
        .execute("UPDATE orders SET customer_id = 'other' WHERE payment_amount % 4 = 0");
    // Without statistics, the planner guesses.
    let guessed = total(&api, "count=estimated&limit=300").await;
    assert_eq!(guessed["kind"], "estimated");
    assert!(guessed["value"].as_u64().unwrap() > 300, "{guessed}");
    api.database.execute("ANALYZE orders");
    for (filter, expected) in [
        ("limit=10", 400),
        ("limit=10&customer_id=other", 99),
        ("limit=10&view=summary&customer_id=test", 301),
        ("limit=10&from=2021-11-26T06:20:00Z", 140),
    ] {
        let exact = total(&api, &[filter, "&count=exact"].concat()).await;
        assert_eq!(
            exact,
            json!({"value": expected, "kind": "exact"}),
            "{filter}"
        );
        let estimated = total(&api, &[filter, "&count=estimated"].concat()).await;
        assert_eq!(estimated["kind"], "estimated");
        let value = estimated["value"].as_f64().unwrap() / f64::from(expected);
        assert!((0.8..1.25).contains(&value), "{filter}: {estimated}");
        assert_eq!(total(&api, filter).await, Value::Null, "nobody asked");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn total_is_that_of_all_pages() {
    let api = TestApi::start().await;
    store_copies(&api.database, 24, 1);
    let first = api.get("/api/v1/orders?limit=10&count=exact").await;
    let next = first.header("link").unwrap()[1..]
        .split('>')
        .next()
        .unwrap();
    assert!(!next.contains("count"), "{next}");
    let second = api.get(&[next, "&count=exact"].concat()).await.json();
    assert_eq!(second["total"], json!({"value": 25, "kind": "exact"}));
    // One page has all of them, so they need not be estimated.
    for (query, value) in [("limit=25", 25), ("customer_id=nobody", 0)] {
        let whole = total(&api, &[query, "&count=estimated"].concat()).await;
        assert_eq!(whole, json!({"value": value, "kind": "exact"}));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_pages_have_a_total() {
    let api = TestApi::start().await;
    let ndjson = [("Accept", "application/x-ndjson")];
    for (query, headers) in [
        ("count=", &[][..]),
        ("count=planned", &[]),
        ("count=exact&count=exact", &[]),
        ("count=exact&order_uids=a", &[]),
        ("count=exact", &ndjson),
    ] {
        let path = ["/api/v1/orders?", query].concat();
        let answer = api.send("GET", &path, headers, b"").await;
        assert_eq!(
            answer.problem(),
            (400, "invalid_parameter".into()),
            "{query}"
        );
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.starts_with("count "), "{query}: {detail}");
    }
}
