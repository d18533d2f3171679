//! Checks the real program against `openapi.json` with the independent tool Schemathesis. The tool generates valid and invalid
//! requests from the document, and chains of requests along its links. `schemathesis.toml` and `hooks.py` beside this file
//! contain the exceptions and their reasons.
//!
//! Every run sends the same requests. `SCHEMATHESIS_ARGUMENTS` passes additional arguments to `schemathesis run`, for longer
//! runs or other requests: `--max-examples 2000 --seed 7`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use shared::testing::TestDatabase;

use crate::suite::support::program::Program;
use crate::suite::support::tokens::{TokenFile, bearer};
use crate::suite::support::{generator, store};

/// The helpers of the suite. The module is inline, so that the files below it are found.
#[path = "../suite"]
mod suite {
    #[allow(dead_code, unused_imports, reason = "only the suite needs some of it")]
    pub mod support;
}

/// The ids of the stored orders. `schemathesis.toml` makes requests use them.
const UIDS: &str = include_str!("uids.txt");

/// The server has a token, so that the tool notices if anything can be changed without it.
#[tokio::test(flavor = "multi_thread")]
async fn one_process_keeps_what_the_document_promises() {
    let database = filled_database();
    let token = "a-token-of-this-test";
    let api = start(&database, &[("API_TOKEN", token)]).await;
    let header = format!("Authorization: Bearer {token}");
    let further = |command: &mut Command| {
        command.args(["--header", &header]).env("HAS_TOKEN", "1");
    };
    run("one", &api, further).await;
    let answers = answers(&api, &header).await;
    must_be_among(&READS, &answers);
    must_be_among(&WRITES, &answers);
}

/// Whatever the tool tries, a token does only what its scope allows.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_one_scope_does_nothing_else() {
    let database = filled_database();
    let scopes = ["read", "write", "operate"];
    let file = TokenFile::new(&scopes.map(|scope| (scope, scope)));
    for scope in scopes {
        let settings = [("API_TOKENS_FILE", file.path.to_str().unwrap())];
        let api = start(&database, &settings).await;
        let header = format!("Authorization: {}", bearer(scope));
        let further = |command: &mut Command| {
            command.args([
                "--header",
                &header,
                "--phases",
                "fuzzing",
                "--max-examples",
                "10",
            ]);
            command.env("HAS_TOKEN", "1");
        };
        run(scope, &api, further).await;
        let operator = format!("Authorization: {}", bearer("operate"));
        let seen = answers(&api, &operator).await;
        let done = seen.iter().filter(|answer| answer.contains(" 2"));
        let done: Vec<_> = done.filter_map(|answer| scope_of(answer)).collect();
        assert!(done.iter().all(|each| *each == scope), "{scope}: {seen:?}");
        assert!(done.contains(&scope), "{scope}: {seen:?}");
    }
}

/// Returns the scope that a request needed; `None` if it needed none.
fn scope_of(answer: &str) -> Option<&'static str> {
    let (method, rest) = answer.split_once(' ')?;
    let route = rest.split(' ').next()?;
    match (method, route) {
        ("OPTIONS", _) | (_, "health" | "livez" | "readyz" | "page" | "none") => None,
        (_, "metrics" | "cache_warmup" | "cache") => Some("operate"),
        ("PUT" | "DELETE" | "PATCH", _) | ("POST", "orders") => Some("write"),
        _ => Some("read"),
    }
}

/// Reads and writes go to different processes, as behind a load balancer.
#[tokio::test(flavor = "multi_thread")]
async fn two_processes_keep_it_as_one_does() {
    let database = filled_database();
    let writer = start(&database, &[]).await;
    let reader = start(&database, &[]).await;
    let further = |command: &mut Command| {
        command.env("READER_URL", url(&reader));
    };
    run("two", &writer, further).await;
    let read = answers(&reader, NO_HEADER).await;
    must_be_among(&READS, &read);
    must_be_among(&WRITES, &answers(&writer, NO_HEADER).await);
    let writes: Vec<_> = read
        .iter()
        .filter(|answer| WRITES.contains(&answer.as_str()))
        .collect();
    assert!(writes.is_empty(), "the reader was written to: {writes:?}");
}

/// Stands for no further header.
const NO_HEADER: &str = "Accept: */*";

/// Answers that a run must have seen; otherwise it proves little.
const READS: [&str; 10] = [
    "GET order 200",
    "GET order 304",
    "GET order 404",
    "GET order 412",
    "HEAD order 200",
    "GET orders 200",
    "GET orders 400",
    "POST search 200",
    "POST search 400",
    "GET cache_stats 200",
];
const WRITES: [&str; 17] = [
    "POST orders 201",
    "POST orders 409",
    "POST orders 415",
    "POST orders 422",
    "PUT order 200",
    "PUT order 201",
    "PUT order 404",
    "PUT order 412",
    "PUT order 415",
    "PUT order 422",
    "PATCH order 200",
    "PATCH order 404",
    "PATCH order 412",
    "PATCH order 415",
    "PATCH order 422",
    "DELETE order 204",
    "POST cache_warmup 200",
];

/// Asserts that the answers were seen, unless additional arguments have narrowed the run.
fn must_be_among(wanted: &[&str], seen: &BTreeSet<String>) {
    for answer in wanted.iter().filter(|_| arguments().is_empty()) {
        assert!(seen.contains(*answer), "{answer} was not seen: {seen:?}");
    }
}

/// Additional arguments, set by whoever runs the test.
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

/// Returns the methods, routes and statuses that a process has answered, according to its metrics.
async fn answers(api: &Program, header: &str) -> BTreeSet<String> {
    let request = format!(
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\n{header}\r\nConnection: close\r\n\r\n"
    );
    let metrics = api.send(&request).await;
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
        // The tool leaves files in its working directory.
        .current_dir(folder)
        // The folder of `hooks.py`.
        .env("PYTHONPATH", here)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    further(&mut command);
    let ended = tokio::task::spawn_blocking(move || command.output());
    let output = ended.await.unwrap().unwrap();
    // Everything that the tool found. It is shown if this test fails.
    println!("{}", String::from_utf8_lossy(&output.stdout));
    println!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "schemathesis: {}", output.status);
}

/// The path of the tool. It is installed into the target folder if it is missing or has another version.
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
        "Python's package index must be reachable for the installation",
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
