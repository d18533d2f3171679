//! Who may do what, over TCP.

use api::config::tokens::hash_text;
use serde_json::Value;
use shared::testing::TestDatabase;

use crate::support::conformity::DOCUMENT;
use crate::support::tokens::{TokenFile, bearer};
use crate::support::{TestApi, model};

/// What needs a token where there are tokens, with the scope that it needs. [`everything_else_is_open`] checks that the list
/// is complete.
const GUARDED: [(&str, &str, &str); 12] = [
    ("GET", "/order/{order_uid}", "read"),
    ("GET", "/api/v1/orders/{order_uid}", "read"),
    ("GET", "/api/v1/orders", "read"),
    ("POST", "/api/v1/orders/search", "read"),
    ("GET", "/api/v1/cache/stats", "read"),
    ("GET", "/api/v1/events", "read"),
    ("POST", "/api/v1/orders", "write"),
    ("PUT", "/api/v1/orders/{order_uid}", "write"),
    ("PATCH", "/api/v1/orders/{order_uid}", "write"),
    ("DELETE", "/api/v1/orders/{order_uid}", "write"),
    ("POST", "/api/v1/cache/warmup", "operate"),
    ("DELETE", "/api/v1/cache", "operate"),
];
/// `/metrics` is a read, but one of operators.
const METRICS: (&str, &str, &str) = ("GET", "/metrics", "operate");

/// All methods of all paths that need a token; GET includes HEAD.
fn guarded() -> impl Iterator<Item = (&'static str, String, &'static str)> {
    let guarded = GUARDED.into_iter().chain([METRICS]);
    guarded.flat_map(|(method, path, scope)| {
        let path = path.replace("{order_uid}", "b563feb7b2b84b6test");
        let head = (method == "GET").then(|| ("HEAD", path.clone(), scope));
        [(method, path, scope)].into_iter().chain(head)
    })
}

/// Returns whether a server without tokens counts a request as a read.
fn is_read(method: &str, scope: &str) -> bool {
    scope == "read" || matches!(method, "GET" | "HEAD")
}

async fn start_with_tokens(file: &TokenFile) -> TestApi {
    let path = file.path.clone();
    let api = TestApi::start_unready(TestDatabase::create().into(), move |config| {
        config.api_tokens_file = Some(path);
    })
    .await;
    api.wait_until_ready().await;
    api
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_allows_what_its_scopes_say_and_nothing_else() {
    let scopes = ["read", "write", "operate"];
    let file = TokenFile::new(&scopes.map(|scope| (scope, scope)));
    let api = start_with_tokens(&file).await;
    for (method, path, needed) in guarded() {
        for scope in scopes {
            let token = bearer(scope);
            let status = api
                .status_of(method, &path, &[("Authorization", &token)])
                .await;
            let is_refused = status == 403;
            assert_eq!(
                is_refused,
                scope != needed,
                "{scope}: {method} {path}: {status}"
            );
            assert_ne!(status, 401, "{scope}: {method} {path}");
        }
    }
    let token = bearer("read");
    let refused = api
        .send("DELETE", "/api/v1/cache", &[("Authorization", &token)], b"")
        .await;
    assert_eq!(refused.problem(), (403, "insufficient_scope".into()));
    assert_eq!(
        refused.header("www-authenticate"),
        Some("Bearer error=\"insufficient_scope\", scope=\"operate\"")
    );
    assert!(
        refused.body.contains("lacks the scope operate"),
        "{}",
        refused.body
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_valid_token_nothing_is_answered_and_the_answer_says_why() {
    let file = TokenFile::new(&[("all", "read,write,operate")]);
    // These settings are for servers without tokens.
    let path = file.path.clone();
    let api = TestApi::start_unready(TestDatabase::create().into(), move |config| {
        config.api_tokens_file = Some(path);
        config.allow_unauthenticated_reads = true;
        config.allow_unauthenticated_writes = true;
    })
    .await;
    let right = bearer("all");
    let hash = format!("Bearer {}", hash_text(&right["Bearer ".len()..]));
    let doubled = format!("{right}, {right}");
    let (cut, longer) = (&right[..right.len() - 1], format!("{right}x"));
    for (method, path, _) in guarded().filter(|(method, ..)| *method != "HEAD") {
        for (authorization, challenge) in [
            (None, "Bearer"),
            (Some("Basic YWxsOmFsbA=="), "Bearer"),
            (Some(cut), "Bearer error=\"invalid_token\""),
            (Some(&longer), "Bearer error=\"invalid_token\""),
            (Some(&hash), "Bearer error=\"invalid_token\""),
            (Some(&doubled), "Bearer error=\"invalid_token\""),
        ] {
            let headers: Vec<_> = authorization
                .iter()
                .map(|text| ("Authorization", *text))
                .collect();
            let answer = api.send(method, &path, &headers, b"").await;
            assert_eq!(
                answer.problem(),
                (401, "unauthorized".into()),
                "{method} {path}"
            );
            assert_eq!(
                answer.header("www-authenticate"),
                Some(challenge),
                "{authorization:?}"
            );
        }
    }
    // The token is proof enough: no page of another site has it.
    let headers = [
        ("Authorization", right.as_str()),
        ("Host", "orders.example"),
        ("Via", "1.1 proxy"),
    ];
    assert_eq!(
        api.send("DELETE", "/api/v1/cache", &headers, b"")
            .await
            .status,
        204
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_else_is_open() {
    let file = TokenFile::new(&[("all", "read")]);
    let api = start_with_tokens(&file).await;
    let guarded: Vec<_> = GUARDED.into_iter().chain([METRICS]).collect();
    for (path, item) in DOCUMENT["paths"].as_object().unwrap() {
        for method in item
            .as_object()
            .unwrap()
            .keys()
            .filter(|key| *key != "parameters")
        {
            let method = method.to_uppercase();
            let looked_up = if method == "HEAD" { "GET" } else { &method };
            let needs_token = guarded
                .iter()
                .any(|(each, of, _)| *each == looked_up && of == path);
            let target = path.replace("{order_uid}", "a").replace("{file}", "a");
            let status = api.status_of(&method, &target, &[]).await;
            assert_eq!(status == 401, needs_token, "{method} {path}: {status}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tokens_a_server_serves_only_programs_of_its_machine() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    for (method, path, scope) in guarded().filter(|(method, ..)| *method != "HEAD") {
        let disabled = if is_read(method, scope) {
            "reads_disabled"
        } else {
            "writes_disabled"
        };
        for (name, value) in [
            ("Forwarded", "for=192.0.2.1"),
            ("X-Forwarded-For", "192.0.2.1"),
            ("X-Forwarded-Proto", "https"),
            ("Via", "1.1 proxy"),
        ] {
            let answer = api.send(method, &path, &[(name, value)], b"").await;
            assert_eq!(
                answer.problem(),
                (403, disabled.into()),
                "{method} {path} {name}"
            );
        }
        let old = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        let answer = api.send_bytes(old.as_bytes()).await;
        assert_eq!(
            answer.problem(),
            (403, disabled.into()),
            "{method} {path} HTTP/1.0"
        );
        let rebound = [("Host", "evil.example")];
        let answer = api.send(method, &path, &rebound, b"").await;
        assert_eq!(
            answer.problem(),
            (403, "forbidden_origin".into()),
            "{method} {path}"
        );
    }
    for host in [
        "localhost:8081",
        "LOCALHOST",
        "127.9.9.9",
        "[::1]:8081",
        "shop.localhost:1",
        "localhost.",
    ] {
        assert_eq!(
            api.send("GET", "/order/b563feb7b2b84b6test", &[("Host", host)], b"")
                .await
                .status,
            200,
            "{host}"
        );
    }
    for host in [
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "192.168.0.5:8081",
        "[::2]",
    ] {
        assert_eq!(
            api.send("GET", "/order/b563feb7b2b84b6test", &[("Host", host)], b"")
                .await
                .status,
            403,
            "{host}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn open_writes_are_not_for_pages_of_other_sites() {
    let listed = "https://shop.example";
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.cors_allowed_origins = vec![listed.parse().unwrap()];
    })
    .await;
    let (cross, same) = (
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-origin"),
    );
    for (headers, is_allowed) in [
        (&[("Origin", "http://evil.example")][..], false),
        (&[("Origin", "null")], false),
        (&[("Origin", "http://localhost:1")], false),
        (&[cross], false),
        (&[("Origin", "http://localhost"), same], true),
        (&[("Sec-Fetch-Site", "none")], true),
        (&[("Origin", listed), cross], true),
        (&[("Origin", listed), ("Host", "evil.example")], false),
    ] {
        for (method, path, scope) in guarded().filter(|(.., scope)| *scope != "read") {
            let status = api.status_of(method, &path, headers).await;
            let is_write = method != "GET" && method != "HEAD";
            let is_refused = status == 403;
            let names_other_host = headers.iter().any(|(name, _)| *name == "Host");
            let expected = !is_allowed && (is_write || names_other_host);
            assert_eq!(
                is_refused, expected,
                "{method} {path} {scope} {headers:?}: {status}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn off_loopback_everything_is_refused_unless_it_is_allowed_and_then_the_host_must_be_known() {
    for (reads, writes) in [(false, false), (true, false), (false, true)] {
        let api = TestApi::start_unready(TestDatabase::create().into(), |config| {
            config.address.0 = "0.0.0.0".to_owned();
            config.allow_unauthenticated_reads = reads;
            config.allow_unauthenticated_writes = writes;
            config.allowed_hosts = vec!["orders.example".to_owned()];
        })
        .await;
        api.wait_until_ready().await;
        for (method, path, scope) in guarded() {
            let is_allowed = if is_read(method, scope) {
                reads
            } else {
                writes
            };
            for (host, is_known) in [
                ("Orders.Example:443", true),
                ("localhost", false),
                ("evil.example", false),
            ] {
                let headers = [("Host", host), ("X-Forwarded-For", "192.0.2.1")];
                let status = api.status_of(method, &path, &headers).await;
                assert_eq!(
                    status == 403,
                    !(is_allowed && is_known),
                    "{method} {path} {host}: {status}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_token_has_every_scope() {
    let token = "one-token-for-everything";
    let api = TestApi::start_unready(TestDatabase::create().into(), |config| {
        config.api_token = Some(shared::config::Secret::new(token));
    })
    .await;
    api.wait_until_ready().await;
    let authorization = format!("bearer  {token} ");
    for (method, path, _) in guarded() {
        let status = api
            .status_of(method, &path, &[("Authorization", &authorization)])
            .await;
        assert!(![401, 403].contains(&status), "{method} {path}: {status}");
        assert_eq!(
            api.status_of(method, &path, &[]).await,
            401,
            "{method} {path}"
        );
    }
}

#[test]
fn every_guarded_operation_says_so_in_the_description() {
    for (method, path, scope) in GUARDED.into_iter().chain([METRICS]) {
        let operation = &DOCUMENT["paths"][path][method.to_lowercase()];
        let tokens: Vec<&Value> = operation["security"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|each| each["token"].is_array())
            .collect();
        assert_eq!(tokens.len(), 1, "{method} {path}");
        assert_eq!(tokens[0]["token"][0], scope, "{method} {path}");
    }
}
