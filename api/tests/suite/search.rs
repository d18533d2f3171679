//! `POST /api/v1/orders/search`: lists by personal data and by prefixes.

use serde_json::{Value, json};
use shared::order::Order;
use shared::testing::TestDatabase;

use crate::support::download::Download;
use crate::support::program::Program;
use crate::support::{Answer, TestApi, generator, model, store};

const PATH: &str = "/api/v1/orders/search";
const JSON: (&str, &str) = ("Content-Type", "application/json");

async fn search(api: &TestApi, body: &Value) -> Answer {
    let body = body.to_string();
    api.send("POST", PATH, &[JSON], body.as_bytes()).await
}

async fn found(api: &TestApi, body: Value) -> Vec<String> {
    let answer = search(api, &body).await;
    assert_eq!(answer.status, 200, "{body}: {}", answer.body);
    let orders = answer.json()["orders"].as_array().unwrap().clone();
    let uids = orders.iter().map(|order| order["order_uid"].as_str());
    uids.map(|uid| uid.unwrap().to_owned()).collect()
}

/// Stores orders, each newer than the one before.
fn store_people(api: &TestApi) {
    let mut orders = generator();
    for (number, (uid, track_number, phone, email)) in [
        (
            "abc-1",
            "TRACK-1",
            "+7 (916) 123-45-67",
            "Anna@Shop.example",
        ),
        ("abc-2", "TRACK-2", "79161234567", "anna@shop.example"),
        ("abd-1", "TRACK-é", "+7 916 123-45-68", "ANNA@SHOP.EXAMPLE"),
        (
            "Abc-3",
            "TRACKED",
            "7 9161234567 x1",
            "anna@shop.example.org",
        ),
        ("nobody", "OTHER", "", ""),
    ]
    .into_iter()
    .enumerate()
    {
        let mut order = Order {
            track_number: track_number.into(),
            customer_id: format!("customer-{}", number % 2).into(),
            date_created: format!("2026-01-0{}T00:00:00Z", number + 1)
                .parse()
                .unwrap(),
            ..orders.order_with_uid(uid)
        };
        order.delivery.phone = phone.into();
        order.delivery.email = email.into();
        store(&api.database, &order);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn phones_are_compared_by_their_digits_and_e_mails_in_lower_case_both_as_a_whole() {
    let api = TestApi::start().await;
    store_people(&api);
    for (body, expected) in [
        (json!({"phone": "+79161234567"}), &["abc-2", "abc-1"][..]),
        (json!({"phone": "7-916-123 45 67"}), &["abc-2", "abc-1"]),
        (json!({"phone": "9161234567"}), &[]),
        (json!({"phone": "791612345671"}), &["Abc-3"]),
        (
            json!({"email": "aNNa@shop.example"}),
            &["abd-1", "abc-2", "abc-1"],
        ),
        (json!({"email": "anna@shop"}), &[]),
        (json!({"email": "%"}), &[]),
        (json!({"order_uid_prefix": "abc"}), &["abc-2", "abc-1"]),
        (json!({"order_uid_prefix": "abc-1"}), &["abc-1"]),
        (json!({"order_uid_prefix": "ab_"}), &[]),
        (
            json!({"track_number_prefix": "TRACK-"}),
            &["abd-1", "abc-2", "abc-1"],
        ),
        (json!({"track_number_prefix": "TRACK-é"}), &["abd-1"]),
        (json!({"track_number_prefix": "track"}), &[]),
        (
            json!({"phone": "79161234567", "email": "anna@shop.example", "order_uid_prefix": "abc-1",
            "track_number_prefix": "TRA", "customer_id": "customer-0", "track_number": "TRACK-1",
            "from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z"}),
            &["abc-1"],
        ),
        (
            json!({"phone": "79161234567", "customer_id": "customer-1"}),
            &["abc-2"],
        ),
        (
            json!({"phone": "79161234567", "from": "2026-01-02T00:00:00Z"}),
            &["abc-2"],
        ),
        (
            json!({"phone": null, "limit": null, "cursor": null, "email": null, "view": null}),
            &["nobody", "Abc-3", "abd-1", "abc-2", "abc-1"],
        ),
        (json!({"limit": 2.0}), &["nobody", "Abc-3"]),
        (json!({}), &["nobody", "Abc-3", "abd-1", "abc-2", "abc-1"]),
    ] {
        assert_eq!(found(&api, body.clone()).await, expected, "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn search_is_paged_as_the_list_is_but_leaves_no_trace_in_urls() {
    let api = TestApi::start().await;
    let mut orders = generator();
    for number in 0..7 {
        let mut order = orders.order_with_uid(&format!("uid-{number}"));
        order.delivery.phone = "+1 555 0100".into();
        // Several have the same time, so their ids decide.
        order.date_created = format!("2026-01-0{}T00:00:00Z", number / 3 + 1)
            .parse()
            .unwrap();
        store(&api.database, &order);
        store(&api.database, &orders.next_order());
    }
    let mut body =
        json!({"phone": "15550100", "limit": 2, "view": "summary", "count": "estimated"});
    let mut seen = Vec::new();
    loop {
        let tag = [JSON, ("If-None-Match", "*")];
        let text = body.to_string();
        let answer = api.send("POST", PATH, &tag, text.as_bytes()).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!((answer.header("link"), answer.header("etag")), (None, None));
        let page = answer.json();
        assert_eq!(page["total"], json!({"value": 7, "kind": "exact"}));
        for summary in page["orders"].as_array().unwrap() {
            assert_eq!(summary.as_object().unwrap().len(), 8);
            seen.push(summary["order_uid"].as_str().unwrap().to_owned());
        }
        if page["next_cursor"].is_null() {
            break;
        }
        body["cursor"] = page["next_cursor"].clone();
        // The same digits are the same filter.
        body["phone"] = json!("+1 (555) 01-00");
    }
    let expected: Vec<_> = (0..7).rev().map(|number| format!("uid-{number}")).collect();
    assert_eq!(seen, expected);
    for (name, value) in [
        ("phone", json!("15550101")),
        ("phone", Value::Null),
        ("email", json!("a@b.example")),
        ("order_uid_prefix", json!("uid")),
        ("track_number_prefix", json!("uid")),
        ("view", Value::Null),
    ] {
        let mut other = body.clone();
        other[name] = value;
        let answer = search(&api, &other).await;
        assert_eq!(answer.problem(), (400, "invalid_cursor".into()), "{other}");
    }
    let cursor = body["cursor"].as_str().unwrap();
    let list = format!("/api/v1/orders?view=summary&cursor={cursor}");
    assert_eq!(
        api.get(&list).await.problem(),
        (400, "invalid_cursor".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn matches_can_be_streamed() {
    let api = TestApi::start().await;
    store_people(&api);
    let body = json!({"phone": "79161234567"}).to_string();
    let headers = "Accept: application/x-ndjson\r\nContent-Type: application/json\r\n";
    let download = Download::post(api.port, PATH, headers, &body).await;
    let lines = download.lines().await.unwrap();
    let uids: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let uids: Vec<_> = uids.iter().map(|order| &order["order_uid"]).collect();
    assert_eq!(uids, ["abc-2", "abc-1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bodies_are_refused_by_name() {
    let api = TestApi::start().await;
    for (body, code, named) in [
        (r#"{"phones": "1"}"#, "unknown_parameter", "phones"),
        (r#"{"order_uids": "a"}"#, "unknown_parameter", "order_uids"),
        (r#"{"phone": 79161234567}"#, "invalid_parameter", "phone"),
        (r#"{"phone": ["7"]}"#, "invalid_parameter", "phone"),
        (r#"{"phone": "none"}"#, "invalid_parameter", "phone"),
        (r#"{"phone": ""}"#, "invalid_parameter", "phone"),
        (r#"{"phone": "1\u0000"}"#, "invalid_parameter", "phone"),
        (
            r#"{"phone": "1", "phone": "1"}"#,
            "invalid_parameter",
            "phone",
        ),
        (r#"{"email": ""}"#, "invalid_parameter", "email"),
        (r#"{"email": true}"#, "invalid_parameter", "email"),
        (
            r#"{"order_uid_prefix": "ab"}"#,
            "invalid_parameter",
            "order_uid_prefix",
        ),
        (
            r#"{"order_uid_prefix": "ab%"}"#,
            "invalid_parameter",
            "order_uid_prefix",
        ),
        (
            r#"{"track_number_prefix": "ab"}"#,
            "invalid_parameter",
            "track_number_prefix",
        ),
        (
            r#"{"track_number_prefix": "ab\n"}"#,
            "invalid_parameter",
            "track_number_prefix",
        ),
        (r#"{"from": "yesterday"}"#, "invalid_parameter", "from"),
        (r#"{"view": "whole"}"#, "invalid_parameter", "view"),
        (r#"{"count": "all"}"#, "invalid_parameter", "count"),
        (r#"{"limit": "10"}"#, "invalid_parameter", "limit"),
        (r#"{"limit": 0}"#, "invalid_limit", "limit"),
        (r#"{"limit": 1001}"#, "invalid_limit", "limit"),
        (r#"{"limit": 1.5}"#, "invalid_limit", "limit"),
        (r#"{"limit": -1}"#, "invalid_limit", "limit"),
        (r#"{"cursor": "abc"}"#, "invalid_cursor", "cursor"),
        ("{", "malformed_json", "line 1"),
        ("", "malformed_json", "line 1"),
        ("[]", "malformed_json", "object"),
        ("\"secret\"", "malformed_json", "object"),
    ] {
        let answer = api.send("POST", PATH, &[JSON], body.as_bytes()).await;
        assert_eq!(answer.problem(), (400, code.into()), "{body}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(
            detail.contains(named) && !detail.contains("secret"),
            "{body}: {detail}"
        );
    }
    let plain = api
        .send("POST", PATH, &[("Content-Type", "text/plain")], b"{}")
        .await;
    assert_eq!(plain.problem(), (415, "unsupported_media_type".into()));
    let large = format!("{{\"phone\": \"{}\"}}", "1".repeat(256 * 1024));
    let large = api.send("POST", PATH, &[JSON], large.as_bytes()).await;
    assert_eq!(large.problem(), (413, "body_too_large".into()));
    let in_url = api
        .send("POST", "/api/v1/orders/search?phone=1", &[JSON], b"{}")
        .await;
    assert_eq!(in_url.problem(), (400, "unknown_parameter".into()));
    let not_acceptable = [JSON, ("Accept", "image/png")];
    let answer = api.send("POST", PATH, &not_acceptable, b"{}").await;
    assert_eq!(answer.problem(), (406, "not_acceptable".into()));
    let paged = [JSON, ("Accept", "application/x-ndjson")];
    let answer = api.send("POST", PATH, &paged, b"{\"limit\": 1}").await;
    assert_eq!(answer.problem(), (400, "invalid_parameter".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn order_with_the_uid_of_the_path_can_still_be_reached() {
    let api = TestApi::start().await;
    let mut order = model();
    order.order_uid = "search".parse().unwrap();
    api.store(&order).await;
    let wrong = api.get(PATH).await;
    assert_eq!(wrong.problem(), (405, "method_not_allowed".into()));
    assert_eq!(wrong.header("allow"), Some("POST, OPTIONS"));
    for path in ["/order/search", "/api/v1/orders/%73earch"] {
        assert_eq!(api.get(path).await.status, 200, "{path}");
    }
    let gone = api
        .send("DELETE", "/api/v1/orders/%73earch", &[], b"")
        .await;
    assert_eq!(gone.status, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_searched_for_is_not_logged() {
    let database = TestDatabase::create();
    store(&database, &model());
    let settings = [
        ("LOG_ACCESS", "all"),
        ("RUST_LOG", "info,api=trace,shared=trace"),
    ];
    let program = Program::start(&database, &settings).await;
    let mut expected = 0;
    for (body, status) in [
        (
            r#"{"phone": "+9720000000", "email": "canary@shop.example"}"#,
            200,
        ),
        (
            r#"{"phone": "+9720000000", "email": "canary@shop.example", "view": "x"}"#,
            400,
        ),
        (
            r#"{"phone": "+9720000000", "email": "canary@shop.example""#,
            400,
        ),
    ] {
        let request = format!(
            "POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        );
        let answer = program.send(&request).await;
        assert_eq!(answer.status, status, "{}", answer.body);
        expected += 1;
        program.wait_until_logged_times("search", expected).await;
    }
    let log = program.log();
    assert!(
        !log.contains("9720000000") && !log.contains("canary"),
        "{log}"
    );
}
