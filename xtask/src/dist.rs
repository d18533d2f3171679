//! `cargo xtask dist`: the archives that people install without Docker, and a trial of them.
//!
//! An archive is the same, byte for byte, whenever and wherever it is made of the same programs at the same commit.

mod install;
mod trial;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use servers::process::Launch;
use servers::{progress, project};

use crate::arguments::{take_flag, take_text};
use crate::cargo::{cargo, git, rustc, target_folder};
use crate::packages::{self, Purpose};

const PROGRAMS: [&str; 2] = ["ingestor", "api"];

/// Files of the repository, and the folder of the archive that they are in.
const FILES: [(&str, &str); 7] = [
    ("LICENSE", ""),
    ("CHANGELOG.md", ""),
    (".env.example", ""),
    ("deploy/INSTALL.md", ""),
    ("deploy/ingestor.service", "systemd"),
    ("deploy/api.service", "systemd"),
    ("deploy/postgres/roles.sql", "postgres"),
];

/// The shells with completions, and how a program's file is called there.
const SHELLS: [(&str, &str, &str); 3] = [("bash", "", ""), ("zsh", "_", ""), ("fish", "", ".fish")];

#[derive(Debug)]
struct Options {
    /// The folder of programs that are built already; `None` builds them.
    programs: Option<PathBuf>,
    /// Whether the archive is tried.
    has_trial: bool,
    /// The archive that is upgraded in the trial; `None` is the new one itself.
    former: Option<PathBuf>,
}

/// Makes the archive, and tries it.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let mut arguments = arguments.to_vec();
    let options = Options {
        programs: take_text(&mut arguments, "--programs")?.map(PathBuf::from),
        has_trial: take_flag(&mut arguments, "--try"),
        former: take_text(&mut arguments, "--former")?.map(PathBuf::from),
    };
    if let Some(unknown) = arguments.first() {
        bail!(
            "dist has no option {unknown}; its options are --programs FOLDER, --try and --former ARCHIVE"
        );
    }
    packages::ensure(&[Purpose::Build])?;
    let programs = match &options.programs {
        Some(folder) => {
            progress::say(&format!(
                "*** the programs are those of {}: they may lack the list of their crates",
                folder.display()
            ));
            folder.clone()
        }
        None => build()?,
    };
    let archive = make_archive(&programs)?;
    progress::say(&archive.display().to_string());
    if !options.has_trial {
        return Ok(());
    }
    let first = fs::read(&archive).context("cannot read the archive")?;
    make_archive(&programs)?;
    let second = fs::read(&archive).context("cannot read the archive")?;
    ensure!(
        first == second,
        "the archive is not the same when it is made a second time"
    );
    progress::step("made a second time, the archive is the same, byte for byte");
    trial::run(options.former.as_deref().unwrap_or(&archive), &archive)
}

/// Builds the programs as the Dockerfile does, and returns their folder.
fn build() -> Result<PathBuf> {
    let tool = install_tool("cargo-auditable")?;
    progress::step("building ingestor and api (this takes some minutes)");
    cargo("cargo auditable build")
        .env("PATH", path_with(&tool)?)
        .args(["auditable", "build", "--release", "--locked"])
        .args(["-p", "ingestor", "-p", "api"])
        .run()?;
    Ok(target_folder(true))
}

/// Makes the archive of some programs, with a file of its checksum beside it, and returns its path.
fn make_archive(programs: &Path) -> Result<PathBuf> {
    let name = format!("orders-{}-{}", env!("CARGO_PKG_VERSION"), host()?);
    let dist = project::root().join("target/dist");
    let folder = dist.join(&name);
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    for program in PROGRAMS {
        copy(&programs.join(program), &folder.join("bin").join(program))?;
        add_completions(&folder, program)?;
    }
    for (file, place) in FILES {
        let from = project::root().join(file);
        let file_name = from.file_name().context("a file has no name")?;
        copy(&from, &folder.join(place).join(file_name))?;
    }
    let commit_time = git(&["log", "-1", "--format=%ct"])?;
    add_sboms(&folder, &commit_time)?;
    let sums = "find . -type f ! -name SHA256SUMS -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum > SHA256SUMS";
    shell(&folder, sums)?;
    let pack = format!(
        "tar --sort=name --mtime=@{commit_time} --owner=0 --group=0 --numeric-owner --mode=u+rwX,go+rX,go-w --create {name} \
         | gzip --no-name > {name}.tar.gz && sha256sum {name}.tar.gz > {name}.tar.gz.sha256"
    );
    shell(&dist, &pack)?;
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    Ok(dist.join(format!("{name}.tar.gz")))
}

fn add_completions(folder: &Path, program: &str) -> Result<()> {
    for (shell, before, after) in SHELLS {
        let script = Launch::new(program, folder.join("bin").join(program))
            .args(["completions", shell])
            .output_of("")?;
        let place = folder.join("completions").join(shell);
        fs::create_dir_all(&place).with_context(|| format!("cannot create {}", place.display()))?;
        let file = place.join(format!("{before}{program}{after}"));
        fs::write(&file, script).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Adds the lists of the programs' crates. The tool writes one beside each Cargo.toml of the workspace.
fn add_sboms(folder: &Path, commit_time: &str) -> Result<()> {
    let tool = install_tool("cargo-cyclonedx")?;
    cargo("cargo cyclonedx")
        .env("PATH", path_with(&tool)?)
        .env("SOURCE_DATE_EPOCH", commit_time)
        .args(["cyclonedx", "--quiet", "--format", "json"])
        .run()?;
    let root = project::root();
    for program in PROGRAMS {
        let file = format!("{program}.cdx.json");
        copy(
            &root.join(program).join(&file),
            &folder.join("sbom").join(&file),
        )?;
    }
    for file in git(&["ls-files", "--others", "*.cdx.json"])?.lines() {
        fs::remove_file(root.join(file)).with_context(|| format!("cannot remove {file}"))?;
    }
    Ok(())
}

/// Installs a tool in the version that the Dockerfile has, and returns its folder.
fn install_tool(name: &str) -> Result<PathBuf> {
    let dockerfile = fs::read_to_string(project::root().join("Dockerfile"))
        .context("cannot read the Dockerfile")?;
    let version = version_of(&dockerfile, name)
        .with_context(|| format!("the Dockerfile does not install {name}"))?;
    let tools = project::root()
        .join("target/tools")
        .join(format!("{name}-{version}"));
    let folder = tools.join("bin");
    if !folder.join(name).is_file() {
        progress::step(&format!("installing {name} {version} (once)"));
        cargo("cargo install")
            .args(["install", "--quiet", "--locked", "--version", version])
            .arg("--root")
            .arg(&tools)
            .arg("--target-dir")
            .arg(project::root().join("target/tools/build"))
            .arg(name)
            .run()?;
    }
    Ok(folder)
}

/// Returns the version of `name@version` in a text.
fn version_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("{name}@"))?;
    rest.split_whitespace().next()
}

/// Returns the PATH with one more folder before it.
fn path_with(folder: &Path) -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path));
    std::env::join_paths(folders).context("a folder of the PATH has a colon in its name")
}

/// Returns the target that this machine's rustc builds for.
fn host() -> Result<String> {
    let answer = rustc(&["-vV"])?;
    let host = answer.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say its host")?.to_owned())
}

/// Copies a file, with its mode, into a folder that is made if it is not there.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a file has no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// Runs a line of shell in a folder.
fn shell(folder: &Path, line: &str) -> Result<()> {
    Launch::new(line, "bash")
        .args(["-euo", "pipefail", "-c", line])
        .directory(folder)
        .run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_the_dockerfile() {
        let text = "cargo install a@1.2.3 bc@4.5\n";
        assert_eq!(version_of(text, "a"), Some("1.2.3"));
        assert_eq!(version_of(text, "bc"), Some("4.5"));
        assert_eq!(version_of(text, "d"), None);
    }
}
