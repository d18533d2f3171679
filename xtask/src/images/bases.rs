//! Base images, made here because none can be pulled: Debian, and what stands in for Rust, PostgreSQL and Kafka.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;
use servers::kafka::Jars;
use servers::process::Launch;
use servers::{progress, project};

use super::engine::Engine;
use crate::cargo::rustc;
use crate::tools::KAFKA_TOOLS;

/// What the Dockerfile and the stand-ins begin with.
const DEBIAN: &str = "debian:bookworm-slim";
/// What the official image of Rust has, and Debian's base has not.
const OF_RUST: &str = "ca-certificates,g++,gcc,git,libc6-dev,make,pkg-config";
/// The bundle of CAs in the stand-in for Rust. The machine's own CAs are in it, if its registries need them.
const CA_BUNDLE: &str = "/usr/local/share/ca-bundle.crt";

/// Makes Debian's base image.
pub(super) fn make_debian(engine: &Engine) -> Result<()> {
    let archive = debian_archive(engine, "debian", None)?;
    import(engine, &archive, DEBIAN, &["CMD [\"bash\"]"])?;
    progress::step(&format!("{DEBIAN} is made from Debian's packages"));
    Ok(())
}

/// Makes the stand-in for the image of Rust: Debian with a C++ compiler and this machine's toolchain.
pub(super) fn make_rust(engine: &Engine, image: &str) -> Result<()> {
    let sysroot = PathBuf::from(rustc(&["--print", "sysroot"])?.trim());
    let version = rustc(&["--version"])?;
    let version = version.trim();
    let archive = debian_archive(engine, "rust", Some(OF_RUST))?;
    let append = |from: &Path, names: &[&str], to: &str| {
        Launch::new("tar", "tar")
            .args(["--append", "--owner=0", "--group=0", "--file"])
            .arg(&archive)
            .arg("--directory")
            .arg(from)
            .arg(format!("--transform=s,^,{to},"))
            .args(names)
            .run()
    };
    append(&sysroot, &["bin", "lib"], "usr/local/cargo/")?;
    let bundle = Path::new("/etc/ssl/certs/ca-certificates.crt");
    let certificates = engine.folder().join("ca-bundle.crt");
    fs::copy(bundle, &certificates).with_context(|| format!("cannot copy {}", bundle.display()))?;
    append(engine.folder(), &["ca-bundle.crt"], "usr/local/share/")?;
    let environment = [
        "ENV PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "ENV CARGO_HOME=/usr/local/cargo",
        &format!("ENV CARGO_HTTP_CAINFO={CA_BUNDLE}"),
    ];
    import(engine, &archive, image, &environment)?;
    progress::step(&format!("{image} has a stand-in with {version}"));
    Ok(())
}

/// Makes the stand-ins for the images of PostgreSQL, Prometheus and Kafka that Compose's model names.
pub(super) fn make_servers(engine: &Engine, model: &Value) -> Result<()> {
    let image_of = |service: &str| {
        model["services"][service]["image"]
            .as_str()
            .with_context(|| format!("docker-compose.yaml has no image of the service {service}"))
    };
    let folder = project::root().join("xtask/stand-ins");
    for (service, package) in [("postgres", "PostgreSQL"), ("prometheus", "Prometheus")] {
        let image = image_of(service)?;
        let context = folder.join(service);
        engine.build(image, &context.join("Dockerfile"), &context, &[])?;
        progress::step(&format!("{image} has a stand-in: Debian's {package}"));
    }

    let image = image_of("kafka")?;
    let kafka = folder.join("kafka");
    let context = engine.folder().join("kafka");
    write_kafka_context(&kafka, &context)?;
    engine.build(image, &kafka.join("Dockerfile"), &context, &[])?;
    progress::step(&format!("{image} has a stand-in: Apache Kafka's jars"));
    Ok(())
}

/// Gathers the jars, the start script, and a script for each console tool.
fn write_kafka_context(stand_in: &Path, context: &Path) -> Result<()> {
    let (jars, tools) = (context.join("jars"), context.join("tools"));
    for folder in [&jars, &tools] {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let copy = |from: &Path, to: &Path| {
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))
    };
    let fetched = Jars::fetch()?;
    let entries = fs::read_dir(fetched.folder()).context("cannot read the folder of jars")?;
    for entry in entries {
        let jar = entry.context("cannot read the folder of jars")?;
        copy(&jar.path(), &jars.join(jar.file_name()))?;
    }
    copy(&stand_in.join("run"), &context.join("run"))?;
    let more = [
        ("kafka-storage", "kafka.tools.StorageTool"),
        ("kafka-server-start", "kafka.Kafka"),
    ];
    for (name, class) in KAFKA_TOOLS.into_iter().chain(more) {
        let options = Jars::JAVA_OPTIONS[1..].join(" ");
        // KAFKA_HEAP_OPTS is a list of options.
        let script = format!(
            "#!/bin/bash\nexec java {options} ${{KAFKA_HEAP_OPTS:-}} -cp '/opt/kafka/*' {class} \"$@\"\n"
        );
        let file = tools.join(name);
        fs::write(&file, script).with_context(|| format!("cannot write {}", file.display()))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot change the mode of {}", file.display()))?;
    }
    Ok(())
}

/// Makes an archive of Debian's smallest system, with more packages.
fn debian_archive(engine: &Engine, name: &str, packages: Option<&str>) -> Result<PathBuf> {
    let archive = engine.folder().join(format!("{name}.tar"));
    let include = packages.map(|packages| format!("--include={packages}"));
    Launch::new("mmdebstrap", "mmdebstrap")
        .args(["--variant=minbase", "--mode=root"])
        // Nothing of it must survive a crash.
        .arg("--dpkgopt=force-unsafe-io")
        .args(include)
        .arg("bookworm")
        .arg(&archive)
        .log_to(engine.logs().join("mmdebstrap.log"))
        .run()?;
    Ok(archive)
}

/// Makes an image of an archive, and removes the archive.
fn import(engine: &Engine, archive: &Path, image: &str, changes: &[&str]) -> Result<()> {
    let changes = changes.iter().flat_map(|change| ["--change", *change]);
    engine
        .docker()
        .arg("import")
        .args(changes)
        .arg(archive)
        .arg(image)
        .output_of("")
        .with_context(|| format!("cannot import {image}"))?;
    fs::remove_file(archive).with_context(|| format!("cannot remove {}", archive.display()))
}
