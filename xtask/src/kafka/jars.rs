//! Apache Kafka's jars: fetched by Maven once, cached by the contents of the pom.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::process::{Launch, find_program, is_running};
use crate::{fingerprint, packages, progress, project};

/// What pins the version.
const POM: &str = include_str!("../../kafka/pom.xml");

/// A folder of jars.
#[derive(Clone, Debug)]
pub struct Jars {
    folder: PathBuf,
}

impl Jars {
    /// Tuned to start fast: the first compiler tier only, and the smallest collector.
    pub(crate) const JAVA_OPTIONS: [&str; 5] = [
        "-Xmx768m",
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
    ];

    /// The cached jars if there are any.
    pub fn cached() -> Option<Self> {
        let folder = cache_folder();
        folder.is_dir().then_some(Self { folder })
    }

    /// The cached jars; fetches them first if there are none.
    pub fn fetch() -> Result<Self> {
        if !packages::java_is_new_enough() {
            bail!("there is no Java 17 or later, which Apache Kafka runs on");
        }
        if let Some(jars) = Self::cached() {
            return Ok(jars);
        }
        if find_program("mvn").is_none() {
            bail!("there is no Maven (mvn), which fetches Apache Kafka");
        }
        progress::step("fetching Apache Kafka's jars by Maven (54 MB, once)");
        let folder = cache_folder();
        let parent = folder.parent().unwrap_or(Path::new("."));
        // Under a name of its own first: what is interrupted half-way, or runs twice at once, never looks complete.
        remove_leftovers(parent);
        let partial = parent.join(format!("partial-{}", std::process::id()));
        fs::create_dir_all(&partial)
            .with_context(|| format!("cannot make {}", partial.display()))?;
        let fetched = run_maven(&partial);
        if fetched.is_ok() && !folder.is_dir() {
            fs::rename(&partial, &folder).ok();
        }
        fs::remove_dir_all(&partial).ok();
        fetched?;
        Self::cached().context("Maven has brought no jars")
    }

    /// A Java class of Kafka's, ready to be run.
    pub fn java(&self, class: &str) -> Launch {
        Launch::new(class.rsplit('.').next().unwrap_or(class), "java")
            .args(Self::JAVA_OPTIONS)
            .arg("-cp")
            .arg(self.class_path())
            .arg(class)
    }

    /// Java itself resolves the asterisk.
    pub fn class_path(&self) -> OsString {
        self.folder.join("*").into_os_string()
    }
}

fn cache_folder() -> PathBuf {
    project::stack_folder()
        .join("kafka")
        .join(format!("jars-{:016x}", fingerprint(POM.as_bytes())))
}

/// Removes what fetches have left that failed or were killed.
fn remove_leftovers(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix("partial-"))
            .and_then(|name| name.trim_end_matches(".log").parse().ok());
        if owner.is_some_and(|pid| !is_running(pid)) {
            fs::remove_dir_all(entry.path())
                .or_else(|_| fs::remove_file(entry.path()))
                .ok();
        }
    }
}

fn run_maven(folder: &Path) -> Result<()> {
    let mut output_folder = OsString::from("-DoutputDirectory=");
    output_folder.push(folder);
    let log = folder.with_extension("log");
    Launch::new("Maven", "mvn")
        .args(["--batch-mode", "--quiet", "--file"])
        .arg(project::root().join("xtask/kafka/pom.xml"))
        // A failed fetch of another day must not be remembered.
        .arg("--update-snapshots")
        .arg("dependency:copy-dependencies")
        .arg(output_folder)
        .log_to(&log)
        .run()?;
    fs::remove_file(&log).ok();
    Ok(())
}
