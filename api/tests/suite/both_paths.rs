//! An order has two paths: `/order/{uid}`, which only reads, and `/api/v1/orders/{uid}`. The table of routes gives both
//! the same handler, so a client that reads must not see which one it used.

use shared::testing::TestDatabase;

use crate::support::{Answer, TestApi, model};

const MODEL: &str = "b563feb7b2b84b6test";
const DATABASE: (&str, &str) = ("Cache-Control", "max-age=0, No-Cache");
const HTML: (&str, &str) = ("Accept", "text/html");
const PREFLIGHT: (&str, &str) = ("Access-Control-Request-Method", "GET");
/// Problems contain the request's id. With the same id they are equal to the byte.
const REQUEST_ID: (&str, &str) = ("X-Request-Id", "the-same");

/// Method, what follows the path's last slash, headers, and the status of the answer.
type Question<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], u16);

const QUESTIONS: &[Question<'_>] = &[
    ("GET", MODEL, &[], 200),
    ("HEAD", MODEL, &[], 200),
    ("GET", "%62563feb7b2b84b6tes%74", &[], 200),
    ("GET", "absent", &[], 404),
    ("HEAD", "absent", &[], 404),
    ("GET", "absent", &[DATABASE], 404),
    ("GET", MODEL, &[DATABASE], 200),
    ("GET", "b563feb7b2b84b6test?", &[], 200),
    ("GET", "b563feb7b2b84b6test?limit=1", &[], 400),
    ("GET", "b563feb7b2b84b6test?%6cimit", &[], 400),
    ("GET", "absent?x=1", &[], 400),
    ("GET", MODEL, &[HTML], 406),
    ("HEAD", MODEL, &[HTML], 406),
    (
        "GET",
        MODEL,
        &[("Accept", "text/html, application/*;q=0.1")],
        200,
    ),
    ("GET", MODEL, &[("Accept-Encoding", "gzip, br")], 200),
    ("OPTIONS", MODEL, &[], 204),
    ("POST", MODEL, &[], 405),
    ("TRACE", MODEL, &[], 405),
    ("GET", MODEL, &[("If-None-Match", "\"0\"")], 200),
    ("HEAD", MODEL, &[("If-None-Match", "*")], 304),
    ("GET", MODEL, &[("If-Match", "none")], 412),
    ("HEAD", MODEL, &[("If-Match", "*")], 200),
    ("GET", "absent", &[("If-None-Match", "*")], 404),
    ("GET", "absent", &[("If-Match", "*")], 404),
    ("GET", MODEL, &[("Origin", "https://shop.example")], 200),
    ("GET", "absent", &[("Origin", "https://other.example")], 404),
    (
        "OPTIONS",
        MODEL,
        &[("Origin", "https://shop.example"), PREFLIGHT],
        204,
    ),
    (
        "OPTIONS",
        MODEL,
        &[("Origin", "https://other.example"), PREFLIGHT],
        204,
    ),
];

/// Asks by one of the paths, first with an empty cache and then again.
async fn ask(api: &TestApi, prefix: &str, question: Question<'_>) -> [String; 2] {
    let (method, target, headers, status) = question;
    let path = [prefix, target].concat();
    let headers = [headers, &[REQUEST_ID]].concat();
    let cleared = api.send("DELETE", "/api/v1/cache", &[], b"").await;
    assert_eq!(cleared.status, 204);
    // A body means nothing to a request that reads, and must not be taken for the next request.
    let body = b"GET /nothing HTTP/1.1\r\n\r\n";
    let first = api.send(method, &path, &headers, body).await;
    assert_eq!(first.status, status, "{method} {path}: {}", first.body);
    let second = api.send(method, &path, &headers, b"").await;
    [first, second].map(comparable)
}

/// An answer without what depends on the path or on the moment.
fn comparable(mut answer: Answer) -> String {
    if let Some(allow) = answer.header("allow").map(str::to_owned) {
        answer.body = answer.body.replace(&allow, "");
    }
    let of_problem = answer.header("content-type") == Some("application/problem+json");
    answer.headers.retain(|(name, _)| {
        let depends_on_path = ["allow", "accept-patch"].contains(&name.as_str())
            || of_problem && name == "content-length";
        !depends_on_path && name != "date"
    });
    for (name, value) in &mut answer.headers {
        match name.as_str() {
            "age" => assert!(value.parse::<u64>().is_ok()),
            "server-timing" => value.truncate(value.find('=').unwrap_or(value.len())),
            _ => continue,
        }
        if name == "age" {
            value.clear();
        }
    }
    format!("{} {:?} {}", answer.status, answer.headers, answer.body)
}

#[tokio::test(flavor = "multi_thread")]
async fn both_paths_of_an_order_read_alike() {
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.cors_allowed_origins = vec!["https://shop.example".parse().unwrap()];
    })
    .await;
    api.store(&model()).await;
    let path = format!("/order/{MODEL}");
    let etag = api.get(&path).await.header("etag").unwrap().to_owned();
    let weak = format!("\"0\", W/{etag}");
    let known: [Question<'_>; 4] = [
        ("GET", MODEL, &[("If-None-Match", &etag)], 304),
        ("HEAD", MODEL, &[("If-None-Match", &weak)], 304),
        ("GET", MODEL, &[("If-Match", &weak)], 200),
        ("HEAD", MODEL, &[("If-Match", "\"0\"")], 412),
    ];
    let long = "a".repeat(65);
    let uids = [
        "", "%", "%00", "%2F", "%FF", "%zz", "a%20b", "a+b", "-a", "..", &long, "?", "?uid=a",
    ];
    let invalid =
        uids.map(|uid| ["GET", "HEAD", "OPTIONS"].map(|method| (method, uid, &[][..], 400)));
    for question in QUESTIONS.iter().chain(&known).chain(invalid.as_flattened()) {
        let short = ask(&api, "/order/", *question).await;
        let long = ask(&api, "/api/v1/orders/", *question).await;
        assert_eq!(short, long, "{question:?}");
    }
}
