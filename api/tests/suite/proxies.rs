//! Proxies that compress answers and change their `ETag`s. A client sends back the tag that the proxy gave it.

use servers::proxy::{PrivateProxy, ProxyProgram};
use shared::order::Order;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::block_in_place;

use crate::support::{PATIENCE, TOKEN, TestApi, model};

/// A client behind a proxy. It accepts one coding.
struct Client<'a> {
    proxy: &'a PrivateProxy,
    coding: &'a str,
}

impl Client<'_> {
    async fn get(&self, order: &Order, headers: &str) -> Reply {
        self.send("GET", order, headers, "").await
    }

    async fn put(&self, order: &Order, etag: &str) -> Reply {
        let body = serde_json::to_string(order).unwrap();
        let headers = format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\nIf-Match: {etag}\r\n",
            body.len()
        );
        self.send("PUT", order, &headers, &body).await
    }

    async fn send(&self, method: &str, order: &Order, headers: &str, body: &str) -> Reply {
        let request = format!(
            "{method} /api/v1/orders/{} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Authorization: Bearer {TOKEN}\r\nAccept-Encoding: {}\r\n{headers}\r\n{body}",
            order.order_uid, self.coding
        );
        let mut stream = TcpStream::connect(("127.0.0.1", self.proxy.port()))
            .await
            .unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        read.expect("no answer in time").unwrap();
        Reply::parse(&answer)
    }
}

/// The head of an answer, whose body may be compressed.
#[derive(Debug)]
struct Reply {
    status: u16,
    etag: Option<String>,
    coding: Option<String>,
}

impl Reply {
    fn parse(answer: &[u8]) -> Self {
        let text = String::from_utf8_lossy(answer);
        let (head, _) = text.split_once("\r\n\r\n").expect("an answer");
        let header = |name: &str| {
            head.lines()
                .filter_map(|line| line.split_once(": "))
                .find(|(each, _)| each.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.to_owned())
        };
        Self {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            etag: header("etag"),
            coding: header("content-encoding"),
        }
    }
}

/// Reads and writes an order through a proxy, for clients that accept these codings. Each comes with the tag that the proxy must
/// give them, where `*` stands for the text of our tag.
async fn check(program: ProxyProgram, cases: &[(&str, &str)]) {
    let api = TestApi::start_with_token().await;
    let mut order = model();
    api.store(&order).await;
    let path = format!("/api/v1/orders/{}", order.order_uid);
    let bearer = format!("Bearer {TOKEN}");
    let authorization = [("Authorization", bearer.as_str())];
    let proxy = block_in_place(|| PrivateProxy::start(program, api.port)).unwrap();
    for (coding, expected) in cases {
        let ours = api.send("GET", &path, &authorization, b"").await;
        let ours = ours.header("etag").unwrap().to_owned();
        let expected = expected.replace('*', ours.trim_matches('"'));
        let client = Client {
            proxy: &proxy,
            coding,
        };

        let read = client.get(&order, "").await;
        let applied = read.coding.as_deref().unwrap_or("identity");
        assert_eq!((read.status, applied), (200, *coding));
        let etag = read.etag.unwrap();
        assert_eq!(etag, expected);
        let condition = format!("If-None-Match: {etag}\r\n");
        assert_eq!(client.get(&order, &condition).await.status, 304, "{etag}");

        order.payment.amount += 1;
        let written = client.put(&order, &etag).await;
        assert_eq!(written.status, 200, "{etag}");
        assert_eq!(client.put(&order, &etag).await.status, 412, "{etag}");
        assert_eq!(client.get(&order, &condition).await.status, 200, "{etag}");

        let etag = written.etag.unwrap();
        assert_eq!(client.put(&order, &etag).await.status, 200, "{etag}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_to_which_apache_has_appended_the_coding_matches() {
    let cases = [
        ("gzip", "\"*-gzip\""),
        ("br", "\"*-br\""),
        ("identity", "\"*\""),
    ];
    check(ProxyProgram::Apache, &cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_nginx_has_weakened_matches() {
    let cases = [("gzip", "W/\"*\""), ("identity", "\"*\"")];
    check(ProxyProgram::Nginx, &cases).await;
}
