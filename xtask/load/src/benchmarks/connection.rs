//! A connection to an api that is kept open. A request costs as few bytes and system calls as possible, because it must not
//! take time away from what is measured. An ordinary HTTP client costs more.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use httparse::{EMPTY_HEADER, Header, Status};

/// No answer may take this long.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// More header fields than an api sends.
const MAX_HEADERS: usize = 32;

/// A connection with one request at a time.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

/// The answer of an api.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    pub status: u16,
    /// The version in the `ETag`; `None` if the order does not exist.
    pub version: Option<i64>,
    /// Whether the answer is from the cache. This can also be that the order does not exist.
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
        let mut length_opt = None;
        while length_opt.is_none_or(|length| self.received.len() < length) {
            let mut chunk = [0; 16 * 1024];
            let read = self.stream.read(&mut chunk).context("no answer")?;
            ensure!(read > 0, "the api has closed the connection");
            self.received.extend_from_slice(&chunk[..read]);
            length_opt = match length_opt {
                None => answer_length(&self.received)?,
                known => known,
            };
        }
        Answer::parse(&self.received)
    }
}

/// Returns the length of an answer with its head; `None` while its head is not complete.
fn answer_length(bytes: &[u8]) -> anyhow::Result<Option<usize>> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let Status::Complete(head_length) = head.parse(bytes)? else {
        return Ok(None);
    };
    let body_length = value(head.headers, "content-length");
    let body_length = body_length.context("an answer without Content-Length")?;
    Ok(Some(head_length + body_length.parse::<usize>()?))
}

fn value<'a>(headers: &[Header<'a>], name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|header| header.name == name)?;
    std::str::from_utf8(found.value).ok()
}

impl<'a> Answer<'a> {
    fn parse(bytes: &'a [u8]) -> anyhow::Result<Self> {
        let mut headers = [EMPTY_HEADER; MAX_HEADERS];
        let mut head = httparse::Response::new(&mut headers);
        let Status::Complete(head_length) = head.parse(bytes)? else {
            anyhow::bail!("the head of an answer is not complete");
        };
        let etag = value(head.headers, "etag").map(|etag| etag.trim_matches('"'));
        // The version comes before the hyphen, and the database's history after it.
        let version = etag.and_then(|etag| etag.split('-').next()).map(str::parse);
        Ok(Self {
            status: head.code.context("an answer without status")?,
            version: version.transpose()?,
            is_hit: value(head.headers, "cache-status") == Some("orders; hit"),
            body: &bytes[head_length..],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_and_hit_are_read_from_a_head() {
        let hit = b"HTTP/1.1 200 OK\r\netag: \"17-5f0c1a7be2d94836\"\r\ncache-status: orders; hit\r\ncontent-length: 3\r\n\r\nabc";
        assert_eq!(answer_length(&hit[..30]).unwrap(), None);
        assert_eq!(answer_length(hit).unwrap(), Some(hit.len()));
        let answer = Answer::parse(hit).unwrap();
        assert_eq!((answer.status, answer.body), (200, &b"abc"[..]));
        assert_eq!((answer.version, answer.is_hit), (Some(17), true));
        let miss = b"HTTP/1.1 404 Not Found\r\ncache-status: orders; fwd=miss; stored\r\n\r\n";
        let answer = Answer::parse(miss).unwrap();
        assert_eq!(
            (answer.status, answer.version, answer.is_hit),
            (404, None, false)
        );
    }
}
