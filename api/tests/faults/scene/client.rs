//! A client that keeps its connection, because readers send thousands of requests per second.

use std::io;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::support::coherence::Seen;

/// Longer than the server lets a client wait.
const TIMEOUT: Duration = Duration::from_secs(15);

pub(super) struct Client {
    port: u16,
    stream: Option<BufReader<TcpStream>>,
}

/// An answer of the server.
pub(super) enum Answer {
    /// The order, or the answer that there is none.
    Order { seen: Option<Seen>, is_hit: bool },
    /// 503 or 504: the database could not be asked.
    Refused,
}

impl Client {
    pub(super) fn new(port: u16) -> Self {
        Self { port, stream: None }
    }

    pub(super) async fn order(&mut self, uid: &str) -> io::Result<Answer> {
        let request = format!("GET /order/{uid} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.ask(&request, TIMEOUT).await
    }

    pub(super) async fn put(
        &mut self,
        uid: &str,
        body: &str,
        timeout: Duration,
    ) -> io::Result<Answer> {
        let request = format!(
            "PUT /api/v1/orders/{uid} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.ask(&request, timeout).await
    }

    async fn ask(&mut self, request: &str, timeout: Duration) -> io::Result<Answer> {
        let stream = self.stream.take();
        let port = self.port;
        let exchange = async move {
            let mut stream = match stream {
                Some(stream) => stream,
                None => BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?),
            };
            stream.write_all(request.as_bytes()).await?;
            let answer = read_answer(&mut stream).await?;
            io::Result::Ok((answer, stream))
        };
        let (answer, stream) = tokio::time::timeout(timeout, exchange).await??;
        self.stream = Some(stream);
        Ok(answer)
    }
}

async fn read_answer(stream: &mut BufReader<TcpStream>) -> io::Result<Answer> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find_map(|(each, value)| each.eq_ignore_ascii_case(name).then_some(value))
    };
    let length = header("content-length").unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let is_hit = header("cache-status").is_some_and(|status| status.starts_with("orders; hit"));
    let seen = match head.split(' ').nth(1).unwrap() {
        "200" => {
            let etag = header("etag").unwrap().trim_matches('"');
            let version = etag.split('-').next().unwrap().parse().unwrap();
            let order: Value = serde_json::from_slice(&body).unwrap();
            Some(Seen {
                version,
                sequence: order["payment"]["amount"].as_i64().unwrap(),
                item_sequence: order["items"][0]["price"].as_i64().unwrap(),
            })
        }
        "404" => None,
        "503" | "504" => return Ok(Answer::Refused),
        _ => panic!("{head}{}", String::from_utf8_lossy(&body)),
    };
    Ok(Answer::Order { seen, is_hit })
}
