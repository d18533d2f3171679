//! `Accept: application/x-ndjson`: all orders as a stream.

use std::time::Duration;

use shared::config::ShutdownSettings;
use shared::testing::{TestDatabase, eventually};

use crate::support::copies::{copy, store_copies};
use crate::support::download::{self, Cut, Download};
use crate::support::{PATIENCE, TOKEN, TestApi, generator, model};

const PATH: &str = "/api/v1/orders";
const NDJSON: (&str, &str) = ("Accept", "application/x-ndjson");
/// So many orders that the buffers on the way cannot hold all of them.
const MANY: i64 = 60;
const MANY_ITEMS: i32 = 1000;

async fn sessions(api: &TestApi) -> i64 {
    api.database.integer(
        "SELECT count(*) AS value FROM pg_stat_activity WHERE datname = current_database() \
         AND application_name = 'orders-api-export'",
    )
}

async fn outcome_is_counted(api: &TestApi, outcome: &str) {
    let counted = format!("orders_api_exports_total{{outcome=\"{outcome}\"}} 1\n");
    eventually(&format!("{outcome} is counted"), PATIENCE, async || {
        let metrics = api.get("/metrics").await.body;
        metrics.contains(&counted) && metrics.contains("orders_api_exports_in_progress 0\n")
    })
    .await;
    eventually("the session has ended", PATIENCE, async || {
        sessions(api).await == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_matching_orders_come_one_per_line_newest_first() {
    let api = TestApi::start().await;
    // Several pages, and then large orders, few of which fill a page.
    store_copies(&api.database, 700, 2);
    let mut large = copy(701, 1000);
    for number in 701..=703 {
        large.order_uid = format!("large-{number}").parse().unwrap();
        large.date_created -= chrono::TimeDelta::seconds(number);
        api.store(&large).await;
    }
    let download = Download::start_wide(api.port, PATH).await;
    assert_eq!(download.status(), 200);
    let head = download.head.to_ascii_lowercase();
    for line in [
        "content-type: application/x-ndjson\r\n",
        "transfer-encoding: chunked\r\n",
        "cache-control: private, no-cache\r\n",
        "vary: accept\r\n",
    ] {
        assert!(head.contains(line), "{line} not in {head}");
    }
    let lines = download.lines().await.unwrap();
    let newest_first = api
        .database
        .texts("SELECT order_uid AS value FROM orders ORDER BY date_created DESC, order_uid DESC");
    assert_eq!(lines.len(), 704);
    for (line, uid) in lines.iter().zip(&newest_first) {
        let whole: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(whole["order_uid"].as_str(), Some(uid.as_str()));
    }
    assert_eq!(lines[0], serde_json::to_string(&model()).unwrap());
    for number in [1, 256, 257, 700] {
        let expected = serde_json::to_string(&copy(number, 2)).unwrap();
        assert_eq!(lines[number as usize], expected);
    }
    assert_eq!(lines[703], serde_json::to_string(&large).unwrap());
    outcome_is_counted(&api, "completed").await;

    let filtered = format!("{PATH}?customer_id=test&from=2021-11-26T06:22:09Z");
    let lines = Download::start(api.port, &filtered).await.lines().await;
    assert_eq!(lines.unwrap().len(), 11);
    let none = format!("{PATH}?customer_id=nobody");
    let lines = Download::start(api.port, &none).await.lines().await;
    assert_eq!(lines.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_client_gets_the_orders_of_the_moment_of_its_request() {
    let api = TestApi::start().await;
    store_copies(&api.database, MANY, MANY_ITEMS);
    let mut download = Download::start(api.port, PATH).await;
    download.next_chunk().await.unwrap().unwrap();
    // The server waits for this client, and has not read the rest yet.
    let read = |metrics: &str| {
        let line = metrics
            .lines()
            .find(|line| line.starts_with("orders_api_exported_orders_total "))
            .unwrap();
        line.rsplit(' ').next().unwrap().parse::<i64>().unwrap()
    };
    let mut before = -1;
    eventually("the server waits", PATIENCE, async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = read(&api.get("/metrics").await.body);
        std::mem::replace(&mut before, now) == now
    })
    .await;
    assert!(before < MANY, "{before} orders fit into the buffers");
    api.database
        .execute("DELETE FROM orders WHERE order_uid LIKE 'copy-%'");
    api.store(&generator().next_order()).await;
    let mut rest = 0;
    while let Some(chunk) = download.next_chunk().await.unwrap() {
        rest += chunk.iter().filter(|byte| **byte == b'\n').count();
    }
    assert!(rest > 0);
    let exported = read(&api.get("/metrics").await.body);
    assert_eq!(exported, MANY + 1, "one more is the model");
    assert_eq!(
        Download::start(api.port, PATH)
            .await
            .lines()
            .await
            .unwrap()
            .len(),
        2
    );
}

/// A client shows by each part that it reads. A whole page could take it longer than it may read nothing.
#[tokio::test(flavor = "multi_thread")]
async fn pages_come_in_parts_that_a_slow_client_reads_in_time() {
    let api = TestApi::start().await;
    store_copies(&api.database, 5, 1000);
    let mut download = Download::start_wide(api.port, PATH).await;
    let mut length = 0;
    while let Some(part) = download.next_chunk().await.unwrap() {
        assert!(part.len() <= 16 * 1024, "{}", part.len());
        length += part.len();
    }
    assert!(length > 256 * 1024, "{length}");
}

#[tokio::test(flavor = "multi_thread")]
async fn export_ends_when_its_client_leaves() {
    let api = TestApi::start().await;
    store_copies(&api.database, MANY, MANY_ITEMS);
    let mut download = Download::start(api.port, PATH).await;
    download.next_chunk().await.unwrap().unwrap();
    assert_eq!(sessions(&api).await, 1);
    drop(download);
    outcome_is_counted(&api, "client_left").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failure_in_the_middle_cuts_the_answer() {
    let api = TestApi::start().await;
    store_copies(&api.database, MANY, MANY_ITEMS);
    let mut download = Download::start(api.port, PATH).await;
    download.next_chunk().await.unwrap().unwrap();
    api.database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
         AND application_name = 'orders-api-export'",
    );
    assert_eq!(download.lines().await, Err(Cut));
    outcome_is_counted(&api, "failed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_cuts_exports_and_does_not_wait_for_them() {
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.shutdown = ShutdownSettings::new(Duration::from_secs(60));
    })
    .await;
    store_copies(&api.database, MANY, MANY_ITEMS);
    let mut download = Download::start(api.port, PATH).await;
    download.next_chunk().await.unwrap().unwrap();
    let cut = async { assert_eq!(download.lines().await, Err(Cut)) };
    let stopped = async {
        api.shutdown.cancel();
        cut.await;
        api.stop().await;
    };
    tokio::time::timeout(PATIENCE, stopped).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_are_limited_and_leave_connections_to_other_reads() {
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.pool.size = 1;
        // Enough for a new connection to a busy server.
        config.pool.wait = Duration::from_secs(1);
    })
    .await;
    store_copies(&api.database, MANY, MANY_ITEMS);
    let mut running = Vec::new();
    for address in [2, 2, 3, 3] {
        let address = [127, 0, 0, address];
        let mut download =
            Download::start_from_with(address, api.port, PATH, download::NDJSON).await;
        download.next_chunk().await.unwrap().unwrap();
        running.push(download);
        if running.len() == 2 {
            let refused =
                Download::start_from_with(address, api.port, PATH, download::NDJSON).await;
            assert_eq!(refused.status(), 503, "the share of this address");
            let refused = String::from_utf8(refused.bytes().await.unwrap()).unwrap();
            assert!(refused.contains("two exports under way"), "{refused}");
        }
    }
    let refused = api.send("GET", PATH, &[NDJSON], b"").await;
    assert_eq!(refused.problem(), (503, "overloaded".into()));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(refused.body.contains("four places"), "{}", refused.body);
    assert_eq!(api.get(PATH).await.status, 200);
    assert_eq!(api.get("/order/copy-1").await.status, 200);
    running.pop();
    eventually("there is room again", PATIENCE, async || {
        Download::start(api.port, PATH).await.status() == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn accept_chooses_between_a_page_and_the_whole_list() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    for (accept, content_type) in [
        ("application/x-ndjson", "application/x-ndjson"),
        ("Application/X-NDJSON", "application/x-ndjson"),
        ("application/x-ndjson, */*", "application/x-ndjson"),
        (
            "application/x-ndjson;q=0.5, */*;q=0.1",
            "application/x-ndjson",
        ),
        (
            "application/x-ndjson, application/json;q=0.9",
            "application/x-ndjson",
        ),
        ("application/json;q=0, */*", "application/x-ndjson"),
        ("application/x-ndjson, application/json", "application/json"),
        (
            "application/x-ndjson;q=0.9, application/json",
            "application/json",
        ),
        ("application/x-ndjson;q=0, */*;q=0.1", "application/json"),
        ("application/*", "application/json"),
        ("*/*", "application/json"),
    ] {
        for method in ["GET", "HEAD"] {
            let answer = api.send(method, PATH, &[("Accept", accept)], b"").await;
            assert_eq!(
                (answer.status, answer.header("content-type")),
                (200, Some(content_type)),
                "{method} {accept}"
            );
            assert_eq!(answer.header("vary"), Some("Accept"));
            assert_eq!(answer.body.is_empty(), method == "HEAD");
        }
    }
    for accept in [
        "application/x-ndjson;q=0",
        "application/x-ndjson;q=-1",
        "application/x-ndjson;q=nan",
        "application/ndjson",
    ] {
        let answer = api.send("GET", PATH, &[("Accept", accept)], b"").await;
        assert_eq!(answer.problem(), (406, "not_acceptable".into()), "{accept}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_list_takes_no_parameters_of_pages() {
    let api = TestApi::start().await;
    for (query, code) in [
        ("limit=10", "invalid_parameter"),
        ("limit=0", "invalid_limit"),
        ("cursor=abc", "invalid_cursor"),
        ("page=1", "unknown_parameter"),
        ("from=yesterday", "invalid_parameter"),
    ] {
        let path = format!("{PATH}?{query}");
        let answer = api.send("GET", &path, &[NDJSON], b"").await;
        assert_eq!(answer.problem(), (400, code.into()), "{query}");
        let (name, _) = query.split_once('=').unwrap();
        assert!(answer.json()["detail"].as_str().unwrap().contains(name));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_gets_only_pages_because_it_cannot_recognise_a_cut_answer() {
    let api = TestApi::start_with_token().await;
    for (accept, is_page) in [
        ("application/x-ndjson", false),
        ("application/x-ndjson, */*;q=0.1", false),
        ("*/*", true),
        ("application/json, application/x-ndjson", true),
    ] {
        let request = format!(
            "GET {PATH} HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\
             Accept: {accept}\r\n\r\n"
        );
        let answer = api.send_bytes(request.as_bytes()).await;
        if is_page {
            assert!(answer.json()["orders"].is_array(), "{accept}");
        } else {
            assert_eq!(answer.problem(), (406, "not_acceptable".into()), "{accept}");
            assert!(answer.body.contains("HTTP/1.1"), "{}", answer.body);
        }
    }
}
