//! An order has two paths, `/order/{uid}` for reading and `/api/v1/orders/{uid}`, and the first is routed in a way of its
//! own because it is hot. Whoever reads must not see which one it was.

use std::collections::BTreeMap;

use serde_json::Value;
use shared::testing::TestDatabase;

use crate::support::{TestApi, model};

const MODEL: &str = "b563feb7b2b84b6test";
const MODEL_ENCODED: &str = "%62563feb7b2b84b6tes%74";
/// Problems hold the request's id: with one that is given they are equal to the byte.
const REQUEST_ID: (&str, &str) = ("X-Request-Id", "the-same");
const DATABASE: (&str, &str) = ("Cache-Control", "max-age=0, No-Cache");
const HTML: (&str, &str) = ("Accept", "text/html");
const ETAGS: [&str; 2] = ["If-None-Match", "If-Match"];
/// Differ by the path, or by the moment.
const OWN_HEADERS: [&str; 2] = ["allow", "date"];
/// What says how often which way was taken.
const LOOKUPS: [&str; 4] = ["hits", "negative_hits", "misses", "bypasses"];

/// A request to the path of an order.
struct Question {
    method: &'static str,
    /// What stands behind the path's last slash.
    target: String,
    version: &'static str,
    headers: Vec<(&'static str, String)>,
    body: &'static str,
    /// The status of the answer.
    status: u16,
    /// The beginning of its `Cache-Status`.
    cache_status: Option<&'static str>,
}

impl Question {
    fn new(method: &'static str, target: &str, status: u16) -> Self {
        Self {
            method,
            target: target.to_owned(),
            version: "HTTP/1.1",
            headers: Vec::new(),
            body: "",
            status,
            cache_status: None,
        }
    }

    fn with(mut self, (name, value): (&'static str, &str)) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    fn from(mut self, cache_status: &'static str) -> Self {
        self.cache_status = Some(cache_status);
        self
    }

    fn text(&self, prefix: &str) -> String {
        let Self {
            method,
            target,
            version,
            body,
            ..
        } = self;
        let mut text = format!("{method} {prefix}{target} {version}\r\nHost: localhost\r\n");
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str(&format!("{}: {}\r\n", REQUEST_ID.0, REQUEST_ID.1));
        if !body.is_empty() {
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        text.push_str("Connection: close\r\n\r\n");
        text + body
    }
}

fn questions(etag: &str) -> Vec<Question> {
    let ask = Question::new;
    let long = "a".repeat(65);
    let mut questions = vec![
        // Nothing is cached.
        ask("GET", MODEL, 200).from("orders; fwd=miss; stored"),
        ask("GET", MODEL, 200).from("orders; hit"),
        ask("GET", MODEL_ENCODED, 200).from("orders; hit"),
        ask("HEAD", MODEL, 200).from("orders; hit"),
        ask("GET", "absent", 404).from("orders; fwd=miss; stored"),
        ask("GET", "absent", 404).from("orders; hit"),
        ask("HEAD", "absent", 404).from("orders; hit"),
        ask("GET", "absent", 404)
            .with(DATABASE)
            .from("orders; fwd=request; stored"),
        ask("GET", MODEL, 200)
            .with(DATABASE)
            .from("orders; fwd=request; stored"),
        ask("GET", &format!("{MODEL}?"), 200).from("orders; hit"),
        ask("GET", &format!("{MODEL}?limit=1"), 400),
        ask("GET", &format!("{MODEL}?%6cimit"), 400),
        ask("GET", "absent?x=1", 400),
        ask("GET", MODEL, 406).with(HTML),
        ask("HEAD", MODEL, 406).with(HTML),
        ask("GET", MODEL, 200)
            .with(("Accept", "text/html, application/*;q=0.1"))
            .from("orders; hit"),
        ask("GET", MODEL, 200)
            .with(("Accept-Encoding", "gzip, br"))
            .from("orders; hit"),
        ask("OPTIONS", MODEL, 204),
        ask("POST", MODEL, 405),
        ask("PATCH", "absent", 405),
        ask("BREW", MODEL, 405),
    ];
    for name in ETAGS {
        for tags in ["*", etag, &format!("\"0\", W/{etag}"), "\"0\"", "none"] {
            for method in ["GET", "HEAD"] {
                let is_known = tags != "\"0\"" && tags != "none";
                let status = match (name, is_known) {
                    ("If-None-Match", true) => 304,
                    ("If-Match", false) => 412,
                    _ => 200,
                };
                questions.push(ask(method, MODEL, status).with((name, tags)));
            }
        }
        questions.push(ask("GET", "absent", 404).with((name, "*")));
    }
    for uid in [
        "", "%", "%00", "%2F", "%FF", "%zz", "a%20b", "a+b", "-a", "..", &long, "?", "?uid=a",
    ] {
        questions.extend(["GET", "HEAD", "OPTIONS"].map(|method| ask(method, uid, 400)));
    }
    for origin in ["https://shop.example", "https://other.example"] {
        questions.push(ask("GET", MODEL, 200).with(("Origin", origin)));
        questions.push(ask("GET", "absent", 404).with(("Origin", origin)));
        let preflight = ask("OPTIONS", MODEL, 204).with(("Origin", origin));
        questions.push(preflight.with(("Access-Control-Request-Method", "GET")));
    }
    // A body has no meaning here, and must not be taken for the next request.
    let mut with_body = ask("GET", MODEL, 200).from("orders; hit");
    with_body.body = "GET /nothing HTTP/1.1\r\n\r\n";
    questions.push(with_body);
    for (method, target, status) in [
        ("GET", MODEL, 200),
        ("HEAD", MODEL, 200),
        ("GET", "absent", 404),
        ("GET", "%00", 400),
        ("POST", MODEL, 405),
    ] {
        let mut old = ask(method, target, status);
        old.version = "HTTP/1.0";
        questions.push(old);
    }
    questions
}

/// What a reader gets, but for what differs by the path or by the moment.
#[derive(Debug, PartialEq, Eq)]
struct Reading {
    status: u16,
    headers: BTreeMap<String, Vec<String>>,
    body: String,
}

async fn ask(api: &TestApi, prefix: &str, question: &Question) -> Reading {
    let text = question.text(prefix);
    let mut answer = api.send_bytes(text.as_bytes()).await;
    assert_eq!(answer.status, question.status, "{text}{}", answer.body);
    if question.cache_status.is_some() {
        let cache_status = answer.header("cache-status");
        assert_eq!(cache_status, question.cache_status, "{text}");
    }
    let allow = answer.header("allow").map(str::to_owned);
    let mut headers = BTreeMap::<String, Vec<String>>::new();
    for (name, value) in answer.headers.drain(..) {
        // A moment's: that it is there, and of which kind.
        let value = match name.as_str() {
            "age" => value.parse::<u64>().map(|_| "seconds".to_owned()).unwrap(),
            "server-timing" => value.split('=').next().unwrap().to_owned(),
            _ => value,
        };
        headers.entry(name).or_default().push(value);
    }
    for name in OWN_HEADERS {
        headers.remove(name);
    }
    if question.method != "HEAD" && question.status != 304 && question.status != 204 {
        let length = headers.remove("content-length");
        assert_eq!(length, Some(vec![answer.body.len().to_string()]), "{text}");
    }
    Reading {
        status: answer.status,
        headers,
        body: answer.body.replace(&allow.unwrap_or_default(), ""),
    }
}

/// What all questions together are answered, and by how much they have raised the counts of requests and look-ups.
async fn ask_all(
    api: &TestApi,
    prefix: &str,
    questions: &[Question],
) -> (Vec<Reading>, BTreeMap<String, i64>) {
    let cleared = api.send("DELETE", "/api/v1/cache", &[], b"").await;
    assert_eq!(cleared.status, 204);
    let before = counts(api).await;
    let mut readings = Vec::new();
    for question in questions {
        readings.push(ask(api, prefix, question).await);
    }
    let mut rises = counts(api).await;
    for (name, count) in &mut rises {
        *count -= before.get(name).copied().unwrap_or_default();
    }
    (readings, rises)
}

async fn counts(api: &TestApi) -> BTreeMap<String, i64> {
    let metrics = api.get("/metrics").await.body;
    let of_orders = |line: &&str| {
        line.starts_with("orders_api_http_requests_total{") && line.contains("route=\"order\"")
    };
    let mut counts: BTreeMap<String, i64> = metrics
        .lines()
        .filter(of_orders)
        .map(|line| {
            let (name, count) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), count.parse().unwrap())
        })
        .collect();
    let stats: Value = api.stats().await;
    counts.extend(LOOKUPS.map(|name| (name.to_owned(), stats[name].as_i64().unwrap())));
    counts
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
    let questions = questions(&etag);

    let (short, short_rises) = ask_all(&api, "/order/", &questions).await;
    let (long, long_rises) = ask_all(&api, "/api/v1/orders/", &questions).await;
    for ((question, short), long) in questions.iter().zip(&short).zip(&long) {
        assert_eq!(short, long, "{}", question.text("/"));
    }
    assert_eq!(short_rises, long_rises);
    assert!(LOOKUPS.iter().all(|name| short_rises[*name] > 0));
}
