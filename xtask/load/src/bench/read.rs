//! How many cache hits a second the api answers, beside nginx answering the same bytes from a file.
//!
//! `wrk` asks both for one order over 64 connections that are kept open. Before, both must answer 200 with the same bytes,
//! the api as `Cache-Status: orders; hit` with all 10,000 orders in its cache; after, the cache's own counters must say that
//! nothing but hits was measured. nginx runs as it is recommended for static files, with a worker for each core. The two
//! heads differ: the api's has `ETag`, `Cache-Status`, `Age`, a request's id and security headers. Both share the machine
//! with wrk, so that on few cores these are ratios of what is left, not of what either can do.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use diesel::prelude::*;
use shared::db::models::{NewOrder, NewOrderItem};
use shared::db::schema::{order_items, orders};
use shared::order::Order;
use shared::testing::{OrderGenerator, TestDatabase};

use super::{Service, in_turn, median, print_load_average, usage};

const CACHED_ORDERS: usize = 10_000;
const CONNECTIONS: &str = "-c64";

/// Measures `rounds` times each, in turn, and prints a table. `folder` takes nginx's files.
pub(crate) fn run(
    api: &str,
    folder: &Path,
    api_port: u16,
    nginx_port: u16,
    rounds: usize,
) -> anyhow::Result<()> {
    let database = TestDatabase::create();
    let mut generator = OrderGenerator::new(2, chrono::Utc::now());
    let made: Vec<Order> = (0..CACHED_ORDERS).map(|_| generator.next_order()).collect();
    store(&mut database.connect(), &made)?;
    let settings = database.settings();
    let mut service = Service::start(
        api,
        &[],
        &[
            ("DB_HOST", settings.host.clone()),
            ("DB_PORT", settings.port.to_string()),
            ("DB_USER", settings.user.clone()),
            ("DB_PASSWORD", settings.password.expose().to_owned()),
            ("DB_NAME", settings.name.clone()),
            ("SERVER_PORT", api_port.to_string()),
        ],
    )?;
    let path = format!("/order/{}", made.first().context("no order")?.order_uid);
    service.wait_for("the api has cached every order", || {
        Ok(cache_count(api_port, "size").is_ok_and(|size| size == CACHED_ORDERS as u64))
    })?;
    let (head, body) = get(api_port, &path)?;
    ensure!(
        head.contains("cache-status: orders; hit\r\n"),
        "not from the cache: {head}"
    );
    let mut nginx = Nginx::start(folder, nginx_port, &path, &body)?;
    nginx.wait_for_answer(nginx_port, &path)?;
    ensure!(
        get(nginx_port, &path)?.1 == body,
        "nginx answers other bytes"
    );
    let not_hits = || -> anyhow::Result<u64> {
        Ok(cache_count(api_port, "misses")? + cache_count(api_port, "bypasses")?)
    };
    let not_hits_before = not_hits()?;

    println!(
        "GET of one order of {} bytes, {CACHED_ORDERS} cached, 64 connections, wrk, in turn:",
        body.len()
    );
    print_load_average();
    println!(
        "round   nginx req/s    api req/s   ratio   nginx p50   nginx p99     api p50     api p99"
    );
    let mut ratios = Vec::new();
    for round in 1..=rounds {
        let (nginx, api) = in_turn(round, || load(nginx_port, &path), || load(api_port, &path))?;
        let ratio = api.requests_per_second / nginx.requests_per_second;
        println!(
            "{round:>5} {:>13.0} {:>12.0} {ratio:>7.2} {:>11} {:>11} {:>11} {:>11}",
            nginx.requests_per_second,
            api.requests_per_second,
            nginx.p50,
            nginx.p99,
            api.p50,
            api.p99
        );
        ratios.push(ratio);
    }
    print_load_average();
    ensure!(
        not_hits()? == not_hits_before,
        "not only cache hits were measured"
    );
    println!(
        "median ratio {:.2}, peak RSS of the api {:.0} MiB",
        median(&mut ratios),
        usage::peak_memory_mib(service.pid())?
    );
    Ok(())
}

fn store(connection: &mut PgConnection, made: &[Order]) -> anyhow::Result<()> {
    for chunk in made.chunks(1_000) {
        let rows: Vec<NewOrder<'_>> = chunk
            .iter()
            .map(|order| NewOrder::new(order, None))
            .collect();
        let items: Vec<NewOrderItem<'_>> = chunk.iter().flat_map(NewOrderItem::all_of).collect();
        diesel::copy_from(orders::table)
            .from_insertable(&rows)
            .execute(connection)?;
        diesel::copy_from(order_items::table)
            .from_insertable(&items)
            .execute(connection)?;
    }
    Ok(())
}

/// One of the counts of `GET /api/v1/cache/stats`.
fn cache_count(api_port: u16, name: &str) -> anyhow::Result<u64> {
    let (_, body) = get(api_port, "/api/v1/cache/stats")?;
    let stats: serde_json::Value = serde_json::from_str(&body)?;
    stats[name]
        .as_u64()
        .with_context(|| format!("no {name} in {body}"))
}

/// nginx; its workers outlive a master that is killed, so it is asked to stop.
struct Nginx {
    service: Service,
    configuration: String,
}

impl Nginx {
    /// Keep-alive, sendfile, open-file cache, no access log. `user` is for root alone, whose folders its workers could not
    /// read; others are told that it has no effect.
    fn start(folder: &Path, port: u16, path: &str, body: &str) -> anyhow::Result<Self> {
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

    fn wait_for_answer(&mut self, port: u16, path: &str) -> anyhow::Result<()> {
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

/// Head, in lower case, and body.
fn get(port: u16, path: &str) -> anyhow::Result<(String, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    Ok((head.to_ascii_lowercase(), body.to_owned()))
}

/// What wrk measured; the times are as it writes them.
struct Load {
    requests_per_second: f64,
    p50: String,
    p99: String,
}

fn load(port: u16, path: &str) -> anyhow::Result<Load> {
    let url = format!("http://127.0.0.1:{port}{path}");
    let output = Command::new("wrk")
        .args(["-t1", CONNECTIONS, "-d4s", "--latency", &url])
        .output();
    let output = output.context("cannot run wrk, install it (Debian: apt-get install wrk)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        bail!("not every request was answered well:\n{text}");
    }
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(name))
            .map(str::trim)
    };
    let needed = |name: &str| value(name).with_context(|| format!("wrk said: {text}"));
    Ok(Load {
        requests_per_second: needed("Requests/sec:")?.parse()?,
        p50: needed("50%")?.to_owned(),
        p99: needed("99%")?.to_owned(),
    })
}
