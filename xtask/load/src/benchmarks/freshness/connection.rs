//! One connection to an api that is kept open: as few bytes and system calls a question as there can be.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

/// Longer than any answer may take.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection; it asks, then waits for the answer.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

/// What an api answered.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    pub status: u16,
    /// The version in the `ETag`; none of an order that is not there.
    pub version: Option<i64>,
    /// From the cache, an order that is known not to be there as well.
    pub is_hit: bool,
    pub body: &'a [u8],
}

impl Connection {
    pub(super) fn open(port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        Ok(Self {
            stream,
            received: Vec::new(),
        })
    }

    pub(super) fn get(&mut self, path: &str) -> anyhow::Result<Answer<'_>> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        self.stream.write_all(request.as_bytes())?;
        self.received.clear();
        let mut head_len = None;
        loop {
            let mut chunk = [0; 16 * 1024];
            let read = self.stream.read(&mut chunk).context("no answer")?;
            ensure!(read > 0, "the api has closed the connection");
            self.received.extend_from_slice(&chunk[..read]);
            if head_len.is_none() {
                let end = self
                    .received
                    .windows(4)
                    .position(|four| four == b"\r\n\r\n");
                head_len = end.map(|end| end + 4);
            }
            let Some(head_len) = head_len else { continue };
            let head = Head::parse(&self.received[..head_len])?;
            if self.received.len() >= head_len + head.body_len {
                return Ok(Answer {
                    status: head.status,
                    version: head.version,
                    is_hit: head.is_hit,
                    body: &self.received[head_len..],
                });
            }
        }
    }
}

struct Head {
    status: u16,
    version: Option<i64>,
    is_hit: bool,
    body_len: usize,
}

impl Head {
    fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let mut lines = std::str::from_utf8(bytes)?.split("\r\n");
        let status = lines
            .next()
            .and_then(|line| line.strip_prefix("HTTP/1.1 "))
            .and_then(|line| line.get(..3))
            .context("no status in the answer")?;
        let mut head = Self {
            status: status.parse()?,
            version: None,
            is_hit: false,
            body_len: 0,
        };
        for line in lines {
            let Some((name, value)) = line.split_once(": ") else {
                continue;
            };
            match name {
                "content-length" => head.body_len = value.parse()?,
                "transfer-encoding" => bail!("an answer in chunks, to which there is no ETag"),
                "etag" => head.version = Some(value.trim_matches('"').parse()?),
                "cache-status" => head.is_hit = value == "orders; hit",
                _ => {}
            }
        }
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_and_hit_are_read_from_a_head() {
        let head = Head::parse(
            b"HTTP/1.1 200 OK\r\netag: \"17\"\r\ncache-status: orders; hit\r\ncontent-length: 3\r\n\r\n",
        )
        .unwrap();
        assert_eq!((head.status, head.body_len), (200, 3));
        assert_eq!((head.version, head.is_hit), (Some(17), true));
        let miss = b"HTTP/1.1 404 Not Found\r\ncache-status: orders; fwd=miss; stored\r\n\r\n";
        let head = Head::parse(miss).unwrap();
        assert_eq!((head.status, head.version, head.is_hit), (404, None, false));
    }
}
