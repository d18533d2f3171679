//! Reading one order.

use diesel::connection::SimpleConnection;
use shared::testing::{eventually, model_json};

use crate::support::download::Download;
use crate::support::{PATIENCE, TestApi, model};

const MODEL: &str = "/order/b563feb7b2b84b6test";

#[tokio::test(flavor = "multi_thread")]
async fn stored_order_is_answered_equal_to_what_was_sent() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let expected: serde_json::Value = serde_json::from_str(model_json()).unwrap();
    for (path, cache_status) in [
        (MODEL, "orders; fwd=miss; stored"),
        (MODEL, "orders; hit"),
        ("/api/v1/orders/b563feb7b2b84b6test", "orders; hit"),
        ("/order/%62563feb7b2b84b6test", "orders; hit"),
    ] {
        let answer = api.get(path).await;
        assert_eq!(
            (answer.status, answer.json()),
            (200, expected.clone()),
            "{path}"
        );
        assert_eq!(answer.header("cache-status"), Some(cache_status), "{path}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("cache-control"), Some("private, no-cache"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("age").is_some(), cache_status.contains("hit"));
        assert!(answer.body.ends_with("}\n"));
    }
}

/// Asserts that every way to read the only order returns these bytes.
async fn assert_is_read_everywhere(api: &TestApi, expected: &str) {
    let line = format!("{expected}\n");
    let database = [("Cache-Control", "no-cache")];
    assert_eq!(api.send("GET", MODEL, &database, b"").await.body, line);
    let hit = api.get(MODEL).await;
    assert_eq!(hit.header("cache-status"), Some("orders; hit"));
    assert_eq!(hit.body, line);
    let list = api.get("/api/v1/orders").await.body;
    assert_eq!(
        list.trim_end(),
        format!("{{\"orders\":[{expected}],\"next_cursor\":null}}")
    );
    let exported = Download::start(api.port, "/api/v1/orders").await;
    assert_eq!(exported.lines().await.unwrap(), [expected]);
    api.send("DELETE", "/api/v1/cache", &[], b"").await;
    api.send("POST", "/api/v1/cache/warmup?limit=1", &[], b"")
        .await;
    let warm = api.get(MODEL).await;
    assert_eq!(warm.header("cache-status"), Some("orders; hit"));
    assert_eq!(warm.body, line);
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_stand_as_in_the_sample_whoever_wrote_them() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    // jsonb stores the fields of an item in its own order.
    let sample: String = model_json().lines().map(str::trim).collect();
    let sample = sample.replace("\": ", "\":");
    assert_is_read_everywhere(&api, &sample).await;

    // Sorted by name, which is yet another order.
    let mut order: serde_json::Value = serde_json::from_str(model_json()).unwrap();
    order["items"][0]["price"] = 454.into();
    let path = "/api/v1/orders/b563feb7b2b84b6test";
    let headers = [("Content-Type", "application/json")];
    let sent = order.to_string();
    assert!(
        sent.contains("\"brand\":\"Vivienne Sabo\",\"chrt_id\""),
        "{sent}"
    );
    let before = api.events().await;
    let put = api.send("PUT", path, &headers, sent.as_bytes()).await;
    api.wait_for_event_after(before).await;
    let expected = sample.replace("\"price\":453", "\"price\":454");
    assert_eq!((put.status, put.body.trim_end()), (200, &*expected));
    assert_is_read_everywhere(&api, &expected).await;

    let mut psql = api.database.connect_foreign();
    psql.batch_execute("UPDATE orders SET items[0]['price'] = '455'")
        .unwrap();
    let expected = sample.replace("\"price\":453", "\"price\":455");
    eventually("the event has come", PATIENCE, async || {
        api.get(MODEL).await.json()["items"][0]["price"] == 455
    })
    .await;
    assert_is_read_everywhere(&api, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn known_version_is_not_sent_again() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let etag = api.get(MODEL).await.header("etag").unwrap().to_owned();
    let version = api.database.integer("SELECT version AS value FROM orders");
    assert!(etag.starts_with(&format!("\"{version}-")), "{etag}");
    let other = "\"0\"".to_owned();
    let weak = format!("\"0\", W/{etag}");
    let star = "*".to_owned();
    for (if_match, if_none_match, status) in [
        (None, Some(&etag), 304),
        (None, Some(&weak), 304),
        (None, Some(&star), 304),
        (None, Some(&other), 200),
        (Some(&etag), None, 200),
        (Some(&weak), None, 200),
        (Some(&star), None, 200),
        (Some(&other), None, 412),
        // If-Match is evaluated first (RFC 9110, section 13.2.2).
        (Some(&etag), Some(&etag), 304),
        (Some(&etag), Some(&other), 200),
        (Some(&other), Some(&etag), 412),
    ] {
        let mut headers = Vec::new();
        headers.extend(if_match.map(|tags| ("If-Match", tags.as_str())));
        headers.extend(if_none_match.map(|tags| ("If-None-Match", tags.as_str())));
        for method in ["GET", "HEAD"] {
            let answer = api.send(method, MODEL, &headers, b"").await;
            assert_eq!(answer.status, status, "{method} {headers:?}");
            assert_eq!(answer.header("etag"), Some(etag.as_str()));
            assert_eq!(answer.body.is_empty(), status == 304 || method == "HEAD");
            if status == 412 {
                assert_eq!(
                    answer.header("content-type"),
                    Some("application/problem+json")
                );
            } else {
                assert_eq!(answer.header("cache-control"), Some("private, no-cache"));
                assert_eq!(answer.header("cache-status"), Some("orders; hit"));
                assert!(answer.header("age").is_some());
            }
        }
        let absent = api.send("GET", "/order/absent", &headers, b"").await;
        assert_eq!(absent.problem(), (404, "order_not_found".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn head_is_get_without_a_body() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    for path in [
        MODEL,
        "/order/absent",
        "/api/v1/orders",
        "/health",
        "/metrics",
        "/",
        "/nothing",
    ] {
        let get = api.get(path).await;
        let head = api.send("HEAD", path, &[], b"").await;
        assert_eq!(
            (head.status, head.body.as_str()),
            (get.status, ""),
            "{path}"
        );
        assert_eq!(
            head.header("content-type"),
            get.header("content-type"),
            "{path}"
        );
        assert!(head.header("content-length").is_some(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_id_is_taken_over_if_it_is_one() {
    let api = TestApi::start().await;
    let taken = api
        .send("GET", "/order/absent", &[("X-Request-Id", "a.B_1-")], b"")
        .await;
    assert_eq!(taken.header("x-request-id"), Some("a.B_1-"));
    taken.problem();
    let long = "a".repeat(129);
    for given in ["", "a b", "ä", &long] {
        let made = api
            .send("GET", "/livez", &[("X-Request-Id", given)], b"")
            .await;
        let id = made.header("x-request-id").unwrap();
        assert!(id.len() == 32 && id != given, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn page_comes_with_a_strict_policy() {
    let api = TestApi::start().await;
    for (path, content_type) in [
        ("/", "text/html; charset=utf-8"),
        ("/?uid=x", "text/html; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/app.js", "text/javascript; charset=utf-8"),
        ("/scripts/client.js", "text/javascript; charset=utf-8"),
        ("/favicon.svg", "image/svg+xml"),
    ] {
        let answer = api.get(path).await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some(content_type)),
            "{path}"
        );
        assert!(
            answer
                .header("content-security-policy")
                .unwrap()
                .starts_with("default-src 'none';")
        );
        for (name, value) in [
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{path}");
        }
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.contains("require-trusted-types-for 'script'"));
        let permissions = answer.header("permissions-policy").unwrap();
        assert!(permissions.contains("geolocation=()"), "{permissions}");
        let etag = answer.header("etag").unwrap();
        let strong = etag.strip_prefix("W/").unwrap();
        for known in [etag, strong, &format!("\"other\", {strong}"), "*"] {
            let headers = [("If-None-Match", known)];
            let again = api.send("GET", path, &headers, b"").await;
            assert_eq!(again.status, 304, "{path} {known}");
        }
    }
}
