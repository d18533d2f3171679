//! Builds a client from `openapi.json` and lets it work with the real program. `openapi-typescript`, an independent tool, generates
//! the types. `client.ts` makes the calls of a small front end; it must compile under `tsc --strict`, and its calls must succeed.
//! So what the description says is enough to build a front end on.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use shared::testing::TestDatabase;

use crate::suite::support::program::Program;
use crate::suite::support::{generator, store};

/// The helpers of the suite. The module is inline, so that the files below it are found.
#[path = "../suite"]
mod suite {
    #[allow(dead_code, unused_imports, reason = "only the suite needs some of it")]
    pub mod support;
}

const NEED: &str = "Node.js 18 or later with npm is needed (Debian: nodejs and npm), and npm's registry must be reachable";
const TOKEN: &str = "a-token-of-this-test";

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_generated_from_the_description_compiles_and_works() {
    let folder = tokio::task::spawn_blocking(built_client);
    let database = TestDatabase::create();
    let mut orders = generator();
    for number in 1..=5 {
        store(&database, &orders.order_with_uid(&format!("uid-{number}")));
    }
    let api = Program::start(&database, &[("API_TOKEN", TOKEN)]).await;
    let folder = folder.await.unwrap();
    let mut client = Command::new("node");
    client
        .arg("client.js")
        .current_dir(folder)
        .env("API_URL", format!("http://localhost:{}", api.port))
        .env("API_TOKEN", TOKEN);
    tokio::task::spawn_blocking(move || must_run(&mut client, "the calls must succeed"))
        .await
        .unwrap();
}

/// Returns the folder of the compiled client.
fn built_client() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/typescript");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("typescript");
    install_tools(&here, &folder);
    for file in ["tsconfig.json", "client.ts"] {
        fs::copy(here.join(file), folder.join(file)).unwrap();
    }
    let description = here.join("../../openapi.json");
    let mut generate = tool(&folder, "openapi-typescript");
    generate
        .arg(description)
        .args(["--output", "schema.d.ts"])
        // Only requests have defaults here, and may leave such a member out.
        .args(["--default-non-nullable", "false"]);
    must_run(&mut generate, NEED);
    must_run(&mut tool(&folder, "tsc"), "the client must compile");
    folder
}

/// Installs the tools into the target folder if they are missing or have other versions.
fn install_tools(here: &Path, folder: &Path) {
    let lock = "package-lock.json";
    let wanted = fs::read_to_string(here.join(lock)).unwrap();
    let installed = folder.join("node_modules").join(lock);
    if fs::read_to_string(&installed).is_ok_and(|text| text == wanted) {
        return;
    }
    fs::create_dir_all(folder).unwrap();
    for file in ["package.json", lock] {
        fs::copy(here.join(file), folder.join(file)).unwrap();
    }
    let mut install = Command::new("npm");
    install
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
        .current_dir(folder);
    must_run(&mut install, NEED);
    fs::write(installed, wanted).unwrap();
}

fn tool(folder: &Path, name: &str) -> Command {
    let mut command = Command::new(folder.join("node_modules/.bin").join(name));
    command.current_dir(folder);
    command
}

/// Runs a command, and shows what it printed if it fails.
fn must_run(command: &mut Command, need: &str) {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}; {need}"));
    assert!(
        output.status.success(),
        "{command:?}: {}; {need}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
