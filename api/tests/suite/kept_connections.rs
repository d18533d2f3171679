//! A client that keeps its connection and sends bodies, also with requests that are refused before anybody reads them.

use shared::config::Secret;
use shared::order::MAX_ORDER_BYTES;
use shared::testing::TestDatabase;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Answer, PATIENCE, TestApi, model};

const ORDER: &str = "/api/v1/orders/b563feb7b2b84b6test";
const TOKEN: &str = "Authorization: Bearer a-token-of-this-test\r\n";
const JSON: &str = "Content-Type: application/json\r\n";

/// A client that believes what answers say of the connection.
struct Keeper {
    port: u16,
    connection: Option<TcpStream>,
    connections: usize,
}

impl Keeper {
    fn new(api: &TestApi) -> Self {
        Self {
            port: api.port,
            connection: None,
            connections: 0,
        }
    }

    /// Sends a head and then a body, while it already waits for the answer.
    async fn ask(&mut self, line: &str, fields: &str, body: &[u8]) -> Answer {
        let mut connection = match self.connection.take() {
            Some(kept) => kept,
            None => {
                self.connections += 1;
                TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
            }
        };
        let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
        let (mut reader, mut writer) = connection.split();
        let sending = async {
            writer.write_all(head.as_bytes()).await?;
            writer.write_all(body).await
        };
        let exchange = async { tokio::join!(sending, read_answer(&mut reader)) };
        let exchange = tokio::time::timeout(PATIENCE, exchange).await;
        let (sent, answer) = exchange.expect("no answer in time");
        let closes = answer.header("connection") == Some("close");
        if !closes {
            sent.unwrap_or_else(|error| panic!("{line}: broken without a word: {error}"));
            self.connection = Some(connection);
        }
        answer
    }
}

async fn read_answer(reader: &mut (impl AsyncReadExt + Unpin)) -> Answer {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let byte = reader.read_u8().await;
        bytes.push(byte.expect("hung up on without an answer"));
    }
    let mut answer = Answer::parse(&bytes);
    let length = answer.header("content-length").map_or("0", |length| length);
    let mut body = vec![0; length.parse().unwrap()];
    reader.read_exact(&mut body).await.unwrap();
    answer.body = String::from_utf8(body).unwrap();
    answer
}

/// Frames a body by its length or in chunks.
fn framed(body: &[u8], is_chunked: bool) -> (String, Vec<u8>) {
    if !is_chunked {
        return (format!("Content-Length: {}\r\n", body.len()), body.to_vec());
    }
    let mut chunks = Vec::new();
    for chunk in body.chunks(8000) {
        chunks.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        chunks.extend_from_slice(chunk);
        chunks.extend_from_slice(b"\r\n");
    }
    chunks.extend_from_slice(b"0\r\n\r\n");
    ("Transfer-Encoding: chunked\r\n".to_owned(), chunks)
}

async fn start() -> TestApi {
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.api_token = Some(Secret::new("a-token-of-this-test"));
    })
    .await;
    api.store(&model()).await;
    api
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_after_an_answer_that_did_not_wait_for_the_body() {
    let api = start().await;
    let mut client = Keeper::new(&api);
    let order = serde_json::to_vec(&model()).unwrap();
    let padded = |bytes: usize| {
        let mut body = order.clone();
        body.resize(bytes.max(order.len()), b' ');
        body
    };
    let put = format!("PUT {ORDER}");
    let delete = format!("DELETE {ORDER}");
    let get = format!("GET {ORDER}");
    #[rustfmt::skip] // One line per request.
    let requests = [
        (&*put, JSON.to_owned(), 401),
        ("PATCH /livez", String::new(), 405),
        ("PUT /nothing", String::new(), 404),
        ("PUT /order/%00", TOKEN.to_owned(), 400),
        (&*put, [TOKEN, "Content-Type: text/plain\r\n"].concat(), 415),
        (&*delete, [TOKEN, "If-Match: \"0\"\r\n"].concat(), 412),
        (&*get, TOKEN.to_owned(), 200),
        ("GET /livez", String::new(), 200),
        ("BREW /livez", String::new(), 501),
    ];
    for size in [0, 60_000, MAX_ORDER_BYTES, 3_000_000] {
        for is_chunked in [false, true] {
            for (line, fields, status) in &requests {
                let (framing, body) = framed(&padded(size), is_chunked);
                let fields = [fields, &*framing].concat();
                let answer = client.ask(line, &fields, &body).await;
                assert_eq!(answer.status, *status, "{line} {size}: {}", answer.body);
                let is_short = size < MAX_ORDER_BYTES;
                let is_kept = answer.header("connection").is_none();
                assert!(
                    is_kept || !is_short || *status == 501,
                    "{line} {size} {is_chunked}"
                );
            }
            let (framing, body) = framed(&padded(size), is_chunked);
            let fields = [TOKEN, JSON, &framing].concat();
            let status = client.ask(&put, &fields, &body).await.status;
            assert_eq!(status, if size <= MAX_ORDER_BYTES { 200 } else { 413 });
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_says_that_it_ends_the_connection_if_the_body_is_unwanted() {
    let api = start().await;
    for (fields, status) in [
        // The client has not sent the body, and nobody asks it to.
        ("Content-Length: 9\r\nExpect: 100-continue\r\n", 401),
        ("Content-Length: 9999999\r\n", 401),
        ("Transfer-Encoding: chunked\r\n", 401),
        (
            &[
                TOKEN,
                JSON,
                "Content-Length: 300000\r\nExpect: 100-continue\r\n",
            ]
            .concat(),
            413,
        ),
    ] {
        let mut client = Keeper::new(&api);
        let answer = client.ask(&format!("PUT {ORDER}"), fields, b"").await;
        assert_eq!(answer.status, status, "{fields:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{fields:?}");
    }
}
