//! A private Docker engine: own data, own socket, own address range. It is gone at the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use servers::interrupt::wait_for;
use servers::process::{Launch, Process, find_program, find_system_program};
use servers::signals::Signal;
use servers::{progress, project, temporary};

/// It starts in one or two seconds.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// It stops its containers first.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// The networks of the containers. Docker's usual ranges may be taken by another engine.
const ADDRESSES: &str = "base=10.213.0.0/16,size=24";

/// A running engine.
#[derive(Debug)]
pub(super) struct Engine {
    folder: PathBuf,
    logs: PathBuf,
    docker: PathBuf,
    daemon: Option<Process>,
}

impl Engine {
    /// Starts it in a temporary folder.
    pub(super) fn start() -> Result<Self> {
        let dockerd = find_system_program("dockerd").context("there is no dockerd")?;
        // The client of the same package. Another one, earlier on the PATH, may lack what builds images.
        let docker = [PathBuf::from("/usr/bin/docker")]
            .into_iter()
            .find(|file| file.is_file())
            .or_else(|| find_program("docker"))
            .context("there is no docker")?;
        let logs = project::stack_folder().join("images");
        fs::remove_dir_all(&logs).ok();
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        let folder = temporary::folder("docker");
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let mut engine = Self {
            folder,
            logs,
            docker,
            daemon: None,
        };
        // SIGKILL would leave the containers running.
        let launch = Launch::with_death_signal("dockerd", dockerd, "TERM")
            .arg("--data-root")
            .arg(engine.folder.join("data"))
            .arg("--exec-root")
            .arg(engine.folder.join("exec"))
            .arg("--pidfile")
            .arg(engine.folder.join("docker.pid"))
            .args(["--host", &engine.address()])
            // Builds use the machine's network, and Compose makes a network of its own.
            .args(["--bridge", "none", "--default-address-pool", ADDRESSES])
            .log_to(engine.logs.join("dockerd.log"));
        let mut daemon = launch.spawn()?;
        let started = wait_for("dockerd does not start", START_TIMEOUT, || {
            daemon.check_running()?;
            Ok(engine.docker().arg("version").output_of("").ok())
        });
        engine.daemon = Some(daemon);
        started?;
        progress::step("a private Docker engine runs");
        Ok(engine)
    }

    /// Returns its address.
    pub(super) fn address(&self) -> String {
        format!("unix://{}", self.folder.join("docker.sock").display())
    }

    /// Returns its temporary folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the folder of all logs.
    pub(super) fn logs(&self) -> &Path {
        &self.logs
    }

    /// Prepares a run of `docker`.
    pub(super) fn docker(&self) -> Launch {
        Launch::new("docker", &self.docker)
            .env("DOCKER_HOST", self.address())
            .env("DOCKER_BUILDKIT", "1")
            .env_remove("DOCKER_CONTEXT")
    }

    /// Prepares a line of shell. Its first argument is the path of `docker`.
    pub(super) fn shell(&self, line: &str) -> Launch {
        Launch::new("docker", "bash")
            .env("DOCKER_HOST", self.address())
            .args(["-euo", "pipefail", "-c", line, "docker"])
            .arg(&self.docker)
    }

    /// Builds a target of a Dockerfile.
    pub(super) fn build(
        &self,
        tag: &str,
        dockerfile: &Path,
        context: &Path,
        more: &[&str],
    ) -> Result<()> {
        let log = self
            .logs
            .join(format!("build-{}.log", tag.replace(['/', ':'], "-")));
        self.docker()
            // No network of the engine is needed, only the machine's.
            .args(["build", "--network", "host", "--progress", "plain"])
            .args(["--tag", tag, "--file"])
            .arg(dockerfile)
            .args(more)
            .arg(context)
            .log_to(log)
            .run()
            .with_context(|| format!("cannot build {tag}"))
    }

    /// Stops it and removes all that it has written.
    pub(super) fn stop(&mut self) -> Result<()> {
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(());
        };
        daemon.stop(Signal::TERM, STOP_TIMEOUT)?;
        drop(daemon);
        unmount_below(&self.folder)?;
        fs::remove_dir_all(&self.folder)
            .with_context(|| format!("cannot remove {}", self.folder.display()))?;
        progress::step("the Docker engine is stopped");
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            progress::say(&format!("{error:#}"));
        }
    }
}

/// Unmounts what an engine has left mounted, such as the namespaces of networks. The newest comes first.
fn unmount_below(folder: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    let folder = folder.display().to_string();
    let points = mounts
        .lines()
        .rev()
        .filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|point| point.starts_with(&folder)) {
        Launch::new("umount", "umount").arg(point).run()?;
    }
    Ok(())
}
