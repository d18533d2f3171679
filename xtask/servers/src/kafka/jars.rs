//! Apache Kafka's jars. Maven fetches them once; they are cached under a name that depends on the contents of the pom.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::proc::is_running;
use crate::process::{Launch, find_program};
use crate::{progress, project};

/// Pins the version.
const POM: &str = include_str!("../../kafka/pom.xml");

/// The oldest Java that Apache Kafka 4 runs on.
const OLDEST_JAVA: u32 = 17;

/// A folder of jars.
#[derive(Clone, Debug)]
pub struct Jars {
    folder: PathBuf,
}

impl Jars {
    /// Options that make Java start fast: only the first tier of the compiler, and the smallest garbage collector.
    pub const JAVA_OPTIONS: [&str; 5] = [
        "-Xmx768m",
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
    ];

    /// Returns the cached jars; `None` if there are none.
    pub fn cached() -> Option<Self> {
        let folder = cache_folder();
        folder.is_dir().then_some(Self { folder })
    }

    /// Returns the cached jars. If there are none, it fetches them first.
    ///
    /// # Errors
    /// Fails if there is no Java or Maven, or if Maven cannot fetch the jars.
    pub fn fetch() -> Result<Self> {
        if !java_is_new_enough() {
            bail!(
                "Apache Kafka needs Java {OLDEST_JAVA} or later, which this machine does not have"
            );
        }
        if let Some(jars) = Self::cached() {
            return Ok(jars);
        }
        if find_program("mvn").is_none() {
            bail!("Maven (mvn) fetches Apache Kafka, and this machine does not have it");
        }
        progress::step("fetching Apache Kafka with Maven (54 MB, only once)");
        let folder = cache_folder();
        let parent = folder.parent().unwrap_or(Path::new("."));
        // The jars go to a folder with another name first. So a fetch that is interrupted, or runs twice, never looks complete.
        remove_leftovers(parent);
        let partial = parent.join(format!("partial-{}", std::process::id()));
        fs::create_dir_all(&partial)
            .with_context(|| format!("cannot create {}", partial.display()))?;
        let fetched = run_maven(&partial);
        if fetched.is_ok() && !folder.is_dir() {
            fs::rename(&partial, &folder).ok();
        }
        fs::remove_dir_all(&partial).ok();
        fetched?;
        Self::cached().context("Maven has fetched no jars")
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Prepares a run of one of Kafka's Java classes.
    pub fn java(&self, class: &str) -> Launch {
        Launch::new(class.rsplit('.').next().unwrap_or(class), "java")
            .args(Self::JAVA_OPTIONS)
            .arg("-cp")
            .arg(self.class_path())
            .arg(class)
    }

    /// Returns the class path. Java itself resolves its asterisk.
    pub fn class_path(&self) -> OsString {
        self.folder.join("*").into_os_string()
    }
}

fn cache_folder() -> PathBuf {
    project::stack_folder().join("kafka").join(format!(
        "jars-{:016x}",
        project::fingerprint(POM.as_bytes())
    ))
}

/// Removes what failed or killed fetches have left.
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
        .arg(project::root().join("xtask/servers/kafka/pom.xml"))
        // Maven must not remember that an earlier fetch has failed.
        .arg("--update-snapshots")
        .arg("dependency:copy-dependencies")
        .arg(output_folder)
        .log_to(&log)
        .run()?;
    fs::remove_file(&log).ok();
    Ok(())
}

/// Returns whether Apache Kafka can run on the `java` on the PATH.
pub fn java_is_new_enough() -> bool {
    let output = Command::new("java").arg("-version").output();
    output.is_ok_and(|output| {
        java_version(&String::from_utf8_lossy(&output.stderr)) >= Some(OLDEST_JAVA)
    })
}

/// Reads the major version from a line such as `openjdk version "17.0.15" 2025-04-15`. Java 8 calls itself 1.8, which is
/// too old whether it is read as 1 or as 8.
fn java_version(text: &str) -> Option<u32> {
    let version = text.split('"').nth(1)?;
    version.split(['.', '-', '+']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn java_versions_are_read() {
        assert_eq!(
            java_version("openjdk version \"17.0.15\" 2025-04-15\n"),
            Some(17)
        );
        assert_eq!(java_version("openjdk version \"21-ea\""), Some(21));
        assert_eq!(java_version("java version \"1.8.0_292\""), Some(1));
        assert_eq!(java_version("command not found"), None);
    }
}
