//! `Accept: text/csv`: all orders for spreadsheets.

use csv::{ReaderBuilder, StringRecord};
use serde_json::Value;
use shared::order::Order;

use crate::support::copies::{copy, store_copies};
use crate::support::download::Download;
use crate::support::{TestApi, generator, model, store};

const PATH: &str = "/api/v1/orders";
const CSV: &str = "Accept: text/csv\r\n";

/// Returns the header and the rows.
async fn rows(download: Download) -> (StringRecord, Vec<StringRecord>) {
    let bytes = download.bytes().await.unwrap();
    let mut reader = ReaderBuilder::new().from_reader(&*bytes);
    let header = reader.headers().unwrap().clone();
    let rows = reader.records().map(Result::unwrap).collect();
    (header, rows)
}

/// What an export must have: each item with its order's fields, named by their paths.
fn expected(header: &StringRecord, order: &Order) -> Vec<Vec<String>> {
    let order = serde_json::to_value(order).unwrap();
    let text = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let items = order["items"].as_array().unwrap().iter();
    let row = |item: &Value| {
        let fields = header.iter().map(|path| {
            let (holder, path) = match path.strip_prefix("item.") {
                Some(field) => (item, field),
                None => (&order, path),
            };
            let value = holder.pointer(&["/", &path.replace('.', "/")].concat());
            let text = text(value.unwrap_or_else(|| panic!("no {path}")));
            let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
            if is_formula {
                ["'", &text].concat()
            } else {
                text
            }
        });
        fields.collect()
    };
    items.map(row).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_item_is_a_row_that_comes_back_equal() {
    let api = TestApi::start().await;
    let mut unusual = generator().next_order();
    unusual.date_created = "2019-01-01T00:00:00.000001Z".parse().unwrap();
    unusual.delivery.address = "Line 1,\r\n\"Line 2\"\n\tLine 3".into();
    unusual.delivery.name = "=HYPERLINK(\"http://evil.example\",\"a\")".into();
    unusual.delivery.region = "@Я, 𝄞".into();
    unusual.items[0].name = "-2+3".into();
    unusual.items[0].brand = ",".into();
    store_copies(&api.database, 2, 3);
    store(&api.database, &unusual);
    let download = Download::start_with(api.port, PATH, CSV).await;
    let head = download.head.to_ascii_lowercase();
    assert!(
        head.contains("\r\ncontent-type: text/csv; charset=utf-8; header=present\r\n"),
        "{head}"
    );
    let (header, rows) = rows(download).await;
    let orders = [model(), copy(1, 3), copy(2, 3), unusual];
    let expected: Vec<_> = orders
        .iter()
        .flat_map(|order| expected(&header, order))
        .collect();
    assert_eq!(header.len(), 39);
    assert_eq!(rows, expected);
    let none = Download::start_with(api.port, "/api/v1/orders?customer_id=nobody", CSV).await;
    let bytes = none.bytes().await.unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(text.matches("\r\n").count(), 1, "{text}");
    assert!(
        text.starts_with("order_uid,track_number,entry,delivery.name,"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_are_larger_than_a_part_are_whole() {
    let api = TestApi::start().await;
    store_copies(&api.database, 3, 1000);
    // Each row repeats the address, so that the orders have more than 2 MB.
    let wide = "я".repeat(512);
    api.database
        .execute(&format!("UPDATE orders SET delivery_address = '{wide}'"));
    let mut orders = vec![model(), copy(1, 1000), copy(2, 1000), copy(3, 1000)];
    for order in &mut orders {
        order.delivery.address = wide.as_str().into();
    }
    let (header, rows) = rows(Download::start_with(api.port, PATH, CSV).await).await;
    let expected: Vec<_> = orders
        .iter()
        .flat_map(|order| expected(&header, order))
        .collect();
    assert!(
        rows == expected,
        "{} of {} rows",
        rows.len(),
        expected.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_summary_is_a_row() {
    let api = TestApi::start().await;
    store_copies(&api.database, 2, 3);
    let page = api.get("/api/v1/orders?view=summary").await.json();
    let download = Download::start_with(api.port, "/api/v1/orders?view=summary", CSV).await;
    let (header, rows) = rows(download).await;
    let summaries = page["orders"].as_array().unwrap();
    assert_eq!(header.len(), summaries[0].as_object().unwrap().len());
    assert_eq!(rows.len(), summaries.len());
    for (row, summary) in rows.iter().zip(summaries) {
        for (name, cell) in header.iter().zip(row) {
            let value = &summary[name];
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            assert_eq!(cell, text, "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn csv_is_chosen_by_accept_and_takes_no_paging() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    for (accept, content_type) in [
        ("text/csv", "text/csv; charset=utf-8; header=present"),
        ("text/*", "text/csv; charset=utf-8; header=present"),
        (
            "text/csv, application/x-ndjson;q=0.9",
            "text/csv; charset=utf-8; header=present",
        ),
        ("text/csv, application/json", "application/json"),
        ("text/csv, application/x-ndjson", "application/x-ndjson"),
        ("text/csv;q=0, */*", "application/json"),
    ] {
        for method in ["GET", "HEAD"] {
            let answer = api.send(method, PATH, &[("Accept", accept)], b"").await;
            let found = (answer.status, answer.header("content-type"));
            assert_eq!(found, (200, Some(content_type)), "{method} {accept}");
        }
    }
    for query in ["limit=1", "count=exact"] {
        let path = [PATH, "?", query].concat();
        let answer = api.send("GET", &path, &[("Accept", "text/csv")], b"").await;
        assert_eq!(
            answer.problem(),
            (400, "invalid_parameter".into()),
            "{query}"
        );
    }
    let headers = [("Content-Type", "application/json"), ("Accept", "text/csv")];
    let body = b"{\"phone\": \"9720000000\", \"view\": \"summary\"}";
    let found = api
        .send("POST", "/api/v1/orders/search", &headers, body)
        .await;
    assert!(
        found.body.contains("b563feb7b2b84b6test,"),
        "{}",
        found.body
    );
}
