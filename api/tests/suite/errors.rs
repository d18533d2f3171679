//! Every code of the contract on every route that can return it, and which of several faults is reported.

use std::time::Duration;

use diesel::prelude::*;
use shared::config::Secret;
use shared::order::MAX_ORDER_BYTES;
use shared::testing::{TcpProxy, TestDatabase, eventually};

use crate::support::{PATIENCE, TestApi, model, store};

const ORDER: &str = "/api/v1/orders/b563feb7b2b84b6test";
const ABSENT: &str = "/api/v1/orders/absent";
const LIST: &str = "/api/v1/orders";
const STATS: &str = "/api/v1/cache/stats";
const WARMUP: &str = "/api/v1/cache/warmup";
const CACHE: &str = "/api/v1/cache";
const EVENTS: &str = "/api/v1/events";
const JSON: (&str, &str) = ("Content-Type", "application/json");
const HTML: (&str, &str) = ("Accept", "text/html");
const NDJSON: (&str, &str) = ("Accept", "application/x-ndjson");
const PATCH: (&str, &str) = ("Content-Type", "application/merge-patch+json");
const OLD: (&str, &str) = ("If-Match", "\"0\"");

type Case<'a> = (
    &'a str,
    &'a str,
    &'a [(&'a str, &'a str)],
    &'a str,
    u16,
    &'a str,
);

/// Method, path, headers and body of a request that is refused, and how it is refused. The bodies `good` (the model),
/// `other` (another id) and `long` (too large) stand for texts that the test makes.
#[rustfmt::skip] // One line per request.
const REFUSALS: &[Case<'_>] = &[
    ("GET", "/order/%00", &[], "", 400, "invalid_order_uid"),
    ("GET", "/order/a?x=1", &[], "", 400, "unknown_parameter"),
    ("GET", "/order/absent", &[], "", 404, "order_not_found"),
    ("PUT", "/order/absent", &[], "", 405, "method_not_allowed"),
    ("GET", "/order/absent", &[HTML], "", 406, "not_acceptable"),
    ("GET", "/order/b563feb7b2b84b6test", &[OLD], "", 412, "version_mismatch"),
    ("GET", "/api/v1/orders/%00", &[], "", 400, "invalid_order_uid"),
    ("GET", "/api/v1/orders/a?x=1", &[], "", 400, "unknown_parameter"),
    ("GET", ABSENT, &[], "", 404, "order_not_found"),
    ("POST", ORDER, &[], "", 405, "method_not_allowed"),
    ("GET", ORDER, &[HTML], "", 406, "not_acceptable"),
    ("GET", ORDER, &[OLD], "", 412, "version_mismatch"),
    ("PUT", "/api/v1/orders/%00", &[JSON], "good", 400, "invalid_order_uid"),
    ("PUT", "/api/v1/orders/a?x=1", &[JSON], "good", 400, "unknown_parameter"),
    ("PUT", ORDER, &[JSON], "{", 400, "malformed_json"),
    ("PUT", ORDER, &[JSON, ("Host", "evil.example")], "good", 403, "forbidden_origin"),
    ("PUT", "/api/v1/orders/other", &[JSON], "other", 404, "order_not_found"),
    ("PUT", ORDER, &[JSON, HTML], "good", 406, "not_acceptable"),
    ("PUT", ORDER, &[JSON, OLD], "good", 412, "version_mismatch"),
    ("PUT", ORDER, &[JSON], "long", 413, "body_too_large"),
    ("PUT", ORDER, &[], "good", 415, "unsupported_media_type"),
    ("PUT", ORDER, &[JSON], "{}", 422, "invalid_order"),
    ("PUT", ORDER, &[JSON], "other", 422, "uid_mismatch"),
    ("PATCH", "/api/v1/orders/%00", &[PATCH], "{}", 400, "invalid_order_uid"),
    ("PATCH", "/api/v1/orders/a?x=1", &[PATCH], "{}", 400, "unknown_parameter"),
    ("PATCH", ORDER, &[PATCH], "{", 400, "malformed_json"),
    ("PATCH", ORDER, &[PATCH, ("Host", "evil.example")], "{}", 403, "forbidden_origin"),
    ("PATCH", ABSENT, &[PATCH], "{}", 404, "order_not_found"),
    ("PATCH", ORDER, &[PATCH, HTML], "{}", 406, "not_acceptable"),
    ("PATCH", ORDER, &[PATCH, OLD], "{}", 412, "version_mismatch"),
    ("PATCH", ORDER, &[PATCH], "long", 413, "body_too_large"),
    ("PATCH", ORDER, &[JSON], "{}", 415, "unsupported_media_type"),
    ("PATCH", ORDER, &[PATCH], "[]", 422, "invalid_order"),
    ("PATCH", ORDER, &[PATCH], "other", 422, "uid_mismatch"),
    ("DELETE", "/api/v1/orders/%00", &[], "", 400, "invalid_order_uid"),
    ("DELETE", "/api/v1/orders/a?x=1", &[], "", 400, "unknown_parameter"),
    ("DELETE", ORDER, &[("Host", "evil.example")], "", 403, "forbidden_origin"),
    ("DELETE", ABSENT, &[], "", 404, "order_not_found"),
    ("DELETE", ORDER, &[OLD], "", 412, "version_mismatch"),
    ("GET", "/api/v1/orders?limit=0", &[], "", 400, "invalid_limit"),
    ("GET", "/api/v1/orders?cursor=a", &[], "", 400, "invalid_cursor"),
    ("GET", "/api/v1/orders?from=a", &[], "", 400, "invalid_parameter"),
    ("GET", "/api/v1/orders?from=a", &[NDJSON], "", 400, "invalid_parameter"),
    ("GET", "/api/v1/orders?limit=1", &[NDJSON], "", 400, "invalid_parameter"),
    ("GET", "/api/v1/orders?x=1", &[], "", 400, "unknown_parameter"),
    ("PUT", LIST, &[], "", 405, "method_not_allowed"),
    ("POST", "/api/v1/orders?x=1", &[JSON], "good", 400, "unknown_parameter"),
    ("POST", LIST, &[JSON], "{", 400, "malformed_json"),
    ("POST", LIST, &[JSON, ("Host", "evil.example")], "other", 403, "forbidden_origin"),
    ("POST", LIST, &[JSON, HTML], "other", 406, "not_acceptable"),
    ("POST", LIST, &[JSON], "good", 409, "order_exists"),
    ("POST", LIST, &[JSON], "long", 413, "body_too_large"),
    ("POST", LIST, &[], "other", 415, "unsupported_media_type"),
    ("POST", LIST, &[JSON], "{}", 422, "invalid_order"),
    ("GET", LIST, &[HTML], "", 406, "not_acceptable"),
    ("GET", "/api/v1/cache/stats?x=1", &[], "", 400, "unknown_parameter"),
    ("POST", STATS, &[], "", 405, "method_not_allowed"),
    ("GET", STATS, &[HTML], "", 406, "not_acceptable"),
    ("POST", "/api/v1/cache/warmup?limit=a", &[], "", 400, "invalid_limit"),
    ("POST", "/api/v1/cache/warmup?limit=1&limit=1", &[], "", 400, "invalid_parameter"),
    ("POST", "/api/v1/cache/warmup?x=1", &[], "", 400, "unknown_parameter"),
    ("POST", WARMUP, &[("Host", "evil.example")], "", 403, "forbidden_origin"),
    ("GET", WARMUP, &[], "", 405, "method_not_allowed"),
    ("POST", WARMUP, &[HTML], "", 406, "not_acceptable"),
    ("DELETE", "/api/v1/cache?x=1", &[], "", 400, "unknown_parameter"),
    ("DELETE", CACHE, &[("Host", "evil.example")], "", 403, "forbidden_origin"),
    ("GET", CACHE, &[], "", 405, "method_not_allowed"),
    ("GET", "/api/v1/events?x=1", &[], "", 400, "unknown_parameter"),
    ("POST", EVENTS, &[], "", 405, "method_not_allowed"),
    ("GET", EVENTS, &[HTML], "", 406, "not_acceptable"),
    ("GET", "/nothing", &[], "", 404, "no_such_endpoint"),
    ("POST", "/health", &[], "", 405, "method_not_allowed"),
    ("POST", "/", &[], "", 405, "method_not_allowed"),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_route_refuses_what_is_wrong_with_a_request() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let good = serde_json::to_string(&model()).unwrap();
    let long = " ".repeat(MAX_ORDER_BYTES + 1);
    let mut other = model();
    other.order_uid = "other".parse().unwrap();
    let other = serde_json::to_string(&other).unwrap();
    for (method, path, headers, body, status, code) in REFUSALS {
        let body = match *body {
            "good" => &good,
            "other" => &other,
            "long" => &long,
            text => text,
        };
        let answer = api.send(method, path, headers, body.as_bytes()).await;
        assert_eq!(
            answer.problem(),
            (*status, (*code).to_owned()),
            "{method} {path} {headers:?}"
        );
        let head = api.send("HEAD", path, headers, b"").await;
        if *method == "GET" {
            assert_eq!(
                (head.status, head.body.as_str()),
                (*status, ""),
                "HEAD {path}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_route_says_that_the_database_is_away() {
    let database = TestDatabase::create();
    store(&database, &model());
    let settings = database.settings();
    let proxy = TcpProxy::start(&settings.host, settings.port).await;
    let api = TestApi::start_with(database, |config| {
        config.database.host = "127.0.0.1".to_owned();
        config.database.port = proxy.port();
    })
    .await;
    proxy.cut();
    eventually("the listener has noticed", PATIENCE, async || {
        api.stats().await["listener"]["state"] != "live"
    })
    .await;
    let good = serde_json::to_string(&model()).unwrap();
    let code = "database_unavailable";
    for (method, path, headers) in [
        ("GET", "/order/absent", &[][..]),
        ("GET", LIST, &[]),
        ("GET", LIST, &[NDJSON]),
        ("PUT", ORDER, &[JSON]),
        ("DELETE", ORDER, &[]),
        ("POST", WARMUP, &[]),
    ] {
        let body = if method == "PUT" {
            good.as_bytes()
        } else {
            b""
        };
        let answer = api.send(method, path, headers, body).await;
        assert_eq!(
            answer.problem(),
            (503, code.into()),
            "{method} {path} {headers:?}"
        );
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_route_says_that_it_is_crowded_or_slow() {
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.pool.size = 1;
        config.pool.wait = Duration::from_millis(100);
        config.pool.statement_timeout = Duration::from_millis(500);
    })
    .await;
    api.store(&model()).await;
    let good = serde_json::to_string(&model()).unwrap();
    let mut lock = api.database.connect();
    for statement in ["BEGIN", "LOCK TABLE orders"] {
        diesel::sql_query(statement).execute(&mut lock).unwrap();
    }
    let routes = [
        ("GET", "/order/absent", &[][..]),
        ("GET", LIST, &[]),
        ("POST", LIST, &[JSON]),
        ("PUT", ORDER, &[JSON]),
        ("PATCH", ORDER, &[PATCH]),
        ("DELETE", ORDER, &[]),
    ];
    let send = async |(method, path, headers): (&str, &str, &[(&str, &str)])| {
        let body = match method {
            "POST" | "PUT" => good.as_bytes(),
            "PATCH" => b"{}",
            _ => b"",
        };
        api.send(method, path, headers, body).await
    };
    for route in routes {
        // One request waits for the lock, the other for a connection.
        let (first, second) = tokio::join!(send(route), send(("GET", LIST, &[])));
        let mut problems = [first.problem(), second.problem()];
        problems.sort();
        let expected = [
            (503, "overloaded".to_owned()),
            (504, "database_timeout".to_owned()),
        ];
        assert_eq!(problems, expected, "{route:?}");
    }
    for route in routes {
        let (first, second) = tokio::join!(send(("GET", LIST, &[])), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            send(route).await
        });
        assert_eq!(first.problem(), (504, "database_timeout".into()));
        assert_eq!(second.problem(), (503, "overloaded".into()), "{route:?}");
        assert_eq!(second.header("retry-after"), Some("1"));
    }
    let export = send(("GET", LIST, &[NDJSON])).await;
    assert_eq!(export.problem(), (504, "database_timeout".into()));
    diesel::sql_query("COMMIT").execute(&mut lock).unwrap();
}

/// Everything that can be wrong with a PUT, in the order in which the contract checks it.
const FAULTS: [(u16, &str); 10] = [
    (400, "invalid_order_uid"),
    (405, "method_not_allowed"),
    (401, "unauthorized"),
    (415, "unsupported_media_type"),
    (413, "body_too_large"),
    (400, "malformed_json"),
    (422, "invalid_order"),
    (422, "uid_mismatch"),
    (404, "order_not_found"),
    (412, "version_mismatch"),
];

#[tokio::test(flavor = "multi_thread")]
async fn of_several_faults_the_first_of_the_contract_is_told() {
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.api_token = Some(Secret::new("s3cret-of-16-chars"));
    })
    .await;
    api.store(&model()).await;
    for (index, (status, first)) in FAULTS.iter().enumerate() {
        for (_, second) in &FAULTS[index..] {
            let has = |code: &str| *first == code || *second == code;
            let mut order = model();
            if has("order_not_found") {
                order.order_uid = "absent".parse().unwrap();
            }
            let path = match has("invalid_order_uid") {
                true => "/api/v1/orders/%00".to_owned(),
                false => format!("/api/v1/orders/{}", order.order_uid),
            };
            if has("uid_mismatch") {
                order.order_uid = "other".parse().unwrap();
            }
            if has("invalid_order") {
                order.items.clear();
            }
            let mut body = serde_json::to_vec(&order).unwrap();
            if has("malformed_json") {
                body.pop();
            }
            if has("body_too_large") {
                body.resize(MAX_ORDER_BYTES + 1, b' ');
            }
            let media_type = if has("unsupported_media_type") {
                "text/plain"
            } else {
                "application/json"
            };
            let mut headers = vec![("Content-Type", media_type)];
            if !has("unauthorized") {
                headers.push(("Authorization", "Bearer s3cret-of-16-chars"));
            }
            if has("version_mismatch") {
                headers.push(OLD);
            }
            let method = if has("method_not_allowed") {
                "POST"
            } else {
                "PUT"
            };
            let answer = api.send(method, &path, &headers, &body).await;
            assert_eq!(
                answer.problem(),
                (*status, (*first).to_owned()),
                "with {second}"
            );
        }
    }
}
