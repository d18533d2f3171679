//! An archive that is installed as its INSTALL.md says, and programs that run as their units say.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use servers::process::Launch;

use super::shell;

/// A folder that stands for the root of the file system.
#[derive(Debug)]
pub(super) struct Installation {
    folder: PathBuf,
}

/// What a unit says about its program.
#[derive(Debug, PartialEq, Eq)]
struct Unit {
    command: Vec<String>,
    environment_file: String,
}

impl Installation {
    /// Takes an empty folder.
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Unpacks an archive and runs the commands of its INSTALL.md. What is installed already is replaced.
    pub(super) fn install(&self, archive: &Path) -> Result<()> {
        let unpacked = self.folder.join("unpacked");
        if unpacked.exists() {
            fs::remove_dir_all(&unpacked)
                .with_context(|| format!("cannot remove {}", unpacked.display()))?;
        }
        fs::create_dir_all(&unpacked)
            .with_context(|| format!("cannot create {}", unpacked.display()))?;
        Launch::new("tar", "tar")
            .args(["--extract", "--gzip", "--strip-components=1", "--file"])
            .arg(archive)
            .arg("--directory")
            .arg(&unpacked)
            .run()?;
        let guide = fs::read_to_string(unpacked.join("INSTALL.md"))
            .context("cannot read INSTALL.md of the archive")?;
        let commands = commands_of(&guide).context("INSTALL.md has no commands")?;
        ensure!(
            commands.contains("sha256sum --check"),
            "INSTALL.md does not check the sums"
        );
        let destination = self.folder.display();
        shell(
            &unpacked,
            &format!("export DESTDIR='{destination}'\n{commands}"),
        )
    }

    /// Appends settings to the file that a program's unit names.
    pub(super) fn configure(&self, program: &str, settings: &[(String, String)]) -> Result<()> {
        let file = self.in_root(&self.unit(program)?.environment_file);
        let mut text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        for (name, value) in settings {
            text.push_str(&format!("{name}={value}\n"));
        }
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Prepares a run of a program by its unit's command line, with the settings of the unit's file.
    pub(super) fn launch(&self, program: &str, log: &Path) -> Result<Launch> {
        let unit = self.unit(program)?;
        let file = self.in_root(&unit.environment_file);
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let (path, arguments) = unit
            .command
            .split_first()
            .context("the unit has no command")?;
        Ok(Launch::new(program, self.in_root(path))
            .args(arguments)
            .envs(&settings_of(&text))
            .env("NO_COLOR", "1")
            .directory(&self.folder)
            .log_to(log))
    }

    fn unit(&self, program: &str) -> Result<Unit> {
        let file = self.in_root(&format!("/etc/systemd/system/{program}.service"));
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        parse_unit(&text).with_context(|| format!("{} lacks a line", file.display()))
    }

    /// Returns where an absolute path is in the installation.
    fn in_root(&self, path: &str) -> PathBuf {
        self.folder.join(path.trim_start_matches('/'))
    }
}

fn parse_unit(text: &str) -> Option<Unit> {
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    };
    let words = value("ExecStart")?.split_whitespace();
    Some(Unit {
        command: words.map(str::to_owned).collect(),
        // A minus says that the file may be absent.
        environment_file: value("EnvironmentFile")?.trim_start_matches('-').to_owned(),
    })
}

/// Returns the settings of an environment file, the later ones last, without those that are empty.
fn settings_of(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Returns the first block of shell commands in a guide.
fn commands_of(guide: &str) -> Option<&str> {
    let (_, block) = guide.split_once("```sh\n")?;
    let (commands, _) = block.split_once("```")?;
    Some(commands)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_say_what_to_run_and_with_which_settings() {
        let text = "[Service]\nExecStart=/usr/local/bin/a run\nEnvironmentFile=-/etc/a.env\n";
        let unit = parse_unit(text).unwrap();
        assert_eq!(unit.command, ["/usr/local/bin/a", "run"]);
        assert_eq!(unit.environment_file, "/etc/a.env");
        assert_eq!(parse_unit("[Service]\n"), None);
    }

    #[test]
    fn settings_and_commands_are_read_as_written() {
        let settings = settings_of("# A=0\nA=1\nB=x=y\n\n");
        let expected = [("A", "1"), ("B", "x=y")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(settings, expected);
        assert_eq!(commands_of("Do:\n```sh\na\nb\n```\n"), Some("a\nb\n"));
        assert_eq!(commands_of("nothing"), None);
    }
}
