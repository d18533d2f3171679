//! How many cache hits a second the api answers, beside nginx answering the same bytes from a file.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use diesel::prelude::*;
use shared::db::models::{NewOrder, NewOrderItem};
use shared::db::schema::{order_items, orders};
use shared::order::Order;
use shared::testing::{OrderGenerator, TestDatabase};

use super::{Service, median, wait_for};

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
    let service = Service::start(
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
    wait_for("the api answers from its cache", || {
        Ok(get(api_port, &path).is_ok_and(|(head, _)| head.contains("orders; hit")))
    })?;
    let (_, body) = get(api_port, &path)?;
    let _nginx = start_nginx(folder, nginx_port, &path, &body)?;
    wait_for("nginx answers the same bytes", || {
        Ok(get(nginx_port, &path).is_ok_and(|(_, same)| same == body))
    })?;

    println!(
        "GET of one order of {} bytes, {CACHED_ORDERS} cached, 64 connections, wrk, in turn:",
        body.len()
    );
    println!("round   nginx req/s    api req/s   ratio   nginx p99   api p99");
    let mut ratios = Vec::new();
    for round in 1..=rounds {
        let (nginx, nginx_p99) = load(nginx_port, &path)?;
        let (hit, hit_p99) = load(api_port, &path)?;
        println!(
            "{round:>5} {nginx:>13.0} {hit:>12.0} {:>7.2} {nginx_p99:>11} {hit_p99:>9}",
            hit / nginx
        );
        ratios.push(hit / nginx);
    }
    println!(
        "median ratio {:.2}, peak RSS of the api {:.0} MiB",
        median(&mut ratios),
        service.usage()?.1
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

/// nginx as it is recommended for static files: keep-alive, sendfile, open-file cache, no access log. `user` is for root
/// alone, whose folders its workers could not read; others are told that it has no effect.
fn start_nginx(folder: &Path, port: u16, path: &str, body: &str) -> anyhow::Result<Service> {
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
    Service::start("nginx", &["-c", &file.display().to_string()], &[])
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

/// Requests a second, and the 99th percentile of the answers' time as wrk writes it.
fn load(port: u16, path: &str) -> anyhow::Result<(f64, String)> {
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
    let rate = value("Requests/sec:")
        .with_context(|| format!("wrk said: {text}"))?
        .parse()?;
    Ok((rate, value("99%").unwrap_or("?").to_owned()))
}
