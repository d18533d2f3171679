//! What `/metrics` reports, and that `docs/OPERATIONS.md` lists the same metrics.

use std::collections::BTreeSet;

use diesel::connection::SimpleConnection;
use shared::config::DatabaseSettings;
use shared::testing::{TcpProxy, wait_until};

use crate::support::{Daemon, PATIENCE, Scene};

const OPERATIONS: &str = include_str!("../../../docs/OPERATIONS.md");

#[test]
fn the_exported_metrics_are_those_of_the_documentation() {
    let mut scene = Scene::new(1);
    scene.produce_orders(1);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(1);
    wait_until("every metric has a value", PATIENCE, || {
        sample(&daemon, "orders_ingestor_lag_seconds").is_some()
            && sample(&daemon, "orders_ingestor_notify_queue_usage_ratio").is_some()
    });
    let text = daemon.get("/metrics").unwrap().1;

    let documented: BTreeSet<String> = first_column("## Metrics of the ingestor")
        .iter()
        .map(|name| format!("orders_ingestor_{name}"))
        .collect();
    assert_eq!(exported_metrics(&text), documented);
    // Alerts must see the step from 0 to 1, so every label is there from the start.
    let reasons = label_values(&text, "orders_ingestor_dead_letters_total", "reason");
    assert_eq!(reasons, first_column("## Dead letters"));
    let classes = label_values(&text, "orders_ingestor_retries_total", "class");
    let row = OPERATIONS
        .lines()
        .find(|line| line.starts_with("| `retries_total{class}`"))
        .unwrap();
    let mut in_row = code_spans(row);
    in_row.remove("retries_total{class}");
    assert_eq!(classes, in_row);
}

#[test]
fn the_lag_of_a_halted_partition_grows_although_nothing_moves() {
    let mut scene = Scene::new(1);
    scene.produce_orders(10);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(10);
    assert!(daemon.stop().success());
    scene
        .database
        .execute("UPDATE consumer_offsets SET halted = true");
    scene.produce_orders(5);

    // This process has stored nothing itself.
    let daemon = scene.start_daemon();
    let mut seconds = 0.0;
    wait_until("the lag is measured", PATIENCE, || {
        seconds = sample(&daemon, "orders_ingestor_lag_seconds").unwrap_or_default();
        seconds > 0.0
    });
    let records = sample(&daemon, "orders_ingestor_lag_records").unwrap();
    assert!((records - 5.0).abs() < f64::EPSILON, "{records}");
    wait_until("the lag grows", PATIENCE, || {
        sample(&daemon, "orders_ingestor_lag_seconds").unwrap() > seconds + 1.0
    });
    let assigned = sample(&daemon, "orders_ingestor_assigned_partitions").unwrap();
    let paused = sample(&daemon, "orders_ingestor_paused_partitions").unwrap();
    let stopped = sample(&daemon, "orders_ingestor_stopped_partitions").unwrap();
    for (name, count) in [
        ("assigned", assigned),
        ("paused", paused),
        ("stopped", stopped),
    ] {
        assert!((count - 1.0).abs() < f64::EPSILON, "{name}: {count}");
    }
}

#[test]
fn a_listener_that_holds_a_transaction_open_shows_in_the_queue_of_notifications() {
    let scene = Scene::new(1);
    let mut listener = scene.database.connect();
    // Sent separately: statements sent together are one transaction, and LISTEN takes effect at its commit.
    for statement in ["LISTEN metrics_test", "BEGIN", "SELECT 1"] {
        listener.batch_execute(statement).unwrap();
    }
    // Fills some pages of the queue. The payloads differ, because equal ones are sent only once.
    scene.database.execute(
        "SELECT pg_notify('metrics_test', repeat('x', 7000) || row) FROM generate_series(1, 100) AS row",
    );
    let daemon = scene.start_daemon();
    wait_until("the queue's usage is measured", PATIENCE, || {
        sample(&daemon, "orders_ingestor_notify_queue_usage_ratio").is_some_and(|usage| usage > 0.0)
    });
    listener.batch_execute("ROLLBACK").unwrap();
}

#[test]
fn while_the_database_is_away_the_retries_and_the_lag_are_reported() {
    let mut scene = Scene::new(1);
    let DatabaseSettings { host, port, .. } = scene.database.settings();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let proxy = runtime.block_on(TcpProxy::start(&host, port));
    let daemon = scene.start_daemon_with(&[
        ("DB_HOST", "127.0.0.1"),
        ("DB_PORT", &proxy.port().to_string()),
    ]);
    scene.produce_orders(1);
    scene.wait_until_settled(1);
    proxy.cut();
    scene.produce_orders(3);
    let retries = |class: &str| {
        let text = daemon.get("/metrics").unwrap().1;
        let prefix = format!("orders_ingestor_retries_total{{class=\"{class}\"}} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&prefix));
        value.unwrap().parse::<u64>().unwrap()
    };
    wait_until("both kinds of trouble are counted", PATIENCE, || {
        retries("lost_connection") > 0 && retries("connect") > 0
    });
    assert_eq!((retries("query"), retries("kafka")), (0, 0));
    wait_until("the lag is told all the same", PATIENCE, || {
        sample(&daemon, "orders_ingestor_lag_records").is_some_and(|records| records >= 3.0)
            && sample(&daemon, "orders_ingestor_lag_seconds").is_some_and(|seconds| seconds > 0.0)
    });
}

/// Returns the value of a metric that has one series.
fn sample(daemon: &Daemon, name: &str) -> Option<f64> {
    let (_, text) = daemon.get("/metrics")?;
    let line = text
        .lines()
        .find(|line| line.split(['{', ' ']).next() == Some(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Returns the metrics' names as in queries, with their labels: `name{label,label}`. A histogram has the name of all its
/// series.
fn exported_metrics(text: &str) -> BTreeSet<String> {
    let described = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    described
        .map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            let sampled = match kind {
                "counter" => format!("{name}_total"),
                "info" => format!("{name}_info"),
                _ => name.to_owned(),
            };
            let prefix = format!("{sampled}{{");
            let labels = text.lines().find_map(|line| line.strip_prefix(&prefix));
            let labels = labels.map_or_else(String::new, |labels| {
                let names = labels
                    .split('}')
                    .next()
                    .unwrap()
                    .split(',')
                    .map(|label| label.split('=').next().unwrap());
                format!("{{{}}}", names.collect::<Vec<_>>().join(","))
            });
            sampled + &labels
        })
        .collect()
}

fn label_values(text: &str, name: &str, label: &str) -> BTreeSet<String> {
    let prefix = format!("{name}{{{label}=\"");
    text.lines()
        .filter_map(|line| line.strip_prefix(&prefix)?.split('"').next())
        .map(str::to_owned)
        .collect()
}

/// Returns what is marked as code in the first column of a section's tables.
fn first_column(heading: &str) -> BTreeSet<String> {
    let section = OPERATIONS.split(heading).nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    section
        .lines()
        .filter_map(|line| line.strip_prefix('|')?.split('|').next())
        .flat_map(code_spans)
        .collect()
}

fn code_spans(text: &str) -> BTreeSet<String> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}
