//! `livez`: asks the process of this machine or container whether it lives. A health check needs nothing but the program itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, ensure};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::header::{CONNECTION, HOST};
use hyper::{Request, StatusCode, client};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long connecting and the answer may take together. Health checks of containers give up after a few seconds, too.
const DEADLINE: Duration = Duration::from_secs(3);

/// Asks `/livez` of the process that listens on a host and a port. If it listens on all addresses, it is asked on loopback.
///
/// # Errors
/// Returns one line if the answer is not 200, or does not come within three seconds.
pub async fn livez(host: &str, port: u16) -> anyhow::Result<()> {
    ensure!(
        port != 0,
        "livez: the port is 0, so the process has taken a free one: choose a port"
    );
    let host = host_to_ask(host);
    let url = format!("http://{}/livez", authority(&host, port));
    match timeout(DEADLINE, ask(&host, port)).await {
        Ok(Ok(StatusCode::OK)) => Ok(()),
        Ok(Ok(status)) => anyhow::bail!("{url} answers {status}: see the log of the process"),
        Ok(Err(error)) => Err(error).with_context(|| {
            format!("{url} does not answer: is the process running, and is this its port?")
        }),
        Err(_) => anyhow::bail!("{url} does not answer within {DEADLINE:?}: the process hangs"),
    }
}

async fn ask(host: &str, port: u16) -> anyhow::Result<StatusCode> {
    let stream = TcpStream::connect((host, port)).await?;
    let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get("/livez")
        .header(HOST, authority(host, port))
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await;
    connection.abort();
    Ok(answer?.status())
}

/// Returns the host on which a process can be asked that listens on this one.
fn host_to_ask(host: &str) -> String {
    match host.parse() {
        Ok(IpAddr::V4(address)) if address.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
        Ok(IpAddr::V6(address)) if address.is_unspecified() => Ipv6Addr::LOCALHOST.to_string(),
        _ => host.to_owned(),
    }
}

/// Writes host and port as in a URL.
fn authority(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::*;

    /// Answers one request with these bytes, and then keeps the connection open.
    async fn server(host: &str, answer: &'static [u8]) -> (u16, JoinHandle<String>) {
        let listener = TcpListener::bind((host, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            stream.write_all(answer).await.unwrap();
            // Ends when the client closes the connection.
            stream.read_u8().await.ok();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        (port, serving)
    }

    const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

    #[tokio::test]
    async fn a_process_that_listens_on_all_addresses_is_asked_on_loopback() {
        for (bound, host) in [("127.0.0.1", "0.0.0.0"), ("::1", "::")] {
            let (port, serving) = server(bound, GOOD).await;
            livez(host, port).await.unwrap();
            let request = serving.await.unwrap().to_lowercase();
            let expected = format!("\r\nhost: {}\r\n", authority(bound, port));
            assert!(request.starts_with("get /livez http/1.1\r\n"), "{request}");
            assert!(request.contains(&expected), "{request}");
        }
    }

    #[tokio::test]
    async fn any_answer_but_200_and_none_at_all_are_failures_with_one_line() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed_port = closed.local_addr().unwrap().port();
        drop(closed);
        let (failing, _serving) = server(
            "127.0.0.1",
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
        )
        .await;
        let (hanging, _serving) = server("127.0.0.1", b"").await;
        let (foreign, _serving) = server("127.0.0.1", b"220 mail.example ESMTP\r\n").await;
        for (port, expected) in [
            (closed_port, "does not answer: is the process running"),
            (failing, "answers 503 Service Unavailable"),
            (hanging, "does not answer within 3s"),
            (foreign, "does not answer: is the process running"),
            (0, "the port is 0"),
        ] {
            let started = std::time::Instant::now();
            let error = format!("{:#}", livez("127.0.0.1", port).await.unwrap_err());
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
            assert!(started.elapsed() < DEADLINE * 2, "{error}");
        }
    }
}
