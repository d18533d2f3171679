//! A page of a stranger's site, whose name resolves to this machine, in Chromium (DNS rebinding).

use std::path::PathBuf;
use std::process::Command;

use servers::process::find_program;
use tokio::task::block_in_place;

use crate::support::{TestApi, model};

/// A folder for the browser, removed with the value.
struct Profile(PathBuf);

impl Drop for Profile {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Opens the page under a host name, which resolves to this machine, and returns what it has become after 4 seconds of its time.
fn page_at(host: &str, port: u16) -> String {
    let folder = format!("chromium-{}", uuid::Uuid::new_v4());
    let profile = Profile(std::env::temp_dir().join(folder));
    let output = Command::new(find_program("chromium").expect("chromium is not installed"))
        .args(["--headless", "--no-sandbox", "--disable-gpu"])
        .arg(format!("--user-data-dir={}", profile.0.display()))
        .arg(format!("--host-resolver-rules=MAP {host} 127.0.0.1"))
        .args(["--virtual-time-budget=4000", "--dump-dom"])
        .arg(format!("http://{host}:{port}/"))
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_a_stranger_that_leads_to_this_machine_shows_no_order() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let order = "b563feb7b2b84b6test";
    let own = block_in_place(|| page_at("localhost", api.port));
    assert!(own.contains(order), "{own}");
    let strange = block_in_place(|| page_at("evil.example", api.port));
    assert!(!strange.contains(order), "{strange}");
    assert!(strange.contains("ALLOWED_HOSTS"), "{strange}");
}
