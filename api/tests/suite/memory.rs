//! The memory of the process stays within the limit of `docker-compose.yaml`, whatever clients ask for and leave unread.

use std::fs;

use futures_util::future::join_all;
use regex::Regex;
use shared::testing::{TestDatabase, eventually};

use crate::support::copies::store_copies;
use crate::support::download::Download;
use crate::support::program::Program;
use crate::support::{PATIENCE, ask_on, connect_from};

const MIB: u64 = 1024 * 1024;
/// The size of the cache by default, and in this test, which would otherwise have to fill the larger one.
const DEFAULT_CACHE_MIB: u64 = 256;
const CACHE_MIB: u64 = 32;
/// Orders of the largest kind: about 200 kB each. They fill the cache twice.
const ORDERS: i64 = 300;
const ITEMS: i32 = 1000;
const PAGE: &str = "/api/v1/orders?limit=1000";

/// The limit of the api's container, less the part of the cache that this test does not have.
fn limit_bytes() -> u64 {
    let compose = include_str!("../../../docker-compose.yaml");
    let (_, api) = compose.split_once("\n  api:\n").unwrap();
    let limit = Regex::new(r"\n    mem_limit: (\d+)m\n").unwrap();
    let limit: u64 = limit.captures(api).unwrap()[1].parse().unwrap();
    (limit - DEFAULT_CACHE_MIB + CACHE_MIB) * MIB
}

/// The most memory that the process has had at a time.
fn peak_bytes(program: &Program) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", program.process.id())).unwrap();
    let peak = Regex::new(r"VmHWM:\s*(\d+) kB").unwrap();
    peak.captures(&status).unwrap()[1].parse::<u64>().unwrap() * 1024
}

async fn metric(program: &Program, name: &str) -> u64 {
    let metrics = program.get("/metrics").await.body;
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value
        .unwrap_or_else(|| panic!("{name} is missing"))
        .parse()
        .unwrap()
}

/// Asks from one of eight addresses. Returns `None` if the server has no memory for the answer. On a busy machine the database
/// may be too slow as well.
async fn ask(program: &Program, number: u8, path: &str) -> Option<Download> {
    let source = [127, 0, 0, 2 + number % 8];
    let download = Download::start_from(source, program.port, path).await;
    if download.status() == 200 {
        return Some(download);
    }
    let head = download.head.as_str();
    match download.status() {
        503 => assert!(head.contains("\r\nretry-after: "), "{head}"),
        status => assert_eq!(status, 504, "{head}"),
    }
    None
}

async fn start() -> (TestDatabase, Program) {
    let database = TestDatabase::create();
    store_copies(&database, ORDERS, ITEMS);
    let cache = CACHE_MIB.to_string();
    let settings = [("CACHE_CAPACITY_MB", &*cache), ("CACHE_WARMUP", "10000")];
    let program = Program::start(&database, &settings).await;
    let warm_up =
        "POST /api/v1/cache/warmup HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    eventually("the cache is warm", PATIENCE, async || {
        program.send(warm_up).await.status == 200
    })
    .await;
    let weight = metric(&program, "orders_api_cache_weight_bytes").await;
    let is_full = ((CACHE_MIB - 1) * MIB..=CACHE_MIB * MIB).contains(&weight);
    assert!(is_full, "{weight}");
    (database, program)
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_the_largest_pages_leave_the_process_within_its_limit() {
    let (_database, program) = start().await;
    let with_a_full_cache = peak_bytes(&program) / MIB;
    // These read nothing but the head. They come in waves, because the database is not what is to be tested.
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.extend(join_all((0..8).map(|number| ask(&program, number, PAGE))).await);
    }
    let held = metric(&program, "orders_api_answer_memory_bytes").await;
    let limit = metric(&program, "orders_api_answer_memory_limit_bytes").await;
    assert!(20 * MIB < held && held <= limit, "{held}");
    // Meanwhile, others read pages and orders, as far as there is memory.
    let reading = (0..16).map(|number| {
        let program = &program;
        async move {
            let page = ask(program, number, PAGE).await;
            let order = ask(program, number, &format!("/order/copy-{}", number + 1)).await;
            let is_read = page.is_some();
            for download in [page, order].into_iter().flatten() {
                assert!(download.bytes().await.unwrap().len() > 200_000);
            }
            usize::from(is_read)
        }
    });
    let pages: usize = join_all(reading).await.into_iter().sum();
    assert_eq!(program.get("/livez").await.status, 200);
    let peak = peak_bytes(&program);
    println!(
        "{with_a_full_cache} MiB with a full cache; then {} MiB at most: {} pages unread ({} MiB), {pages} pages read",
        peak / MIB,
        silent.iter().flatten().count(),
        held / MIB,
    );
    assert!(
        peak < limit_bytes(),
        "{} MiB of {}",
        peak / MIB,
        limit_bytes() / MIB
    );
    drop(silent);
    eventually("nothing is held any more", PATIENCE, async || {
        metric(&program, "orders_api_answer_memory_bytes").await == 0
    })
    .await;
    assert_eq!(program.get(PAGE).await.status, 200);
}

/// An answer keeps its memory until it is read, although the order has left the cache.
#[tokio::test(flavor = "multi_thread")]
async fn readers_of_orders_that_leave_the_cache_do_so_too() {
    let (_database, program) = start().await;
    let before = peak_bytes(&program);
    let mut silent = Vec::new();
    for number in 0..250_u8 {
        let path = format!("/order/copy-{}", number + 1);
        silent.push(ask(&program, number, &path).await);
    }
    let held = metric(&program, "orders_api_answer_memory_bytes").await;
    let peak = peak_bytes(&program);
    println!(
        "{} MiB, before: {}; {} MiB held",
        peak / MIB,
        before / MIB,
        held / MIB
    );
    assert!(peak < limit_bytes(), "{} MiB", peak / MIB);
}

/// What was sent keeps nothing: neither our copy of it nor hyper's.
#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_keep_nothing_of_their_answers() {
    let (_database, program) = start().await;
    let mut idle = Vec::new();
    let before = peak_bytes(&program);
    for number in 0..600 {
        let mut stream = connect_from([127, 0, 0, 1], program.port).await;
        let path = format!("/order/copy-{}", number % 100 + 1);
        assert_eq!(ask_on(&mut stream, &path).await, 200);
        idle.push(stream);
    }
    let grown = peak_bytes(&program) - before;
    println!("{} MiB more for {} connections", grown / MIB, idle.len());
    assert!(grown < 60 * MIB, "{} MiB", grown / MIB);
}
