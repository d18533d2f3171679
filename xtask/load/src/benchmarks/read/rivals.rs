//! Who else answers the same bytes: nginx out of a file, hyper out of memory.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::http::get;
use crate::benchmarks::Service;

/// nginx; its workers outlive a master that is killed, so it is asked to stop.
pub(super) struct Nginx {
    service: Service,
    configuration: String,
}

impl Nginx {
    /// Keep-alive, sendfile, open-file cache, no access log. `user` is for root alone, whose folders its workers could not
    /// read; others are told that it has no effect.
    pub(super) fn start(folder: &Path, port: u16, path: &str, body: &str) -> anyhow::Result<Self> {
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
        let configuration = file.display().to_string();
        let service = Service::start("nginx", &["-c", &configuration], &[])?;
        Ok(Self {
            service,
            configuration,
        })
    }

    pub(super) fn wait_for_answer(&mut self, port: u16, path: &str) -> anyhow::Result<()> {
        self.service
            .wait_for("nginx answers", || Ok(get(port, path).is_ok()))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Answers only when the master has the signal; it may take a moment more.
        Command::new("nginx")
            .args(["-c", &self.configuration, "-s", "stop"])
            .stderr(Stdio::null())
            .status()
            .ok();
        self.service.wait_for_end();
    }
}

/// hyper without anything around it: no routes, no checks, no log, no metrics, no deadlines. A process of its own, as the
/// others are.
pub(super) fn start_bare_hyper(
    folder: &Path,
    port: u16,
    head: &str,
    body: &str,
) -> anyhow::Result<Service> {
    let answer = folder.join("answer");
    std::fs::write(&answer, format!("{head}\r\n\r\n{body}"))?;
    let itself = std::env::current_exe()?.display().to_string();
    let (answer, port) = (answer.display().to_string(), port.to_string());
    Service::start(
        &itself,
        &["bare-hyper", "--answer", &answer, "--port", &port],
        &[],
    )
}

/// Serves the answer in a file to whatever is asked, as the api gave it: with the same fields in its head.
pub(crate) fn serve_bare_hyper(answer: &Path, port: u16) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(answer)?;
    let (head, body) = text
        .split_once("\r\n\r\n")
        .context("no answer in the file")?;
    let mut headers = HeaderMap::new();
    for (name, value) in head.lines().filter_map(|line| line.split_once(": ")) {
        // hyper's own.
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
                // Ends with an error where the client hangs up in the middle.
                http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await
                    .ok()
            });
        }
    })
}
