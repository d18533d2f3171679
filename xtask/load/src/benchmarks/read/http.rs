//! Asking by hand, and by wrk.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, bail, ensure};

use crate::benchmarks::{generator, output_of};

/// Head, in lower case, and body.
pub(super) fn get(port: u16, path: &str) -> anyhow::Result<(String, String)> {
    send(port, "GET", path)
}

/// The body of the answer.
pub(super) fn post(port: u16, path: &str) -> anyhow::Result<String> {
    Ok(send(port, "POST", path)?.1)
}

fn send(port: u16, method: &str, path: &str) -> anyhow::Result<(String, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    Ok((head.to_ascii_lowercase(), body.to_owned()))
}

/// What a load generator measured; times are in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) per_second: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

/// Asks for one path over connections that are kept open, for 4 seconds.
pub(super) fn load(port: u16, path: &str, connections: u32) -> anyhow::Result<Load> {
    wrk(&[], &format!("http://127.0.0.1:{port}{path}"), connections)
}

/// The same for paths that a Lua script makes.
pub(super) fn load_by_script(port: u16, script: &str, connections: u32) -> anyhow::Result<Load> {
    wrk(
        &["-s", script],
        &format!("http://127.0.0.1:{port}"),
        connections,
    )
}

fn wrk(script: &[&str], url: &str, connections: u32) -> anyhow::Result<Load> {
    let connections = format!("-c{connections}");
    let mut wrk = generator("wrk");
    wrk.args(["-t1", &connections, "-d4s", "--latency"])
        .args(script)
        .arg(url);
    let text = output_of(&mut wrk).context("cannot run wrk (Debian: apt-get install wrk)")?;
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        bail!("not every request was answered well:\n{text}");
    }
    let value = |name: &str| {
        let mut lines = text.lines();
        let found = lines.find_map(|line| line.trim().strip_prefix(name));
        found
            .map(str::trim)
            .with_context(|| format!("wrk said: {text}"))
    };
    Ok(Load {
        per_second: value("Requests/sec:")?.parse()?,
        p50_ms: milliseconds(value("50%")?)?,
        p99_ms: milliseconds(value("99%")?)?,
    })
}

/// As wrk writes times: `783.00us`, `1.14ms`, `2.00s`.
fn milliseconds(text: &str) -> anyhow::Result<f64> {
    for (unit, factor) in [("us", 0.001), ("ms", 1.0), ("s", 1000.0)] {
        if let Some(Ok(value)) = text.strip_suffix(unit).map(str::parse::<f64>) {
            return Ok(value * factor);
        }
    }
    bail!("no time: {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_wrk_are_understood() {
        let times = ["783.00us", "1.14ms", "2.00s"].map(|text| milliseconds(text).ok());
        assert_eq!(times, [Some(0.783), Some(1.14), Some(2000.0)]);
        assert!(milliseconds("1.00m").is_err());
    }
}
