//! Single requests, and load from wrk.

use anyhow::{Context as _, bail, ensure};

use crate::benchmarks::services::generator;

/// Returns the answer to a GET, which must be 200.
pub(super) fn get(port: u16, path: &str) -> anyhow::Result<minreq::Response> {
    send(minreq::get(url(port, path)))
}

/// Returns the answer to a POST, which must be 200.
pub(super) fn post(port: u16, path: &str) -> anyhow::Result<minreq::Response> {
    send(minreq::post(url(port, path)))
}

fn send(request: minreq::Request) -> anyhow::Result<minreq::Response> {
    let response = request.send()?;
    ensure!(
        response.status_code == 200,
        "{} from {}",
        response.status_code,
        response.url
    );
    Ok(response)
}

fn url(port: u16, path: &str) -> String {
    format!("http://127.0.0.1:{port}{path}")
}

/// What a load generator has measured. Times are in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) per_second: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

/// Requests one path over connections that are kept open, for 4 seconds.
pub(super) fn load(port: u16, path: &str, connections: u32) -> anyhow::Result<Load> {
    wrk(&[], &url(port, path), connections)
}

/// Requests paths that a Lua script makes, over connections that are kept open, for 4 seconds.
pub(super) fn load_by_script(port: u16, script: &str, connections: u32) -> anyhow::Result<Load> {
    wrk(&["-s", script], &url(port, ""), connections)
}

fn wrk(script: &[&str], url: &str, connections: u32) -> anyhow::Result<Load> {
    let text = generator("wrk")
        .args(["-t1", &format!("-c{connections}"), "-d4s", "--latency"])
        .args(script)
        .arg(url)
        .output_of("")
        .context("cannot run wrk (Debian: apt-get install wrk)")?;
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        bail!("some requests failed:\n{text}");
    }
    let value = |name: &str| {
        let mut lines = text.lines();
        let found = lines.find_map(|line| line.trim().strip_prefix(name));
        found
            .map(str::trim)
            .with_context(|| format!("wrk printed no {name}: {text}"))
    };
    Ok(Load {
        per_second: value("Requests/sec:")?.parse()?,
        p50_ms: milliseconds(value("50%")?)?,
        p99_ms: milliseconds(value("99%")?)?,
    })
}

/// Parses a time of wrk, such as `783.00us`, `1.14ms` or `2.00s`.
fn milliseconds(text: &str) -> anyhow::Result<f64> {
    for (unit, factor) in [("us", 0.001), ("ms", 1.0), ("s", 1000.0)] {
        if let Some(Ok(value)) = text.strip_suffix(unit).map(str::parse::<f64>) {
            return Ok(value * factor);
        }
    }
    bail!("{text} is not a time")
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
