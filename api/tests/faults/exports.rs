//! Long exports, and clients that read nothing.

use std::time::{Duration, Instant};

use shared::testing::{TestDatabase, eventually};

use crate::support::copies::{copy, store_copies};
use crate::support::download::{Cut, Download};
use crate::support::program::Program;
use crate::support::{PATIENCE, TestApi, model};

const PATH: &str = "/api/v1/orders";
const ORDERS: i64 = 1_000_000;
/// Room for three pages, a session and what the allocator keeps. The orders together have 1.4 GB.
const MOST_GROWTH_BYTES: u64 = 20 * 1024 * 1024;

pub fn resident_bytes(program: &Program) -> u64 {
    let mib = servers::proc::memory_mib(program.process.id()).unwrap();
    (mib * 1024.0 * 1024.0) as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_orders_are_exported_whole_in_constant_memory() {
    let database = TestDatabase::create();
    store_copies(&database, ORDERS, 1);
    let program = Program::start(&database, &[("CACHE_WARMUP", "0")]).await;
    let before = resident_bytes(&program);
    let started = Instant::now();
    let mut download = Download::start_wide(program.port, PATH).await;
    assert_eq!(download.status(), 200);

    let (mut most, mut bytes, mut number) = (before, 0, 0);
    let mut part = Vec::new();
    while let Some(chunk) = download.next_chunk().await.unwrap() {
        bytes += chunk.len();
        part.extend_from_slice(&chunk);
        let whole_lines = part.iter().rposition(|byte| *byte == b'\n');
        let rest = part.split_off(whole_lines.map_or(0, |at| at + 1));
        for line in part.split_inclusive(|byte| *byte == b'\n') {
            // The newest order is the model itself.
            let order = if number == 0 {
                model()
            } else {
                copy(number, 1)
            };
            let mut expected = serde_json::to_vec(&order).unwrap();
            expected.push(b'\n');
            assert_eq!(line, expected, "line {number}");
            number += 1;
        }
        part = rest;
        most = most.max(resident_bytes(&program));
    }
    let duration = started.elapsed();
    let growth = most - before;
    println!(
        "{number} orders, {} MB in {:.1} s; resident {} kB before, at most {} kB more",
        bytes / 1_000_000,
        duration.as_secs_f64(),
        before / 1024,
        growth / 1024
    );
    assert!(part.is_empty());
    assert_eq!(number, ORDERS + 1);
    assert!(growth < MOST_GROWTH_BYTES, "grew by {growth} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_reads_nothing_loses_its_snapshot() {
    let api = TestApi::start().await;
    store_copies(&api.database, 60, 1000);
    let mut download = Download::start(api.port, PATH).await;
    download.next_chunk().await.unwrap().unwrap();
    let started = Instant::now();
    eventually("the export is cut", Duration::from_secs(40), async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let metrics = api.get("/metrics").await.body;
        metrics.contains("orders_api_exports_total{outcome=\"stalled\"} 1\n")
    })
    .await;
    assert!(started.elapsed() > Duration::from_secs(15));
    let sessions = "SELECT count(*) AS value FROM pg_stat_activity WHERE datname = current_database() \
                    AND application_name = 'orders-api-export'";
    eventually("its session has ended", PATIENCE, async || {
        api.database.integer(sessions) == 0
    })
    .await;
    assert_eq!(download.lines().await, Err(Cut));
}
