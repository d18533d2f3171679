//! The images of the two programs: how they are built, and what must be in them.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use servers::process::Launch;
use servers::{progress, project};

use super::bases;
use super::engine::Engine;
use crate::cargo::git;

/// Each is a target of the Dockerfile, and the name of the program in it.
pub(super) const PROGRAMS: [&str; 2] = ["ingestor", "api"];

/// A crate that each program certainly depends on, so that an empty list of crates is noticed.
const KNOWN_CRATE: [(&str, &str); 2] = [("ingestor", "rdkafka"), ("api", "warp")];

/// Returns the name of a program's image, as docker-compose.yaml has it.
pub(super) fn image_of(program: &str) -> String {
    format!("orders-{program}")
}

/// Builds both images. If the programs are given, the stage `builder` of the Dockerfile is not run.
pub(super) fn build(engine: &Engine, programs: Option<&Path>) -> Result<()> {
    let dockerfile = project::root().join("Dockerfile");
    let text = fs::read_to_string(&dockerfile).context("cannot read the Dockerfile")?;
    let (dockerfile, context) = match programs {
        None => {
            bases::make_rust(engine, rust_image(&text)?)?;
            (dockerfile, project::root().to_owned())
        }
        Some(folder) => {
            progress::say(&format!(
                "*** the programs are those of {}: the stage `builder` of the Dockerfile is not run",
                folder.display()
            ));
            let context = engine.folder().join("context");
            write_context(&context, folder)?;
            let dockerfile = context.join("Dockerfile");
            fs::write(&dockerfile, without_builder(&text)?)
                .context("cannot write the Dockerfile without its builder")?;
            (dockerfile, context)
        }
    };
    let revision = git(&["rev-parse", "HEAD"])?;
    let revision = format!("REVISION={revision}");
    for program in PROGRAMS {
        let more = ["--target", program, "--build-arg", &revision];
        engine.build(&image_of(program), &dockerfile, &context, &more)?;
        let size: f64 = inspect(engine, program, "{{.Size}}")?
            .parse()
            .context("docker does not tell the size of an image")?;
        progress::step(&format!(
            "{} is built: {:.1} MB",
            image_of(program),
            size / 1e6
        ));
    }
    Ok(())
}

/// Gathers what the Dockerfile without its builder copies.
fn write_context(context: &Path, programs: &Path) -> Result<()> {
    for program in PROGRAMS {
        let folder = context.join("programs").join(program).join("usr/local/bin");
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let from = programs.join(program);
        fs::copy(&from, folder.join(program))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let script = "deploy/image-root.sh";
    fs::create_dir_all(context.join("deploy")).context("cannot create a folder for the script")?;
    fs::copy(project::root().join(script), context.join(script))
        .with_context(|| format!("cannot copy {script}"))?;
    Ok(())
}

/// Returns the image that the stage `builder` begins with.
fn rust_image(dockerfile: &str) -> Result<&str> {
    dockerfile
        .lines()
        .find_map(|line| line.strip_prefix("FROM ")?.strip_suffix(" AS builder"))
        .context("the Dockerfile has no stage `builder`")
}

/// Replaces the stage `builder` by one that has the programs already.
fn without_builder(dockerfile: &str) -> Result<String> {
    let begin = format!("FROM {} AS builder\n", rust_image(dockerfile)?);
    let (before, stage) = dockerfile
        .split_once(&begin)
        .context("the stage `builder` of the Dockerfile has no line of its own")?;
    let (_, after) = stage
        .split_once("\nFROM ")
        .context("the Dockerfile has no stage after `builder`")?;
    Ok(format!(
        "{before}FROM debian:bookworm-slim AS builder\nCOPY programs /out\n\nFROM {after}"
    ))
}

/// Checks what is in an image, and what is not.
pub(super) fn check_content(engine: &Engine, program: &str, is_built_here: bool) -> Result<()> {
    for (what, format, expected) in [
        ("user", "{{.Config.User}}", "10001:10001".to_owned()),
        ("signal", "{{.Config.StopSignal}}", "SIGTERM".to_owned()),
        (
            "version",
            r#"{{index .Config.Labels "org.opencontainers.image.version"}}"#,
            env!("CARGO_PKG_VERSION").to_owned(),
        ),
        (
            "revision",
            r#"{{index .Config.Labels "org.opencontainers.image.revision"}}"#,
            git(&["rev-parse", "HEAD"])?,
        ),
    ] {
        let found = inspect(engine, program, format)?;
        ensure!(
            found == expected,
            "the image of {program} has the {what} {found:?} instead of {expected:?}"
        );
    }
    let archive = export(engine, program)?;
    let listed = tar(&["--list", "--verbose", "--file"], &archive, &[])?;
    let programs: Vec<&str> = listed.lines().filter_map(executable).collect();
    let own = format!("usr/local/bin/{program}");
    ensure!(
        programs == [own.as_str()],
        "the image of {program} has these programs: {programs:?}"
    );
    for needed in [
        "etc/ssl/certs/ca-certificates.crt",
        "etc/nsswitch.conf",
        "var/lib/dpkg/status.d/libc6",
        "usr/share/doc/libc6/copyright",
    ] {
        ensure!(
            listed.lines().any(|line| line.ends_with(needed)),
            "the image of {program} lacks {needed}"
        );
    }
    if is_built_here {
        check_crates(engine, program, &archive)?;
    }
    fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))
}

/// Checks that the SBOM and the program itself name their crates.
fn check_crates(engine: &Engine, program: &str, archive: &Path) -> Result<()> {
    let known = KNOWN_CRATE
        .into_iter()
        .find_map(|(name, known)| (name == program).then_some(known))
        .context("no crate of this program is known")?;
    let path = format!("usr/share/sbom/{program}.cdx.json");
    let sbom = tar(&["--extract", "--to-stdout", "--file"], archive, &[&path])?;
    let sbom: Value = serde_json::from_str(&sbom).with_context(|| format!("{path} is not JSON"))?;
    let components = sbom["components"].as_array().map_or(0, Vec::len);
    let has_known = sbom["components"]
        .as_array()
        .is_some_and(|components| components.iter().any(|each| each["name"] == known));
    ensure!(
        has_known && sbom["bomFormat"] == "CycloneDX",
        "{path} does not name {known} among {components} crates"
    );
    let folder = engine.folder().join("program");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let own = format!("usr/local/bin/{program}");
    let target = format!("--directory={}", folder.display());
    tar(&["--extract", &target, "--file"], archive, &[&own])?;
    let sections = Launch::new("readelf", "readelf")
        .args(["--wide", "--section-headers"])
        .arg(folder.join(&own))
        .output_of("")?;
    ensure!(
        sections.contains(".dep-v0"),
        "{program} has no list of its crates: it was not built by cargo auditable"
    );
    progress::step(&format!(
        "{program} and its SBOM name their {components} crates"
    ));
    Ok(())
}

/// Returns the path of a line of `tar --list --verbose` if it is a program: neither a library, nor one of the empty files that
/// docker adds to each container.
fn executable(line: &str) -> Option<&str> {
    let mut fields = line.split_whitespace();
    let (mode, size) = (fields.next()?, fields.nth(1)?);
    let path = fields.next_back()?;
    let is_library = path
        .rsplit('/')
        .next()
        .is_some_and(|name| name.contains(".so"));
    let is_program = mode.starts_with('-') && mode.contains('x') && size != "0";
    (is_program && !is_library).then_some(path)
}

/// Writes the whole file system of an image into an archive.
fn export(engine: &Engine, program: &str) -> Result<std::path::PathBuf> {
    let archive = engine.folder().join(format!("{program}.tar"));
    let created = engine.docker().arg("create").arg(image_of(program));
    let container = created.output_of("")?.trim().to_owned();
    engine
        .docker()
        .args(["export", "--output"])
        .arg(&archive)
        .arg(&container)
        .output_of("")?;
    engine
        .docker()
        .args(["rm", "--volumes", &container])
        .output_of("")?;
    Ok(archive)
}

fn tar(options: &[&str], archive: &Path, names: &[&str]) -> Result<String> {
    let launch = Launch::new("tar", "tar").args(options).arg(archive);
    launch.args(names).output_of("")
}

fn inspect(engine: &Engine, program: &str, format: &str) -> Result<String> {
    let launch = engine
        .docker()
        .args(["image", "inspect", "--format", format]);
    let answer = launch.arg(image_of(program)).output_of("")?;
    Ok(answer.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dockerfile_loses_only_its_builder() {
        let text = "# a\nFROM rust:1 AS builder\nRUN make\n\nFROM debian AS b\nCOPY --from=builder /out /\n";
        assert_eq!(rust_image(text).unwrap(), "rust:1");
        assert_eq!(
            without_builder(text).unwrap(),
            "# a\nFROM debian:bookworm-slim AS builder\nCOPY programs /out\n\nFROM debian AS b\nCOPY --from=builder /out /\n"
        );
        assert!(without_builder("FROM debian AS b\n").is_err());
    }

    #[test]
    fn programs_are_told_from_libraries_and_links() {
        let line = "-rwxr-xr-x 0/0  123 2026-11-30 18:00 usr/bin/sh";
        assert_eq!(executable(line), Some("usr/bin/sh"));
        let library = "-rwxr-xr-x 0/0  123 2026-11-30 18:00 usr/lib/libz.so.1";
        assert_eq!(executable(library), None);
        let link = "lrwxrwxrwx 0/0    0 2026-11-30 18:00 lib -> usr/lib";
        assert_eq!(executable(link), None);
        let empty = "-rwxr-xr-x 0/0    0 2026-11-30 18:00 .dockerenv";
        assert_eq!(executable(empty), None);
        let data = "-rw-r--r-- 0/0  123 2026-11-30 18:00 etc/passwd";
        assert_eq!(executable(data), None);
    }
}
