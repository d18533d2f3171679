//! Requests that no route sees, byte by byte: RFC 9112, sections 3 and 6.

use crate::support::{Answer, TestApi, conformity};

const HOST: &str = "Host: localhost\r\n";

/// Returns the answer to a request line with fields, after which the connection is closed.
async fn ask(api: &TestApi, line: &str, fields: &str) -> Answer {
    let request = format!("{line}\r\n{fields}\r\n");
    api.send_bytes(request.as_bytes()).await
}

/// Every fault of a request, on a request line and in fields, and its answer.
#[rustfmt::skip] // One line per request.
const FAULTS: &[(&str, &str, u16, &str, &str)] = &[
    ("GET /livez HTTP/1.1", "", 400, "bad_request", "Host is missing"),
    ("GET /livez HTTP/1.1", "Host: a\r\nHost: a\r\n", 400, "bad_request", "Host is given twice"),
    ("GET /livez HTTP/1.0", "Host: a\r\nHost: a\r\n", 400, "bad_request", "Host is given twice"),
    ("GET /livez HTTP/1.1", "Host:\r\n", 400, "bad_request", "host name"),
    ("GET /livez HTTP/1.1", "Host: a b\r\n", 400, "bad_request", "host name"),
    ("GET /livez HTTP/1.1", "Host: a/b\r\n", 400, "bad_request", "host name"),
    ("GET /livez HTTP/1.1", "Host: me@localhost\r\n", 400, "bad_request", "host name"),
    ("GET http://a/livez HTTP/1.1", "", 400, "bad_request", "Host is missing"),
    ("GET http://me@a/livez HTTP/1.1", HOST, 400, "bad_request", "host of the target"),
    ("GET ftp://a/livez HTTP/1.1", HOST, 400, "bad_request", "scheme"),
    ("CONNECT a:443 HTTP/1.1", HOST, 400, "bad_request", "CONNECT"),
    ("CONNECT / HTTP/1.1", HOST, 400, "bad_request", "CONNECT"),
    ("GET example.com:80 HTTP/1.1", HOST, 400, "bad_request", "proxy"),
    ("POST a:1 HTTP/1.1", HOST, 400, "bad_request", "proxy"),
    ("OPTIONS localhost HTTP/1.1", HOST, 400, "bad_request", "proxy"),
    ("GET * HTTP/1.1", HOST, 400, "bad_request", "begins with /"),
    ("GET ?a HTTP/1.1", HOST, 400, "bad_request", "URI"),
    ("GET livez/a HTTP/1.1", HOST, 400, "bad_request", "URI"),
    ("GET /livez<a> HTTP/1.1", HOST, 400, "bad_request", "URI"),
    ("GET /livez", "", 400, "bad_request", "does not follow"),
    ("GET /livez HTTP/2.0", HOST, 400, "bad_request", "HTTP/1.1"),
    ("GET /livez HTTP/1.x", HOST, 400, "bad_request", "HTTP/1.1"),
    ("G\u{1}T /livez HTTP/1.1", HOST, 400, "bad_request", "method"),
    ("\u{16}\u{3}\u{1}", "", 400, "bad_request", "method"),
    ("GET /livez HTTP/1.1", "Host: localhost\r\nA b: c\r\n", 400, "bad_request", "field"),
    ("GET /livez HTTP/1.1", "Host: localhost\r\nA: b\0\r\n", 400, "bad_request", "field"),
    ("GET /livez HTTP/1.1", "Host: localhost\r\n A: folded\r\n", 400, "bad_request", "field"),
    ("PUT /livez HTTP/1.1", "Host: localhost\r\nContent-Length: 1, 1\r\n", 400, "bad_request", "Content-Length"),
    ("PUT /livez HTTP/1.1", "Host: localhost\r\nContent-Length: +1\r\n", 400, "bad_request", "Content-Length"),
    ("PUT /livez HTTP/1.1", "Host: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n", 400, "bad_request", "Content-Length"),
    ("PUT /livez HTTP/1.0", "Host: localhost\r\nTransfer-Encoding: chunked\r\n", 400, "bad_request", "Transfer-Encoding"),
    ("PUT /livez HTTP/1.1", "Host: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400, "bad_request", "Transfer-Encoding is given twice"),
    ("PUT /livez HTTP/1.1", "Host: localhost\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", 400, "bad_request", "Transfer-Encoding is given twice"),
    ("PUT /livez HTTP/1.1", "Host: localhost\r\nTransfer-Encoding: gzip, chunked\r\n", 501, "not_implemented", "exactly chunked"),
    ("PUT /livez HTTP/1.1", "Host: localhost\r\nTransfer-Encoding: chunked, chunked\r\n", 501, "not_implemented", "exactly chunked"),
    ("PUT /livez HTTP/1.1", "Host: localhost\r\nTransfer-Encoding: gzip\r\n", 501, "not_implemented", "exactly chunked"),
    ("PUT /livez HTTP/1.1", "Host: localhost\r\nTransfer-Encoding: identity\r\n", 501, "not_implemented", "exactly chunked"),
    ("PUT /livez HTTP/1.1", "Host: localhost\r\nTransfer-Encoding: xchunked\r\n", 501, "not_implemented", "exactly chunked"),
    ("PUT /livez HTTP/1.1", "Host: localhost\r\nTransfer-Encoding:\r\n", 501, "not_implemented", "exactly chunked"),
    ("BREW /livez HTTP/1.1", HOST, 501, "not_implemented", "method"),
    ("get /livez HTTP/1.1", HOST, 501, "not_implemented", "capital"),
    ("PROPFIND / HTTP/1.1", HOST, 501, "not_implemented", "method"),
    ("PUT /order/a HTTP/1.1", "Host: localhost\r\nContent-Range: bytes 0-1/2\r\n", 400, "bad_request", "Content-Range"),
    ("PUT /order/a HTTP/1.1", "Host: localhost\r\nContent-Type: a/b\r\nContent-Type: a/b\r\n", 400, "bad_request", "Content-Type is given twice"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_request_is_told_with_an_id_and_ends_the_connection() {
    let api = TestApi::start().await;
    for (line, fields, status, code, detail) in FAULTS {
        let answer = ask(&api, line, fields).await;
        let what = format!("{line:?} {fields:?}: {}", answer.body);
        assert_eq!(answer.problem(), (*status, (*code).to_owned()), "{what}");
        assert!(answer.body.contains(detail), "{what}");
        assert_eq!(answer.header("connection"), Some("close"), "{what}");
        assert!(
            answer
                .header("date")
                .is_some_and(|date| date.ends_with(" GMT")),
            "{what}"
        );
        conformity::check("GET", "*", &answer);
    }
}

/// What hyper refuses by itself is neither without an id nor uncounted.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_counted() {
    let api = TestApi::start().await;
    let long = "a".repeat(20 * 1024);
    let fields = "A: b\r\n".repeat(101);
    for (line, fields, status, code) in [
        ("GET / HTTP/3", HOST, 400, "bad_request"),
        (&format!("GET /{long} HTTP/1.1"), HOST, 414, "uri_too_long"),
        (
            "GET / HTTP/1.1",
            &*format!("{HOST}A: {long}\r\n"),
            431,
            "header_too_large",
        ),
        ("GET / HTTP/1.1", &fields, 431, "header_too_large"),
        (
            "PUT / HTTP/1.1",
            "Host: a\r\nTransfer-Encoding: gzip\r\n",
            501,
            "not_implemented",
        ),
    ] {
        let name = format!(
            r#"orders_api_http_requests_total{{method="other",route="none",status="{status}"}}"#
        );
        let before = api.metric(&name).await;
        let dropped = r#"orders_api_http_dropped_connections_total{reason="malformed"}"#;
        let dropped_before = api.metric(dropped).await;
        let answer = ask(&api, line, fields).await;
        assert_eq!(answer.problem(), (status, code.to_owned()));
        assert_eq!(answer.header("connection"), Some("close"));
        conformity::check("GET", "*", &answer);
        assert_eq!(api.metric(&name).await, before + 1, "{status}");
        assert_eq!(api.metric(dropped).await, dropped_before + 1, "{status}");
    }
}

/// The bare answer of hyper stands behind other answers in one buffer.
#[tokio::test(flavor = "multi_thread")]
async fn answers_before_a_fault_on_the_same_connection_arrive() {
    let api = TestApi::start().await;
    let good = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let requests = [good, good, "GET / HTTP/9\r\n\r\n", good].concat();
    let answers = api.send_bytes(requests.as_bytes()).await;
    let statuses = |status: &str| answers.body.matches(&format!("HTTP/1.1 {status}")).count();
    assert_eq!(
        (answers.status, statuses("200"), statuses("400")),
        (200, 1, 1)
    );
    assert_eq!(
        answers.body.matches("bad_request\",\"request_id").count(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_unusual_is_answered() {
    let api = TestApi::start().await;
    for (line, fields) in [
        ("GET /livez HTTP/1.0", ""),
        ("GET /livez HTTP/1.1", "Host: [::1]:8081\r\n"),
        ("GET /livez HTTP/1.1", "Host: localhost:\r\n"),
        ("GET /livez HTTP/1.1", "host:localhost\r\n"),
        ("GET /livez HTTP/1.2", HOST),
        ("\r\nGET /livez HTTP/1.9", HOST),
        ("GET http://localhost/livez HTTP/1.1", HOST),
        ("GET HTTPS://any.example:1/livez?a HTTP/1.1", HOST),
        (
            "GET /livez HTTP/1.1",
            "Host: localhost\r\nTransfer-Encoding: Chunked\r\n",
        ),
        (
            "GET /livez HTTP/1.1",
            "Host: localhost\r\nContent-Length: 0\r\nContent-Length: 0\r\n",
        ),
    ] {
        let fields = format!("{fields}Connection: close\r\n");
        let chunks = if fields.contains("Chunked") {
            "0\r\n\r\n"
        } else {
            ""
        };
        let request = format!("{line}\r\n{fields}\r\n{chunks}");
        let answer = api.send_bytes(request.as_bytes()).await;
        assert_eq!(answer.status, 200, "{request:?}: {}", answer.body);
    }
}

/// A proxy that reads one length, and a server that reads the other, could be made to disagree on the next request.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_with_two_lengths_ends_the_connection() {
    let api = TestApi::start().await;
    for fields in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    ] {
        let request = format!(
            "GET /livez HTTP/1.1\r\n{HOST}{fields}\r\n0\r\n\r\nGET /livez HTTP/1.1\r\n{HOST}\r\n"
        );
        let answer = api.send_bytes(request.as_bytes()).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("connection"), Some("close"));
        assert_eq!(answer.body, "{\"status\":\"ok\"}\n", "and no second answer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_of_an_absolute_target_counts_and_the_header_does_not() {
    let api = TestApi::start().await;
    for (target, host, status) in [
        ("http://localhost/api/v1/cache", "evil.example", 204),
        ("http://evil.example/api/v1/cache", "localhost", 403),
        ("/api/v1/cache", "evil.example", 403),
        ("/api/v1/cache", "localhost", 204),
    ] {
        let line = format!("DELETE {target} HTTP/1.1");
        let fields = format!("Host: {host}\r\nConnection: close\r\n");
        assert_eq!(
            ask(&api, &line, &fields).await.status,
            status,
            "{target} {host}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_methods_of_the_whole_server_can_be_asked_for() {
    let api = TestApi::start().await;
    for line in ["OPTIONS * HTTP/1.1", "OPTIONS * HTTP/1.0"] {
        let answer = ask(&api, line, "Host: localhost\r\nConnection: close\r\n").await;
        assert_eq!(answer.status, 204);
        let allow = answer.header("allow").unwrap();
        for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
            assert!(allow.split(", ").any(|each| each == method), "{allow}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_whose_chunks_are_malformed_ends_the_connection() {
    let api = TestApi::start().await;
    for chunks in [
        "0x2\r\n{}\r\n0\r\n\r\n",
        "+2\r\n{}\r\n0\r\n\r\n",
        "2\r\n{}xx\r\n0\r\n\r\n",
    ] {
        let request = format!(
            "POST /api/v1/orders HTTP/1.1\r\n{HOST}Content-Type: application/json\r\n\
             Transfer-Encoding: chunked\r\n\r\n{chunks}"
        );
        let answer = api.send_bytes(request.as_bytes()).await;
        assert_eq!(answer.problem(), (400, "bad_request".into()), "{chunks:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{chunks:?}");
    }
}
