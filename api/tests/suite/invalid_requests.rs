//! Every invalid request that these routes can get.

use api::routes::ROUTES;
use shared::order::MAX_ORDER_BYTES;

use crate::support::{TestApi, model};

const ORDER: &str = "/api/v1/orders/b563feb7b2b84b6test";
const JSON: (&str, &str) = ("Content-Type", "application/json");

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_are_none_never_reach_the_database() {
    let api = TestApi::start().await;
    let before = api.stats().await;
    let long = "a".repeat(65);
    for uid in [
        "", "%00", "a%00", "a%2Fb", "%2F", "%FF", "%C3%28", "%", "%zz", "a%20b", "a+b", "-a", ".a",
        "_a", "..", ".", &long, "%D1%8F", "a;b", "a,b", "a%0D%0Ab", "'", "a%27--",
    ] {
        for prefix in ["/order/", "/api/v1/orders/"] {
            for method in ["GET", "PUT", "DELETE", "POST", "OPTIONS"] {
                let answer = api.send(method, &format!("{prefix}{uid}"), &[], b"").await;
                assert_eq!(
                    answer.problem(),
                    (400, "invalid_order_uid".into()),
                    "{method} {prefix}{uid}"
                );
            }
        }
    }
    let after = api.stats().await;
    for counter in ["hits", "negative_hits", "misses", "bypasses", "loads"] {
        assert_eq!(before[counter], after[counter], "{counter}");
    }
    let longest = format!("/order/{}", "a".repeat(64));
    assert_eq!(
        api.get(&longest).await.problem(),
        (404, "order_not_found".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_are_404_for_every_method() {
    let api = TestApi::start().await;
    for path in [
        "/nothing",
        "/order",
        "/order/a/b",
        "/order/a/",
        "/api",
        "/api/v1",
        "/api/v1/",
        "/api/v1/orders/a/items",
        "/api/v1/cache/",
        "/api/v1/cache/stats/",
        "/health/",
        "//",
        "//order/a",
        "/openapi.yaml",
        "/order%2Fa",
        "/%6frder/a",
        "/index.html",
        "/scripts",
        "/scripts/../app.js",
        "/scripts/a/b",
        "/../etc/passwd",
    ] {
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let answer = api.send(method, path, &[], b"").await;
            assert_eq!(answer.status, 404, "{method} {path}");
            if method != "HEAD" {
                assert_eq!(answer.problem().1, "no_such_endpoint", "{method} {path}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_path_answers_every_method() {
    let api = TestApi::start().await;
    let methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE"];
    for route in &ROUTES {
        let path = route.path.replace("{order_uid}", "a");
        let path = &path.replace("{file}", "a");
        let allow = &*route.allow();
        let options = api.send("OPTIONS", path, &[], b"").await;
        assert_eq!(
            (options.status, options.header("allow")),
            (204, Some(allow)),
            "{path}"
        );
        for method in methods
            .iter()
            .filter(|method| !allow.split(", ").any(|each| each == **method))
        {
            let answer = api.send(method, path, &[], b"").await;
            assert_eq!(
                (answer.status, answer.header("allow")),
                (405, Some(allow)),
                "{method} {path}"
            );
            if *method != "HEAD" {
                assert_eq!(answer.problem().1, "method_not_allowed");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_are_checked_and_named() {
    let api = TestApi::start().await;
    let long = format!("customer_id={}", "a".repeat(257));
    for (query, code, name) in [
        ("limit=0", "invalid_limit", "limit"),
        ("limit=-1", "invalid_limit", "1000"),
        ("limit=abc", "invalid_limit", "limit"),
        ("limit=", "invalid_limit", "limit"),
        ("limit=1001", "invalid_limit", "limit"),
        ("limit=%2B5", "invalid_limit", "limit"),
        ("limit=1&limit=1", "invalid_parameter", "limit"),
        ("cursor=", "invalid_cursor", "cursor"),
        ("cursor=abc", "invalid_cursor", "cursor"),
        ("cursor=%00", "invalid_cursor", "cursor"),
        ("page=1", "unknown_parameter", "page"),
        ("Limit=1", "unknown_parameter", "Limit"),
        ("customer=x", "unknown_parameter", "customer_id"),
        ("customer_id=", "invalid_parameter", "customer_id"),
        ("customer_id=%00", "invalid_parameter", "customer_id"),
        ("customer_id=%FF", "invalid_parameter", "customer_id"),
        (&long, "invalid_parameter", "customer_id"),
        ("track_number=a%0Ab", "invalid_parameter", "track_number"),
        ("from=yesterday", "invalid_parameter", "from"),
        ("from=2026-01-01T00:00:00", "invalid_parameter", "from"),
        ("to=2026-01-01", "invalid_parameter", "to"),
        ("to=1767225600", "invalid_parameter", "to"),
    ] {
        let answer = api.get(&format!("/api/v1/orders?{query}")).await;
        assert_eq!(answer.problem(), (400, code.into()), "{query}");
        assert!(
            answer.json()["detail"].as_str().unwrap().contains(name),
            "{query}: {}",
            answer.body
        );
    }
    for (method, path, code) in [
        ("GET", "/order/a?x=1", "unknown_parameter"),
        ("DELETE", "/api/v1/orders/a?x", "unknown_parameter"),
        ("GET", "/api/v1/cache/stats?x=1", "unknown_parameter"),
        ("POST", "/api/v1/cache/warmup?limit=0", "invalid_limit"),
        ("POST", "/api/v1/cache/warmup?n=1", "unknown_parameter"),
    ] {
        assert_eq!(
            api.send(method, path, &[], b"").await.problem(),
            (400, code.into()),
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_checked_in_the_order_of_the_contract() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let good = serde_json::to_vec(&model()).unwrap();
    let other_uid =
        String::from_utf8(good.clone())
            .unwrap()
            .replacen("b563feb7b2b84b6test", "other", 1);
    let invalid = r#"{"order_uid":"other","items":[]}"#;
    let deep = "[".repeat(100_000);
    let mut padded = good.clone();
    padded.resize(MAX_ORDER_BYTES, b' ');
    let mut too_large = good.clone();
    too_large.resize(MAX_ORDER_BYTES + 1, b' ');
    #[rustfmt::skip] // One line per request.
    let requests = [
        (&[JSON][..], &good[..], 200, ""),
        (&[JSON], &padded, 200, ""),
        (&[("Content-Type", "Application/JSON; charset=UTF-8")], &good, 200, ""),
        (&[], &good, 415, "unsupported_media_type"),
        (&[("Content-Type", "text/plain")], &too_large, 415, "unsupported_media_type"),
        (&[("Content-Type", "application/json; charset=latin1")], &good, 415, "unsupported_media_type"),
        (&[JSON, ("Content-Encoding", "gzip")], &good, 415, "unsupported_media_type"),
        (&[JSON], &too_large, 413, "body_too_large"),
        (&[JSON], b"", 400, "malformed_json"),
        (&[JSON], b"{", 400, "malformed_json"),
        (&[JSON], b"\xff\xfe", 400, "malformed_json"),
        (&[JSON], deep.as_bytes(), 400, "malformed_json"),
        (&[JSON], b"[]", 422, "invalid_order"),
        (&[JSON], b"null", 422, "invalid_order"),
        (&[JSON], invalid.as_bytes(), 422, "invalid_order"),
        (&[JSON], other_uid.as_bytes(), 422, "uid_mismatch"),
        (&[JSON, ("If-Match", "\"0\"")], other_uid.as_bytes(), 422, "uid_mismatch"),
        (&[JSON, ("If-Match", "\"0\"")], &good, 412, "version_mismatch"),
        (&[JSON, ("Accept", "text/html")], &good, 406, "not_acceptable"),
    ];
    for (headers, body, status, code) in requests {
        let answer = api.send("PUT", ORDER, headers, body).await;
        assert_eq!(answer.status, status, "{headers:?} {code}: {}", answer.body);
        if status != 200 {
            assert_eq!(answer.problem(), (status, code.into()), "{headers:?}");
        }
        let is_encoded = headers.iter().any(|(name, _)| *name == "Content-Encoding");
        let (accept, accept_encoding) = match (status, is_encoded) {
            (415, true) => (None, Some("identity")),
            (415, false) => (Some("application/json"), None),
            _ => (None, None),
        };
        assert_eq!(answer.header("accept"), accept);
        assert_eq!(answer.header("accept-encoding"), accept_encoding);
        let names = answer.body.contains("Content-Encoding is gzip");
        assert_eq!(names, accept_encoding.is_some(), "{}", answer.body);
    }
    let answer = api.send("PUT", ORDER, &[JSON], invalid.as_bytes()).await;
    let faults = answer.json()["errors"].to_string();
    for pointer in [
        "items",
        "payment",
        "customer_id",
        "date_created",
        "track_number",
    ] {
        let pointer = format!("\"pointer\":\"/{pointer}\"");
        assert!(faults.contains(&pointer), "{pointer} not in {faults}");
    }
    let absent = api
        .send("PUT", "/api/v1/orders/other", &[JSON], other_uid.as_bytes())
        .await;
    assert_eq!(absent.problem(), (404, "order_not_found".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn chunked_bodies_have_the_same_bound() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let headers = [JSON, ("Transfer-Encoding", "chunked")];
    let chunked = |body: &[u8]| {
        let mut bytes = Vec::new();
        for chunk in body.chunks(10_000) {
            bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        bytes
    };
    let mut body = serde_json::to_vec(&model()).unwrap();
    assert_eq!(
        api.send("PUT", ORDER, &headers, &chunked(&body))
            .await
            .status,
        200
    );
    body.resize(3 * 1024 * 1024, b' ');
    let refused = api.send("PUT", ORDER, &headers, &chunked(&body)).await;
    assert_eq!(refused.problem(), (413, "body_too_large".into()));
    let refused = api.send("PUT", ORDER, &[JSON], &body).await;
    assert_eq!(refused.problem(), (413, "body_too_large".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_take_no_json_are_told_so() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    for (accept, is_acceptable) in [
        ("*/*", true),
        ("", true),
        (",", true),
        ("application/json", true),
        ("text/html,application/xhtml+xml,*/*;q=0.8", true),
        ("application/*;q=0.1", true),
        ("application/x-ndjson, application/json;q=0.5", true),
        ("text/html", false),
        ("application/x-ndjson", false),
        ("application/json;q=0", false),
        ("application/json;q=0, */*", false),
        ("*/*;q=0", false),
    ] {
        for path in [ORDER, "/api/v1/cache/stats"] {
            let answer = api.send("GET", path, &[("Accept", accept)], b"").await;
            if is_acceptable {
                assert_eq!(answer.status, 200, "{accept} {path}");
            } else {
                assert_eq!(
                    answer.problem(),
                    (406, "not_acceptable".into()),
                    "{accept} {path}"
                );
            }
        }
    }
}
