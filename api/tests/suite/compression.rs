//! gzip and brotli, for clients that accept them.

use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder};
use tokio::io::AsyncReadExt;

use crate::support::copies::store_copies;
use crate::support::download::{Cut, Download, NDJSON};
use crate::support::{TOKEN, TestApi, model};

const LIST: &str = "/api/v1/orders";

async fn decoded(encoding: &str, body: &[u8]) -> String {
    let mut text = String::new();
    match encoding {
        "br" => BrotliDecoder::new(body).read_to_string(&mut text).await,
        _ => GzipDecoder::new(body).read_to_string(&mut text).await,
    }
    .unwrap();
    text
}

fn headers_of(head: &str, name: &str) -> Vec<String> {
    let lines = head.split("\r\n").filter_map(|line| line.split_once(": "));
    lines
        .filter(|(each, _)| *each == name)
        .map(|(_, value)| value.to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_exports_and_the_page_travel_compressed() {
    let api = TestApi::start().await;
    store_copies(&api.database, 100, 2);
    for (path, accept) in [
        (LIST, ""),
        (LIST, NDJSON),
        ("/app.js", ""),
        ("/openapi.json", ""),
    ] {
        let plain = match accept {
            "" => api.get(path).await.body,
            _ => {
                Download::start_with(api.port, path, accept)
                    .await
                    .lines()
                    .await
                    .unwrap()
                    .join("\n")
                    + "\n"
            }
        };
        for encoding in ["gzip", "br"] {
            let headers = format!("{accept}Accept-Encoding: {encoding}\r\n");
            let download = Download::start_with(api.port, path, &headers).await;
            let head = download.head.clone();
            assert_eq!(headers_of(&head, "content-encoding"), [encoding], "{path}");
            assert!(
                headers_of(&head, "vary").contains(&"Accept-Encoding".to_owned()),
                "{head}"
            );
            assert!(
                headers_of(&head, "etag")
                    .iter()
                    .all(|etag| etag.starts_with("W/")),
                "{head}"
            );
            let body = download.bytes().await.unwrap();
            assert!(
                body.len() < plain.len() / 2,
                "{path} {encoding}: {}",
                body.len()
            );
            assert_eq!(decoded(encoding, &body).await, plain, "{path} {encoding}");

            let asked = [
                ("Accept-Encoding", encoding),
                ("Accept", accept.trim_start_matches("Accept: ").trim_end()),
            ];
            let asked = if accept.is_empty() {
                &asked[..1]
            } else {
                &asked[..]
            };
            let head = api.send("HEAD", path, asked, b"").await;
            assert_eq!(head.header("content-encoding"), Some(encoding), "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_order_and_what_is_short_are_left_alone() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let asked = [("Accept-Encoding", "gzip, br")];
    let order = "/order/b563feb7b2b84b6test";
    let nobodys = format!("{LIST}?customer_id=nobody");
    for (path, varies) in [(order, false), (&nobodys, true), ("/livez", false)] {
        let answer = api.send("GET", path, &asked, b"").await;
        assert_eq!(
            (answer.status, answer.header("content-encoding")),
            (200, None),
            "{path}"
        );
        let vary = answer.headers("vary");
        assert_eq!(
            vary.contains(&"Accept-Encoding"),
            varies,
            "{path}: {vary:?}"
        );
    }
    let plain = api.get(order).await;
    assert_eq!(
        api.send("GET", order, &asked, b"").await.header("etag"),
        plain.header("etag")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_page_is_revalidated_in_any_coding() {
    let api = TestApi::start().await;
    let etag = api.get("/app.js").await.header("etag").unwrap().to_owned();
    let asked = [("Accept-Encoding", "br"), ("If-None-Match", etag.as_str())];
    let answer = api.send("GET", "/app.js", &asked, b"").await;
    assert_eq!(
        (answer.status, answer.header("content-encoding")),
        (304, None)
    );
    assert_eq!(answer.header("etag"), Some(etag.as_str()));
    assert_eq!(answer.headers("vary"), ["Accept-Encoding"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_export_that_fails_is_cut_too() {
    let api = TestApi::start().await;
    store_copies(&api.database, 60, 1000);
    let headers = format!("{NDJSON}Accept-Encoding: gzip\r\n");
    let mut download = Download::start_narrow_with(api.port, LIST, &headers).await;
    download.next_chunk().await.unwrap().unwrap();
    api.database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
         AND application_name = 'orders-api-export'",
    );
    assert_eq!(download.bytes().await.map(|body| body.len()), Err(Cut));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_http_1_0_get_lists_as_they_are() {
    let api = TestApi::start_with_token().await;
    store_copies(&api.database, 10, 2);
    let request = format!(
        "GET {LIST} HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\nAccept-Encoding: gzip\r\n\r\n"
    );
    let answer = api.send_bytes(request.as_bytes()).await;
    assert_eq!(answer.header("content-encoding"), None);
    assert_eq!(answer.json()["orders"].as_array().unwrap().len(), 11);
}

/// RFC 9110, section 12.5.3: only then does a client not get a plain answer.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_refuses_plain_answers_gets_none() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let order = "/order/b563feb7b2b84b6test";
    for (path, accepted, status) in [
        (LIST, "identity;q=0, gzip", 200),
        (LIST, "gzip, *;q=0", 200),
        (LIST, "identity;q=0", 406),
        ("/app.js", "*;q=0", 406),
        ("/", "identity;q=0, br", 200),
        // An order is never compressed.
        (order, "identity;q=0, gzip", 406),
        (order, "*;q=0, identity", 200),
        ("/api/v1/cache/stats", "*;q=0", 406),
    ] {
        let headers = format!("Accept-Encoding: {accepted}\r\n");
        let download = Download::start_with(api.port, path, &headers).await;
        assert_eq!(download.status(), status, "{path} {accepted}");
        let is_encoded = !headers_of(&download.head, "content-encoding").is_empty();
        assert_eq!(
            is_encoded,
            status == 200 && path != order,
            "{path} {accepted}"
        );
    }
}
