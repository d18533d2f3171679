//! `cargo xtask bench ingest|read`: release builds, private durable servers, and the benchmark of `load`.
//!
//! Figures are ratios to a rival in the same run; nothing is asserted about time.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::cargo::{cargo, target_folder};
use crate::process::{Launch, find_program};
use crate::stack::{self, Stack, StackFolder};
use crate::{packages, ports, progress};

/// Runs one benchmark; further arguments go to it.
pub fn run(which: &str, arguments: &[String]) -> Result<()> {
    match which {
        "ingest" => {}
        "read" => install_rivals()?,
        _ => bail!("bench ingest or bench read"),
    }
    let folder = StackFolder::take_own("bench")?;
    stack::install_packages()?;
    progress::step("building the release programs");
    // Apart from `load`, whose test helpers would else be compiled into the services.
    cargo("cargo build")
        .args(["build", "--release", "-p", "ingestor", "-p", "api"])
        .run()?;
    cargo("cargo build")
        .args(["build", "--release", "-p", "load"])
        .run()?;
    // Durable: a COMMIT that waits for no disk would flatter both.
    let servers = Stack::start(folder.path(), true)?;
    let program = |name: &str| target_folder(true).join(name).display().to_string();
    let load = Launch::new("load", program("load")).envs(&servers.env());
    let load = match which {
        "ingest" => load
            .args(["bench-ingest", "--ingestor"])
            .arg(program("ingestor")),
        "read" => {
            let files = folder.path().join("nginx");
            fs::create_dir_all(&files).context("cannot make a folder for nginx")?;
            load.args(["bench-read", "--api"])
                .arg(program("api"))
                .args(["--folder".into(), files.into_os_string()])
                .args(["--api-port".to_owned(), ports::free_port()?.to_string()])
                .args(["--nginx-port".to_owned(), ports::free_port()?.to_string()])
        }
        _ => bail!("bench ingest or bench read"),
    };
    load.args(arguments).run()
}

/// wrk is a plain command. nginx is not installed for anybody: its package starts a server that listens on every address.
fn install_rivals() -> Result<()> {
    if find_program("nginx").is_none() {
        bail!(
            "bench read needs nginx (Debian: apt-get install nginx-light, which also starts it as a service on port 80)"
        );
    }
    packages::ensure(&[packages::Purpose::Load])
}
