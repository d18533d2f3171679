//! What a bare machine lacks. On Debian and Ubuntu apt-get installs it; elsewhere a message lists what to install.

use std::process::Command;

use anyhow::{Result, bail};
use servers::kafka::{Jars, java_is_new_enough};
use servers::postgres::{chosen_binaries, find_binaries, find_pgbouncer};
use servers::process::{Launch, find_program, find_system_program};
use servers::prometheus::{find_prometheus, find_promtool};
use servers::proxy::{find_apache, find_caddy, find_haproxy, find_nginx};
use servers::{interrupt, progress};

/// Installs the packages in its arguments.
///
/// Debian's package of PostgreSQL creates and starts a cluster, unless a setting of postgresql-common forbids that. The
/// setting exists only while apt-get runs. The packages of nginx, Caddy, HAProxy and Prometheus start services on all addresses,
/// and that of Docker starts an engine, unless a policy forbids that, and at each start of the system, unless the service is
/// disabled. A machine that has a policy keeps it.
const INSTALL: &str = r#"
set -e
setting=/etc/postgresql-common/createcluster.d/order-service-xtask.conf
policy=/usr/sbin/policy-rc.d
[ ! -e "$policy" ] || policy=
trap 'rm -f "$setting" ${policy:+"$policy"}' EXIT
trap 'exit 130' HUP INT TERM
apt-get -q update
mkdir -p "${setting%/*}"
echo 'create_main_cluster = false' > "$setting"
if [ -n "$policy" ]; then
  printf '#!/bin/sh\ncase "$1" in nginx*|caddy*|haproxy*|prometheus*|docker*|containerd*) exit 101 ;; esac\n' > "$policy"
  chmod 755 "$policy"
fi
DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@"
for package; do
  case "$package" in
    nginx) update-rc.d nginx disable || true ;;
    haproxy) update-rc.d haproxy disable || true ;;
    caddy|prometheus) systemctl disable "$package" 2>/dev/null || true ;;
    docker.io) systemctl disable docker docker.socket containerd 2>/dev/null || update-rc.d docker disable || true ;;
  esac
done
"#;

/// What a command of xtask needs packages for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Compiling the services.
    Build,
    /// A private PostgreSQL.
    Postgres,
    /// A private Apache Kafka.
    Kafka,
    /// The benchmark of reading.
    BenchRead,
    /// The tests that run schemathesis, curl, proxies, a pooler and a browser.
    ApiTests,
    /// The checks of the files in `deploy`.
    Deploy,
    /// Building and running the images.
    Images,
}

/// Something that must be installed: its purpose, what it is, the package of Debian and Ubuntu, and whether it is there.
struct Need(Purpose, &'static str, &'static str, fn() -> bool);

const NEEDS: &[Need] = &[
    Need(
        Purpose::Build,
        "a C compiler, a C++ compiler and make (librdkafka is built from source)",
        "build-essential",
        || ["cc", "c++", "make"].into_iter().all(is_on_path),
    ),
    Need(Purpose::Build, "pkg-config", "pkg-config", || {
        is_on_path("pkg-config")
    }),
    Need(
        Purpose::Build,
        "the headers of OpenSSL (TLS and SCRAM for Kafka)",
        "libssl-dev",
        || has_library("openssl"),
    ),
    Need(
        Purpose::Build,
        "the headers of zlib (gzip for Kafka)",
        "zlib1g-dev",
        || has_library("zlib"),
    ),
    Need(
        Purpose::Build,
        "the headers of libcurl (OIDC tokens for Kafka)",
        "libcurl4-openssl-dev",
        || has_library("libcurl"),
    ),
    Need(
        Purpose::Build,
        "the headers of libpq (diesel)",
        "libpq-dev",
        || has_library("libpq"),
    ),
    Need(
        Purpose::Postgres,
        "the server programs of PostgreSQL",
        "postgresql",
        // What has been chosen is not replaced by a package.
        || chosen_binaries().is_some() || find_binaries().is_ok(),
    ),
    Need(Purpose::Postgres, "psql", "postgresql-client", || {
        is_on_path("psql") || find_binaries().is_ok_and(|folder| folder.join("psql").is_file())
    }),
    Need(
        Purpose::Kafka,
        "Java 17 or later (Apache Kafka)",
        "default-jre-headless",
        java_is_new_enough,
    ),
    Need(
        Purpose::Kafka,
        "Maven (fetches Apache Kafka)",
        "maven",
        || is_on_path("mvn") || Jars::cached().is_some(),
    ),
    Need(
        Purpose::BenchRead,
        "wrk (a load generator for HTTP servers)",
        "wrk",
        || is_on_path("wrk"),
    ),
    Need(
        Purpose::ApiTests,
        "PgBouncer (a pooler; tests put it between api and database)",
        "pgbouncer",
        || find_pgbouncer().is_some(),
    ),
    Need(
        Purpose::ApiTests,
        "Python 3.11 or later with venv and pip (schemathesis tests the api)",
        "python3-venv",
        python_makes_environments,
    ),
    Need(
        Purpose::ApiTests,
        "Node.js 18 or later (runs a client that is generated from openapi.json)",
        "nodejs",
        node_is_new_enough,
    ),
    Need(
        Purpose::ApiTests,
        "npm (fetches what generates that client)",
        "npm",
        || is_on_path("npm"),
    ),
    Need(
        Purpose::ApiTests,
        "curl (runs the examples of docs/API.md)",
        "curl",
        || is_on_path("curl"),
    ),
    // Unlike the package apache2, this one has no service.
    Need(
        Purpose::ApiTests,
        "Apache httpd (a test puts it in front of the api)",
        "apache2-bin",
        || find_apache().is_some(),
    ),
    Need(
        Purpose::ApiTests,
        "nginx (a test puts it in front of the api)",
        "nginx",
        || find_nginx().is_some(),
    ),
    Need(
        Purpose::ApiTests,
        "Caddy (a test puts it in front of the api)",
        "caddy",
        || find_caddy().is_some(),
    ),
    Need(
        Purpose::ApiTests,
        "HAProxy (a test restarts the processes behind it)",
        "haproxy",
        || find_haproxy().is_some(),
    ),
    Need(
        Purpose::ApiTests,
        "Chromium (a test opens the page as a stranger's site)",
        "chromium",
        || find_program("chromium").is_some(),
    ),
    Need(
        Purpose::ApiTests,
        "Prometheus (a test lets it scrape the programs and judge them)",
        "prometheus",
        || find_prometheus().is_some(),
    ),
    Need(
        Purpose::Deploy,
        "promtool (tests the alerting rules)",
        "prometheus",
        || find_promtool().is_some(),
    ),
    Need(
        Purpose::Images,
        "a Docker engine (builds and runs the images)",
        "docker.io",
        || find_system_program("dockerd").is_some(),
    ),
    Need(
        Purpose::Images,
        "Docker Compose (runs docker-compose.yaml)",
        "docker-compose",
        || is_on_path("docker-compose"),
    ),
    Need(
        Purpose::Images,
        "mmdebstrap (makes Debian's base image, where none can be pulled)",
        "mmdebstrap",
        || is_on_path("mmdebstrap"),
    ),
];

/// Installs what is missing for some purposes.
///
/// # Errors
/// Fails with a list of what to install if something is still missing.
pub(crate) fn ensure(purposes: &[Purpose]) -> Result<()> {
    let lacking = missing(purposes);
    if lacking.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = lacking
        .iter()
        .map(|Need(_, _, package, _)| *package)
        .collect();
    let Some(apt_get) = apt_get() else {
        bail!(instructions(&lacking));
    };
    progress::step(&format!(
        "apt-get installs what is missing: {}",
        packages.join(" ")
    ));
    let installed = apt_get.args(packages).run();
    interrupt::check()?;
    let lacking = missing(purposes);
    match installed {
        _ if lacking.is_empty() => Ok(()),
        Ok(()) => bail!(instructions(&lacking)),
        Err(error) => Err(error.context(instructions(&lacking))),
    }
}

/// Does the same, but continues if only Apache Kafka cannot be installed, because there is a substitute.
pub(crate) fn ensure_but_kafka_if_impossible(purposes: &[Purpose]) -> Result<()> {
    let Err(error) = ensure(purposes) else {
        return Ok(());
    };
    interrupt::check()?;
    if missing(purposes)
        .iter()
        .any(|need| need.0 != Purpose::Kafka)
    {
        return Err(error);
    }
    progress::say(&format!("{error:#}"));
    Ok(())
}

fn missing(purposes: &[Purpose]) -> Vec<&'static Need> {
    NEEDS
        .iter()
        .filter(|Need(purpose, _, _, is_present)| purposes.contains(purpose) && !is_present())
        .collect()
}

/// Tells what to install by hand.
fn instructions(lacking: &[&Need]) -> String {
    let mut text = "this machine lacks:\n".to_owned();
    let mut command = "sudo apt-get install".to_owned();
    for Need(_, what, package, _) in lacking {
        text.push_str(&format!("  - {what}\n"));
        command.push_str(&format!(" {package}"));
    }
    format!(
        "{text}Install it and try again. On Debian and Ubuntu:\n  {command}\n\
         Other systems have packages with similar names."
    )
}

/// The script that installs packages, without the packages; `None` if this machine has no apt-get, or if this user is
/// neither root nor allowed to use sudo without a password.
fn apt_get() -> Option<Launch> {
    find_program("apt-get")?;
    let shell = if rustix::process::geteuid().is_root() {
        Launch::new("apt-get", "sh")
    } else if succeeds("sudo", &["-n", "true"]) {
        Launch::new("apt-get", "sudo").args(["-n", "sh"])
    } else {
        return None;
    };
    Some(shell.args(["-c", INSTALL, "install"]))
}

fn is_on_path(program: &str) -> bool {
    find_program(program).is_some()
}

/// Debian has the module `venv` without `ensurepip`, which `venv` needs.
fn python_makes_environments() -> bool {
    let test = "import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))";
    succeeds("python3", &["-c", test])
}

fn node_is_new_enough() -> bool {
    let test = "process.exit(Number.parseInt(process.versions.node) < 18 ? 1 : 0)";
    succeeds("node", &["-e", test])
}

fn has_library(name: &str) -> bool {
    succeeds("pkg-config", &["--exists", name])
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_name_what_is_missing_and_its_packages() {
        let needs: Vec<&Need> = NEEDS.iter().collect();
        let text = instructions(&needs);
        assert!(text.contains("headers of libpq"), "{text}");
        let command = text.lines().find(|line| line.contains("apt-get")).unwrap();
        assert_eq!(command.matches(" postgresql").count(), 2, "{text}");
    }
}
