//! A client that reads an answer as slowly as a test wants, and notices if the answer was cut.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};

/// Small, so that a client that reads nothing soon stops the server.
const RECEIVE_BUFFER_BYTES: u32 = 4096;

/// The header that asks for all orders.
pub const NDJSON: &str = "Accept: application/x-ndjson\r\n";

/// The connection ended before the answer was complete.
#[derive(Debug, PartialEq, Eq)]
pub struct Cut;

pub struct Download {
    stream: BufReader<TcpStream>,
    pub head: String,
}

impl Download {
    /// Asks for all orders over a connection with a small receive buffer, and reads the head of the answer.
    pub async fn start(port: u16, path: &str) -> Self {
        Self::start_narrow_with(port, path, NDJSON).await
    }

    /// The same with other headers, one per line.
    pub async fn start_narrow_with(port: u16, path: &str, headers: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES).unwrap();
        Self::start_on(socket, port, path, headers).await
    }

    /// The same over a connection with the usual buffer.
    pub async fn start_wide(port: u16, path: &str) -> Self {
        Self::start_with(port, path, NDJSON).await
    }

    /// The same with other headers, one per line.
    pub async fn start_with(port: u16, path: &str, headers: &str) -> Self {
        Self::start_on(TcpSocket::new_v4().unwrap(), port, path, headers).await
    }

    /// Sends a body, and reads the head of the answer.
    pub async fn post(port: u16, path: &str, headers: &str, body: &str) -> Self {
        let headers = format!("{headers}Content-Length: {}\r\n", body.len());
        let head = request_head("POST", path, &headers);
        Self::send_on(TcpSocket::new_v4().unwrap(), port, &(head + body)).await
    }

    /// Asks from another address of this machine, over a connection with a small receive buffer.
    pub async fn start_from(address: [u8; 4], port: u16, path: &str) -> Self {
        Self::start_from_with(address, port, path, "").await
    }

    /// The same with other headers, one per line.
    pub async fn start_from_with(address: [u8; 4], port: u16, path: &str, headers: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES).unwrap();
        socket.bind((address, 0).into()).unwrap();
        Self::start_on(socket, port, path, headers).await
    }

    async fn start_on(socket: TcpSocket, port: u16, path: &str, headers: &str) -> Self {
        Self::send_on(socket, port, &request_head("GET", path, headers)).await
    }

    async fn send_on(socket: TcpSocket, port: u16, request: &str) -> Self {
        let address = ([127, 0, 0, 1], port).into();
        let mut stream = socket.connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(stream.read_line(&mut head).await.unwrap(), 0, "{head}");
        }
        Self { stream, head }
    }

    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Reads the next chunk; `None` after the last one.
    pub async fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, Cut> {
        let mut size = String::new();
        self.stream.read_line(&mut size).await.map_err(|_| Cut)?;
        let size = size.strip_suffix("\r\n").ok_or(Cut)?;
        let size = usize::from_str_radix(size, 16).unwrap();
        let mut chunk = vec![0; size + 2];
        self.stream.read_exact(&mut chunk).await.map_err(|_| Cut)?;
        chunk.truncate(size);
        Ok((size > 0).then_some(chunk))
    }

    /// Reads the rest of the body.
    pub async fn bytes(mut self) -> Result<Vec<u8>, Cut> {
        let mut body = Vec::new();
        if self.head.contains("\r\ncontent-length: ") {
            let read = self.stream.read_to_end(&mut body).await;
            return read.map(|_| body).map_err(|_| Cut);
        }
        while let Some(chunk) = self.next_chunk().await? {
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Reads the rest of the body as lines.
    pub async fn lines(self) -> Result<Vec<String>, Cut> {
        let body = String::from_utf8(self.bytes().await?).unwrap();
        assert!(body.is_empty() || body.ends_with('\n'));
        Ok(body.lines().map(str::to_owned).collect())
    }
}

fn request_head(method: &str, path: &str, headers: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n")
}
