//! Schemathesis, a tool that nobody here wrote, holds the real program to `openapi.json`: requests made up from the
//! document, valid ones and broken ones, and chains of them along its links. `schemathesis.toml` and `hooks.py` beside
//! this file say where it is narrowed, and why.
//!
//! The same requests in every run. For longer ones, other ones, or one operation, `SCHEMATHESIS_ARGUMENTS` has further
//! arguments of `schemathesis run`: `--max-examples 2000 --seed 7`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use shared::testing::TestDatabase;

use crate::suite::support::program::Program;
use crate::suite::support::{generator, store};

/// What the suite's tests use too; an inline module, so that files below it are found.
#[path = "../suite"]
mod suite {
    #[allow(dead_code, unused_imports, reason = "some of it only the suite needs")]
    pub mod support;
}

/// Ids of the orders that are there; `schemathesis.toml` has requests use them.
const UIDS: &str = include_str!("uids.txt");

/// With a token, so that the tool sees whether anything can be changed without it.
#[tokio::test(flavor = "multi_thread")]
async fn one_process_keeps_what_the_document_promises() {
    let database = filled_database();
    let token = "a token of this test";
    let api = start(&database, &[("API_TOKEN", token)]).await;
    let header = format!("Authorization: Bearer {token}");
    let further = |command: &mut Command| {
        command.args(["--header", &header]).env("HAS_TOKEN", "1");
    };
    run("one", &api, further).await;
    must_be_among(&READS, &answers(&api).await);
    must_be_among(&WRITES, &answers(&api).await);
}

/// Each read goes to another process than the writes, as behind a balancer.
#[tokio::test(flavor = "multi_thread")]
async fn two_processes_keep_it_as_one_does() {
    let database = filled_database();
    let writer = start(&database, &[]).await;
    let reader = start(&database, &[]).await;
    let further = |command: &mut Command| {
        command.env("READER_URL", url(&reader));
    };
    run("two", &writer, further).await;
    let read = answers(&reader).await;
    must_be_among(&READS, &read);
    must_be_among(&WRITES, &answers(&writer).await);
    let writes: Vec<_> = read
        .iter()
        .filter(|answer| WRITES.contains(&answer.as_str()))
        .collect();
    assert!(writes.is_empty(), "the reader was written to: {writes:?}");
}

/// What a run has to meet, or it proves little.
const READS: [&str; 8] = [
    "GET order 200",
    "GET order 304",
    "GET order 404",
    "GET order 412",
    "HEAD order 200",
    "GET orders 200",
    "GET orders 400",
    "GET cache_stats 200",
];
const WRITES: [&str; 7] = [
    "PUT order 200",
    "PUT order 404",
    "PUT order 412",
    "PUT order 415",
    "PUT order 422",
    "DELETE order 204",
    "POST cache_warmup 200",
];

/// Unless other arguments have narrowed the run.
fn must_be_among(wanted: &[&str], seen: &BTreeSet<String>) {
    for answer in wanted.iter().filter(|_| arguments().is_empty()) {
        assert!(seen.contains(*answer), "{answer} was not seen: {seen:?}");
    }
}

/// Further ones, as whoever runs this wishes.
fn arguments() -> Vec<String> {
    let arguments = std::env::var("SCHEMATHESIS_ARGUMENTS").unwrap_or_default();
    arguments.split_whitespace().map(str::to_owned).collect()
}

fn filled_database() -> TestDatabase {
    let database = TestDatabase::create();
    let mut generator = generator();
    for uid in UIDS.lines().map(|line| line.trim_matches('"')) {
        store(&database, &generator.order_with_uid(uid));
    }
    database
}

async fn start(database: &TestDatabase, settings: &[(&str, &str)]) -> Program {
    Program::start(database, &[&[("RUST_LOG", "warn")], settings].concat()).await
}

fn url(program: &Program) -> String {
    format!("http://localhost:{}", program.port)
}

/// The methods, routes and statuses that a process has answered, by its own count.
async fn answers(api: &Program) -> BTreeSet<String> {
    let metrics = api
        .send("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await;
    let counts = metrics
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("orders_api_http_requests_total{"));
    counts
        .map(|labels| {
            let values: Vec<&str> = labels.split('"').skip(1).step_by(2).collect();
            values.join(" ")
        })
        .collect()
}

async fn run(name: &str, api: &Program, further: impl FnOnce(&mut Command)) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("schemathesis-run-{name}"));
    std::fs::create_dir_all(&folder).unwrap();
    let api_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = api_folder.join("tests/schemathesis");
    let mut command = Command::new(&*TOOL);
    command
        .arg("--config-file")
        .arg(here.join("schemathesis.toml"))
        .args(["run", "--url", &url(api)])
        .arg(api_folder.join("openapi.json"))
        .args(arguments())
        // What it leaves behind is out of the way.
        .current_dir(folder)
        // Where `hooks.py` is.
        .env("PYTHONPATH", here)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    further(&mut command);
    let ended = tokio::task::spawn_blocking(move || command.output());
    let output = ended.await.unwrap().unwrap();
    // All that it found; shown when this test fails.
    println!("{}", String::from_utf8_lossy(&output.stdout));
    println!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "schemathesis: {}", output.status);
}

/// The program, installed into the target folder when it is missing or another version is wanted.
static TOOL: LazyLock<PathBuf> = LazyLock::new(|| {
    let wanted = include_str!("requirements.txt");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("schemathesis");
    let installed = folder.join("requirements.txt");
    if std::fs::read_to_string(&installed).is_ok_and(|text| text == wanted) {
        return folder.join("bin/schemathesis");
    }
    let requirements =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemathesis/requirements.txt");
    must_run(
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&folder),
        "Python 3.11 or later with venv is needed (Debian: python3-venv)",
    );
    must_run(
        Command::new(folder.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check"])
            .args(["--require-hashes", "--requirement"])
            .arg(requirements),
        "Python's package index must be within reach, once",
    );
    std::fs::write(installed, wanted).unwrap();
    folder.join("bin/schemathesis")
});

fn must_run(command: &mut Command, need: &str) {
    let status = command.status();
    assert!(
        status.as_ref().is_ok_and(|status| status.success()),
        "{command:?}: {status:?}; {need}"
    );
}
