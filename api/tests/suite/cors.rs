//! Requests from pages of other sites, over TCP. The rules for origins are tested beside `cors`.

use shared::config::Secret;
use shared::testing::TestDatabase;

use crate::support::{Answer, TestApi, model};

const ORDER: &str = "/api/v1/orders/b563feb7b2b84b6test";
const SHOP: (&str, &str) = ("Origin", "https://shop.example");
const OTHER: (&str, &str) = ("Origin", "https://other.example");

async fn api_with_a_list() -> TestApi {
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.cors_allowed_origins = vec![
            "https://shop.example".parse().unwrap(),
            "http://localhost:3000".parse().unwrap(),
        ];
    })
    .await;
    api.store(&model()).await;
    api
}

fn cors_headers(answer: &Answer) -> [Option<&str>; 5] {
    [
        "access-control-allow-origin",
        "access-control-expose-headers",
        "access-control-allow-methods",
        "access-control-allow-credentials",
        "vary",
    ]
    .map(|name| answer.header(name))
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_list_no_answer_speaks_of_origins() {
    let api = TestApi::start().await;
    for method in ["GET", "OPTIONS"] {
        let headers = [SHOP, ("Access-Control-Request-Method", "GET")];
        let answer = api.send(method, "/order/absent", &headers, b"").await;
        assert_eq!(cors_headers(&answer), [None; 5], "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listed_pages_may_read_everything_errors_included() {
    let api = api_with_a_list().await;
    for (method, path, status) in [
        ("GET", ORDER, 200),
        ("HEAD", ORDER, 200),
        ("GET", "/order/absent", 404),
        ("GET", "/order/%00", 400),
        ("GET", "/nothing", 404),
        ("POST", ORDER, 405),
        ("PATCH", ORDER, 415),
        ("PUT", ORDER, 415),
        ("GET", "/api/v1/cache/stats", 200),
    ] {
        let answer = api.send(method, path, &[SHOP], b"").await;
        assert_eq!(answer.status, status, "{method} {path}");
        let [origin, exposed, _, credentials, vary] = cors_headers(&answer);
        assert_eq!(
            (origin, credentials, vary),
            (Some("https://shop.example"), None, Some("Origin"))
        );
        for header in [
            "ETag",
            "Link",
            "X-Request-Id",
            "Cache-Status",
            "Age",
            "Retry-After",
            "Location",
        ] {
            assert!(
                exposed.unwrap().split(", ").any(|each| each == header),
                "{header}"
            );
        }
        for headers in [&[OTHER][..], &[("Origin", "null")], &[SHOP, SHOP], &[]] {
            let answer = api.send(method, path, headers, b"").await;
            // A shared cache must not reuse this answer for the shop's page.
            assert_eq!(
                cors_headers(&answer),
                [None, None, None, None, Some("Origin")],
                "{headers:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn preflights_are_answered_on_every_path_for_listed_pages_only() {
    let api = api_with_a_list().await;
    let ask = ("Access-Control-Request-Method", "PUT");
    for path in [ORDER, "/api/v1/orders", "/order/%00", "/nothing"] {
        let answer = api.send("OPTIONS", path, &[SHOP, ask], b"").await;
        assert_eq!((answer.status, answer.body.as_str()), (204, ""), "{path}");
        assert_eq!(
            answer.header("access-control-allow-origin"),
            Some("https://shop.example")
        );
        assert_eq!(
            answer.header("access-control-allow-methods"),
            Some("GET, HEAD, PUT, POST, PATCH, DELETE")
        );
        assert_eq!(answer.header("access-control-max-age"), Some("7200"));
        let allowed = answer.header("access-control-allow-headers").unwrap();
        for header in [
            "Authorization",
            "Content-Type",
            "If-Match",
            "If-None-Match",
            "X-Request-Id",
        ] {
            assert!(allowed.split(", ").any(|each| each == header), "{header}");
        }
    }
    let other = api.send("OPTIONS", ORDER, &[OTHER, ask], b"").await;
    assert_eq!(
        cors_headers(&other),
        [None, None, None, None, Some("Origin")]
    );
    let no_preflight = api.send("OPTIONS", ORDER, &[SHOP], b"").await;
    assert_eq!(
        no_preflight.header("allow"),
        Some("GET, HEAD, PUT, PATCH, DELETE, OPTIONS")
    );
    assert_eq!(
        no_preflight.header("accept-patch"),
        Some("application/merge-patch+json")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn listed_pages_may_write_where_this_machine_may() {
    let api = api_with_a_list().await;
    let cross_site = ("Sec-Fetch-Site", "cross-site");
    assert_eq!(api.put(&model(), &[SHOP, cross_site]).await.status, 200);
    for headers in [
        &[OTHER][..],
        &[OTHER, cross_site],
        &[SHOP, ("Host", "shop.example")],
    ] {
        let answer = api.put(&model(), headers).await;
        assert_eq!(
            answer.problem(),
            (403, "forbidden_origin".into()),
            "{headers:?}"
        );
    }
    let guarded = TestApi::start_with(TestDatabase::create(), |config| {
        config.cors_allowed_origins = vec!["https://shop.example".parse().unwrap()];
        config.api_token = Some(Secret::new("s3cret-of-16-chars"));
    })
    .await;
    let answer = guarded.put(&model(), &[SHOP]).await;
    assert_eq!(
        answer.problem(),
        (401, "unauthorized".into()),
        "being listed is no token"
    );
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("https://shop.example")
    );
}
