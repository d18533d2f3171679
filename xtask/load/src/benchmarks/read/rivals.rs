//! The rivals that answer with the same bytes: nginx from a file, hyper from memory.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use servers::process::Process;
use tokio::net::TcpListener;

use crate::benchmarks::services::service;

/// Starts nginx with keep-alive, sendfile, a cache of open files, and without an access log.
///
/// `user` applies only if root runs this: other users could not read root's folders. For others nginx warns that it has no
/// effect.
pub(super) fn start_nginx(
    folder: &Path,
    port: u16,
    path: &str,
    body: &[u8],
) -> anyhow::Result<Process> {
    let file = folder.join(path.trim_start_matches('/'));
    std::fs::create_dir_all(file.parent().context("the path has no folder")?)?;
    std::fs::write(&file, body)?;
    let root = folder.display();
    let configuration = format!(
        "user root; daemon off; worker_processes auto; pid {root}/nginx.pid; error_log stderr;
         events {{ worker_connections 1024; }}
         http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; default_type application/json;
                 open_file_cache max=100; client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;
                 fastcgi_temp_path {root}/fastcgi; uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
                 server {{ listen 127.0.0.1:{port}; root {root}; }} }}"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, configuration)?;
    service("nginx").arg("-c").arg(file).spawn()
}

/// Starts hyper with nothing around it: no routes, no checks, no log, no metrics, no deadlines. Like the others it is a
/// separate process.
pub(super) fn start_bare_hyper(
    folder: &Path,
    port: u16,
    response: &minreq::Response,
) -> anyhow::Result<Process> {
    let mut answer = String::new();
    for (name, value) in &response.headers {
        answer.push_str(&format!("{name}: {value}\r\n"));
    }
    answer.push_str(&format!("\r\n{}", response.as_str()?));
    let file = folder.join("answer");
    std::fs::write(&file, answer)?;
    let itself = std::env::current_exe()?.display().to_string();
    service(&itself)
        .args(["bare-hyper", "--port", &port.to_string(), "--answer"])
        .arg(file)
        .spawn()
}

/// Answers all requests with the answer in a file, with the same header fields as the api.
pub(crate) fn serve_bare_hyper(answer: &Path, port: u16) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(answer)?;
    let (head, body) = text
        .split_once("\r\n\r\n")
        .context("the file has no answer")?;
    let mut headers = HeaderMap::new();
    for (name, value) in head.lines().filter_map(|line| line.split_once(": ")) {
        // hyper sends its own.
        if !["content-length", "date", "connection"].contains(&name) {
            headers.insert(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
        }
    }
    let body = Bytes::from(body.to_owned());
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let (headers, body) = (headers.clone(), body.clone());
            let service = service_fn(move |_: Request<Incoming>| {
                let mut response = Response::new(Full::new(body.clone()));
                *response.headers_mut() = headers.clone();
                std::future::ready(Ok::<_, Infallible>(response))
            });
            tokio::spawn(async move {
                // It ends with an error if the client closes the connection in the middle.
                http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await
                    .ok()
            });
        }
    })
}
