//! What a bare machine lacks: found, and installed by apt-get where that is allowed; else said by name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use servers::kafka::{Jars, java_is_new_enough};
use servers::postgres::{find_binaries, find_pgbouncer};
use servers::process::{Launch, find_program};
use servers::{interrupt, progress};

/// What the commands of xtask need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Compiling the services.
    Build,
    /// A private PostgreSQL.
    Postgres,
    /// A private Apache Kafka.
    Kafka,
    /// The benchmark of reading.
    Load,
    /// The tests that take minutes.
    Faults,
    /// The tests that run schemathesis and curl.
    ApiTests,
}

/// Something that a purpose needs, and what the systems call it.
#[derive(Debug)]
struct Need {
    purpose: Purpose,
    what: &'static str,
    present: fn() -> bool,
    debian: &'static str,
    fedora: &'static str,
    arch: &'static str,
    brew: &'static str,
}

const NEEDS: [Need; 13] = [
    Need {
        purpose: Purpose::Build,
        what: "a C and a C++ compiler and make (librdkafka is built from source)",
        present: || ["cc", "c++", "make"].into_iter().all(is_on_path),
        debian: "build-essential",
        fedora: "gcc gcc-c++ make",
        arch: "base-devel",
        brew: "(xcode-select --install)",
    },
    Need {
        purpose: Purpose::Build,
        what: "pkg-config",
        present: || is_on_path("pkg-config"),
        debian: "pkg-config",
        fedora: "pkgconf-pkg-config",
        arch: "pkgconf",
        brew: "pkgconf",
    },
    Need {
        purpose: Purpose::Build,
        what: "OpenSSL's headers (TLS and SCRAM to Kafka)",
        present: || has_library("openssl"),
        debian: "libssl-dev",
        fedora: "openssl-devel",
        arch: "openssl",
        brew: "openssl@3",
    },
    Need {
        purpose: Purpose::Build,
        what: "zlib's headers (gzip in Kafka)",
        present: || has_library("zlib"),
        debian: "zlib1g-dev",
        fedora: "zlib-devel",
        arch: "zlib",
        brew: "zlib",
    },
    Need {
        purpose: Purpose::Build,
        what: "libpq's headers (diesel)",
        present: || has_library("libpq"),
        debian: "libpq-dev",
        fedora: "libpq-devel",
        arch: "postgresql-libs",
        brew: "libpq",
    },
    Need {
        purpose: Purpose::Postgres,
        what: "PostgreSQL's server binaries",
        present: || find_binaries().is_ok(),
        debian: "postgresql",
        fedora: "postgresql-server",
        arch: "postgresql",
        brew: "postgresql",
    },
    Need {
        purpose: Purpose::Postgres,
        what: "psql",
        present: || {
            is_on_path("psql") || find_binaries().is_ok_and(|bin| bin.join("psql").is_file())
        },
        debian: "postgresql-client",
        fedora: "postgresql",
        arch: "postgresql",
        brew: "postgresql",
    },
    Need {
        purpose: Purpose::Kafka,
        what: "Java 17 or later (Apache Kafka)",
        present: java_is_new_enough,
        debian: "default-jre-headless",
        fedora: "java-latest-openjdk-headless",
        arch: "jre-openjdk-headless",
        brew: "openjdk",
    },
    Need {
        purpose: Purpose::Kafka,
        what: "Maven (fetches Apache Kafka)",
        present: || is_on_path("mvn") || Jars::cached().is_some(),
        debian: "maven",
        fedora: "maven",
        arch: "maven",
        brew: "maven",
    },
    Need {
        purpose: Purpose::Load,
        what: "wrk (loads HTTP servers)",
        present: || is_on_path("wrk"),
        debian: "wrk",
        fedora: "wrk",
        arch: "wrk",
        brew: "wrk",
    },
    Need {
        purpose: Purpose::Faults,
        what: "PgBouncer (a pooler that a listener must not be misled by)",
        present: || find_pgbouncer().is_some(),
        debian: "pgbouncer",
        fedora: "pgbouncer",
        arch: "pgbouncer",
        brew: "pgbouncer",
    },
    Need {
        purpose: Purpose::ApiTests,
        what: "Python 3.11 or later with venv and pip (schemathesis tests the api)",
        present: python_makes_environments,
        debian: "python3-venv",
        fedora: "python3",
        arch: "python",
        brew: "python",
    },
    Need {
        purpose: Purpose::ApiTests,
        what: "curl (runs the examples of docs/API.md)",
        present: || is_on_path("curl"),
        debian: "curl",
        fedora: "curl",
        arch: "curl",
        brew: "curl",
    },
];

/// Installs what is missing for some purposes, or fails with what to install.
pub fn ensure(purposes: &[Purpose]) -> Result<()> {
    let lacking = missing(purposes);
    if lacking.is_empty() {
        return Ok(());
    }
    let Some(apt_get) = AptGet::find() else {
        bail!("{}", instructions(&lacking));
    };
    let packages = names(&lacking, |need| need.debian);
    progress::step(&format!(
        "installing what is missing by apt-get: {}",
        packages.join(" ")
    ));
    let installed = apt_get.install(&packages);
    interrupt::check()?;
    let lacking = missing(purposes);
    match installed {
        _ if lacking.is_empty() => Ok(()),
        Ok(()) => bail!(instructions(&lacking)),
        Err(error) => Err(error.context(instructions(&lacking))),
    }
}

/// As [`ensure`], but where only a real Kafka cannot be had, says so and goes on: there is a stand-in.
pub fn ensure_but_kafka_if_impossible(purposes: &[Purpose]) -> Result<()> {
    let Err(error) = ensure(purposes) else {
        return Ok(());
    };
    interrupt::check()?;
    let without_kafka: Vec<Purpose> = purposes
        .iter()
        .copied()
        .filter(|purpose| *purpose != Purpose::Kafka)
        .collect();
    if without_kafka.len() == purposes.len() || !missing(&without_kafka).is_empty() {
        return Err(error);
    }
    progress::say(&format!("{error:#}"));
    Ok(())
}

fn missing(purposes: &[Purpose]) -> Vec<&'static Need> {
    NEEDS
        .iter()
        .filter(|need| purposes.contains(&need.purpose) && !(need.present)())
        .collect()
}

/// What to install by hand, for every system that we know.
fn instructions(missing: &[&Need]) -> String {
    let mut text = "this machine lacks:\n".to_owned();
    for need in missing {
        text.push_str(&format!("  - {}\n", need.what));
    }
    text.push_str("install it and try again:\n");
    let systems: [(&str, PackageName); 4] = [
        ("Debian, Ubuntu:  sudo apt-get install", |need| need.debian),
        ("Fedora:          sudo dnf install", |need| need.fedora),
        ("Arch:            sudo pacman -S", |need| need.arch),
        ("macOS:           brew install", |need| need.brew),
    ];
    for (command, name) in systems {
        text.push_str(&format!("  {command} {}\n", names(missing, name).join(" ")));
    }
    text.trim_end().to_owned()
}

/// What some system calls the package of a need.
type PackageName = fn(&Need) -> &'static str;

fn names(needs: &[&Need], name: PackageName) -> Vec<&'static str> {
    let mut names = Vec::new();
    for need in needs {
        if !names.contains(&name(need)) {
            names.push(name(need));
        }
    }
    names
}

fn is_on_path(program: &str) -> bool {
    find_program(program).is_some()
}

/// Debian has the module `venv` without `ensurepip`, which it needs.
fn python_makes_environments() -> bool {
    let test = "import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))";
    let output = Command::new("python3").args(["-c", test]).output();
    output.is_ok_and(|output| output.status.success())
}

fn has_library(name: &str) -> bool {
    Command::new("pkg-config")
        .args(["--exists", name])
        .status()
        .is_ok_and(|status| status.success())
}

/// apt-get, run by root: by ourselves, or by a sudo that asks for no password.
#[derive(Debug)]
struct AptGet {
    by_sudo: bool,
}

impl AptGet {
    fn find() -> Option<Self> {
        find_program("apt-get")?;
        if rustix::process::geteuid().is_root() {
            return Some(Self { by_sudo: false });
        }
        let sudo_works = Command::new("sudo")
            .args(["-n", "true"])
            .output()
            .is_ok_and(|output| output.status.success());
        sudo_works.then_some(Self { by_sudo: true })
    }

    fn install(&self, packages: &[&str]) -> Result<()> {
        self.as_root("apt-get update", &["apt-get", "-q", "update"])
            .run()?;
        // Debian's package makes and starts a cluster of its own, which nobody has asked for.
        let _no_cluster = NoMainCluster::request(self)?;
        self.as_root(
            "apt-get install",
            &[
                "env",
                "DEBIAN_FRONTEND=noninteractive",
                "apt-get",
                "-q",
                "-y",
                "-o",
                "DPkg::Lock::Timeout=300",
                "install",
                "--no-install-recommends",
            ],
        )
        .args(packages)
        .run()
    }

    fn as_root(&self, name: &str, command: &[&str]) -> Launch {
        let (program, arguments) = match (self.by_sudo, command) {
            (true, all) => ("sudo", [&["-n"], all].concat()),
            (false, [program, arguments @ ..]) => (*program, arguments.to_vec()),
            (false, []) => ("true", Vec::new()),
        };
        Launch::new(name, program).args(arguments)
    }
}

/// A snippet of postgresql-common's settings that keeps a new server package from making the cluster `main`.
///
/// It stands only while apt-get runs, so what the user installs later behaves as ever.
struct NoMainCluster<'a> {
    apt_get: &'a AptGet,
    snippet: PathBuf,
}

impl<'a> NoMainCluster<'a> {
    fn request(apt_get: &'a AptGet) -> Result<Self> {
        let snippet =
            Path::new("/etc/postgresql-common/createcluster.d").join("order-service-xtask.conf");
        let guard = Self { apt_get, snippet };
        let command = format!(
            "mkdir -p /etc/postgresql-common/createcluster.d && echo 'create_main_cluster = false' > {}",
            guard.snippet.display()
        );
        guard
            .apt_get
            .as_root("sh", &["sh", "-c", &command])
            .output_of("")?;
        Ok(guard)
    }
}

impl Drop for NoMainCluster<'_> {
    fn drop(&mut self) {
        if fs::remove_file(&self.snippet).is_err() {
            let file = self.snippet.display().to_string();
            self.apt_get
                .as_root("rm", &["rm", "-f", &file])
                .output_of("")
                .ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_name_each_package_once() {
        let needs: Vec<&Need> = NEEDS.iter().collect();
        let text = instructions(&needs);
        let arch = text.lines().find(|line| line.contains("pacman")).unwrap();
        assert_eq!(
            arch.matches(" postgresql").count() - arch.matches(" postgresql-libs").count(),
            1
        );
        assert!(text.contains("libpq's headers"));
    }
}
