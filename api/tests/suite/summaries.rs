//! `view=summary`: lists without personal data.

use serde_json::{Value, json};

use crate::support::copies::{copy, store_copies};
use crate::support::download::Download;
use crate::support::{TestApi, model};

const PATH: &str = "/api/v1/orders?view=summary";

/// The summary of an order, but for its tag.
fn summary(order: &shared::order::Order) -> Value {
    let whole = serde_json::to_value(order).unwrap();
    json!({
        "order_uid": whole["order_uid"], "track_number": whole["track_number"], "customer_id": whole["customer_id"],
        "date_created": whole["date_created"], "items_count": order.items.len(),
        "amount": whole["payment"]["amount"], "currency": whole["payment"]["currency"],
    })
}

fn without_tag(mut summary: Value) -> Value {
    summary.as_object_mut().unwrap().remove("etag").unwrap();
    summary
}

#[tokio::test(flavor = "multi_thread")]
async fn summaries_have_their_eight_fields_as_page_and_as_stream() {
    let api = TestApi::start().await;
    store_copies(&api.database, 3, 1000);
    let expected = [model(), copy(1, 1000), copy(2, 1000), copy(3, 1000)];
    let expected: Vec<_> = expected.iter().map(summary).collect();
    let page = api.get(PATH).await.json();
    let of_page = page["orders"].as_array().unwrap().clone();
    let lines = Download::start_wide(api.port, PATH).await.lines().await;
    let of_stream = lines.unwrap();
    let of_stream = of_stream.iter().map(|line| serde_json::from_str(line));
    let of_stream: Vec<Value> = of_stream.map(Result::unwrap).collect();
    assert_eq!(of_stream, of_page);
    let of_page: Vec<_> = of_page.into_iter().map(without_tag).collect();
    assert_eq!(of_page, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn tag_of_a_summary_is_the_tag_of_the_order() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let summary = api.get(PATH).await.json()["orders"][0].clone();
    let tag = summary["etag"].as_str().unwrap();
    let path = format!("/order/{}", model().order_uid);
    assert_eq!(api.get(&path).await.header("etag"), Some(tag));
    let unchanged = api.send("GET", &path, &[("If-None-Match", tag)], b"").await;
    assert_eq!(unchanged.status, 304);
    assert_eq!(api.put(&model(), &[("If-Match", tag)]).await.status, 200);
    let other = api.get(PATH).await.json()["orders"][0]["etag"].clone();
    assert_ne!(other, tag, "the order has another version");
    assert_eq!(api.put(&model(), &[("If-Match", tag)]).await.status, 412);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_summaries_lead_to_pages_of_summaries() {
    let api = TestApi::start().await;
    store_copies(&api.database, 4, 1);
    let first = api.get(&format!("{PATH}&limit=3&customer_id=test")).await;
    let link = first.header("link").unwrap();
    let next = link[1..].strip_suffix(">; rel=\"next\"").unwrap();
    let second = api.get(next).await.json();
    let uids: Vec<_> = [first.json(), second]
        .iter()
        .flat_map(|page| page["orders"].as_array().unwrap().clone())
        .map(|summary| without_tag(summary)["order_uid"].clone())
        .collect();
    let expected: Vec<_> = (1..=4).map(|number| format!("copy-{number}")).collect();
    assert_eq!(uids[1..], expected);
    let whole = next.replace("&view=summary", "");
    assert_eq!(
        api.get(&whole).await.problem(),
        (400, "invalid_cursor".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_other_view() {
    let api = TestApi::start().await;
    for value in ["", "whole", "Summary", "summary&view=summary"] {
        let answer = api.get(&format!("/api/v1/orders?view={value}")).await;
        assert_eq!(answer.problem(), (400, "invalid_parameter".into()));
        assert!(answer.json()["detail"].as_str().unwrap().contains("view"));
    }
}
