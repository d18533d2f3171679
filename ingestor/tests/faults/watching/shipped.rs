//! What is shipped for watching: rules, dashboards, and the commands of the runbook.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

/// A query of a panel.
#[derive(Debug)]
pub struct PanelQuery {
    /// The dashboard and the panel.
    pub place: String,
    /// The query as it is shipped, with Grafana's variables.
    pub query: String,
}

/// The shipped rules, for a time that runs `factor` times as fast: every window and every `for` is divided by it. No window gets
/// shorter than `shortest_window_s`, because the programs measure some things every five seconds. Nothing else is changed.
pub fn rules(factor: f64, shortest_window_s: f64) -> String {
    let shipped = read("deploy/prometheus/rules.yml");
    let lines = shipped.lines().map(|line| {
        if line.trim_start().starts_with('#') {
            return line.to_owned();
        }
        match line.split_once("for: ") {
            Some((indent, duration)) if indent.trim().is_empty() => {
                format!("{indent}for: {}", milliseconds(seconds(duration) / factor))
            }
            _ => with_windows(line, |window_s| (window_s / factor).max(shortest_window_s)),
        }
    });
    lines.map(|line| line + "\n").collect()
}

/// The queries of all panels of all dashboards.
pub fn panel_queries() -> Vec<PanelQuery> {
    let folder = path("deploy/grafana");
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut queries = Vec::new();
    for file in files.filter(|file| {
        file.extension()
            .is_some_and(|extension| extension == "json")
    }) {
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                queries.push(PanelQuery {
                    place: format!("{}: {}", dashboard["title"], panel["title"]),
                    query: target["expr"].as_str().unwrap().to_owned(),
                });
            }
        }
    }
    queries
}

/// The selectors of series in a query, such as `up{job="a"}`.
pub fn selectors(query: &str) -> Vec<String> {
    let is_name = |character: char| character.is_ascii_alphanumeric() || "_:".contains(character);
    let mut selectors = Vec::new();
    let mut rest = query;
    while let Some(start) = rest.find(is_name) {
        rest = &rest[start..];
        let length = rest
            .find(|character| !is_name(character))
            .unwrap_or(rest.len());
        let (name, after) = rest.split_at(length);
        rest = after;
        if !(name.starts_with("orders") || name == "up") {
            continue;
        }
        let mut labels = "";
        if after.starts_with('{') {
            let end = after.find('}').unwrap() + 1;
            (labels, rest) = after.split_at(end);
        }
        selectors.push(format!("{name}{labels}"));
    }
    selectors
}

/// The blocks of the runbook in a language, such as `sh`. Blocks that prepare or change something have another one.
pub fn runbook(language: &str) -> Vec<String> {
    let text = read("docs/RUNBOOK.md");
    let opening = format!("```{language}\n");
    let blocks = text.split(&opening).skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap().to_owned())
        .collect()
}

/// Rewrites the window of every range, such as `[5m]`.
fn with_windows(line: &str, change: impl Fn(f64) -> f64) -> String {
    let mut parts = line.split('[');
    let mut changed = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        changed.push('[');
        match part.split_once(']') {
            Some((window, after)) if window.starts_with(|first: char| first.is_ascii_digit()) => {
                changed.push_str(&milliseconds(change(seconds(window))));
                changed.push(']');
                changed.push_str(after);
            }
            _ => changed.push_str(part),
        }
    }
    changed
}

/// The seconds of a duration with one unit, such as `5m`.
fn seconds(duration: &str) -> f64 {
    let (number, unit) = duration.split_at(duration.len() - 1);
    let unit_s = match unit {
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => panic!("{duration} has an unknown unit"),
    };
    number.parse::<f64>().unwrap() * unit_s
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.0}ms", seconds * 1_000.0)
}

fn read(file: &str) -> String {
    fs::read_to_string(path(file)).unwrap()
}

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(file)
}

#[test]
fn windows_and_waits_are_divided_and_nothing_else_is_changed() {
    let shipped = read("deploy/prometheus/rules.yml");
    assert_eq!(
        rules(1.0, 0.0).lines().count(),
        shipped.lines().count(),
        "a line is missing"
    );
    let line = "expr: rate(a{b=~\"[ab]\"}[5m]) + avg_over_time(c[3d])";
    let scaled = with_windows(line, |window_s| (window_s / 60.0).max(12.0));
    assert_eq!(
        scaled,
        "expr: rate(a{b=~\"[ab]\"}[12000ms]) + avg_over_time(c[4320000ms])"
    );
    assert!(rules(60.0, 12.0).contains("\n        for: 3000ms\n"));
}

#[test]
fn selectors_are_found_with_their_labels() {
    let query = "sum by (topic) (up{job=\"a\"}) or orders:lag:sum > 3 and rate(orders_api_x_total{a=\"b\"}[5m])";
    let found = [
        "up{job=\"a\"}",
        "orders:lag:sum",
        "orders_api_x_total{a=\"b\"}",
    ];
    assert_eq!(selectors(query), found);
}
