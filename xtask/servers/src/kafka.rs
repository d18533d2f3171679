//! A private Apache Kafka in `KRaft` mode: one node that is both broker and controller.
//!
//! Maven fetches its jars, as `xtask/servers/kafka/pom.xml` says. They are cached in `.stack/kafka` (see [`Jars`]).

mod jars;
mod properties;
mod wire;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

pub use jars::{Jars, java_is_new_enough};

use properties::Ports;

use crate::interrupt::wait_for;
use crate::process::Process;
use crate::signals::Signal;
use crate::{ports, temporary};

/// How long a start may take. It takes about two seconds on an idle machine, but a build may run at the same time.
const START_TIMEOUT: Duration = Duration::from_secs(90);
/// How long an orderly stop may take. Then the broker is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the creation of a topic may take. Right after its start the broker may not be registered yet.
const TOPIC_TIMEOUT: Duration = Duration::from_secs(30);

/// Any 16 bytes in URL-safe base64. The cluster is alone in its folder, so all clusters may have the same id.
const CLUSTER_ID: &str = "b3JkZXItc2VydmljZS1kZQ";

/// A running broker. Dropping it kills it, and removes its folder if that is temporary.
#[derive(Debug)]
pub struct PrivateKafka {
    server: Option<Process>,
    folder: PathBuf,
    is_temporary: bool,
    jars: Jars,
    port: u16,
    has_sasl: bool,
    sasl_port: Option<u16>,
}

impl PrivateKafka {
    /// Fetches the jars if necessary, and starts a new broker in a folder that is emptied first; `None` is a temporary one.
    pub fn start(folder: Option<&Path>) -> Result<Self> {
        Self::start_with(folder, &[])
    }

    /// Does the same with more properties of the broker. They override ours.
    pub fn start_with(folder: Option<&Path>, settings: &[(&str, &str)]) -> Result<Self> {
        Self::start_listening(folder, false, settings)
    }

    /// Does the same in a temporary folder with a second listener, `SASL_PLAINTEXT` at [`Self::sasl_bootstrap`]. The
    /// properties must say which mechanisms it has.
    pub fn start_with_sasl(settings: &[(&str, &str)]) -> Result<Self> {
        Self::start_listening(None, true, settings)
    }

    fn start_listening(
        folder: Option<&Path>,
        has_sasl: bool,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let jars = Jars::fetch()?;
        let mut kafka = Self {
            server: None,
            folder: match folder {
                Some(folder) => std::path::absolute(folder)?,
                None => temporary::folder("kafka"),
            },
            is_temporary: folder.is_none(),
            jars,
            port: 0,
            has_sasl,
            sasl_port: None,
        };
        // In rare cases another program takes a port between the look and the bind. Then other ports are tried.
        for attempt in 0.. {
            match kafka.format_and_launch(settings) {
                Err(_) if attempt < 4 && kafka.says_port_is_taken() => {}
                outcome => {
                    outcome?;
                    break;
                }
            }
        }
        Ok(kafka)
    }

    /// Returns the bootstrap address, `host:port`.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns the address of the listener whose clients authenticate by SASL, `host:port`; `None` if there is none.
    pub fn sasl_bootstrap(&self) -> Option<String> {
        Some(format!("127.0.0.1:{}", self.sasl_port?))
    }

    /// Returns the broker's process id; `None` if it does not run.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Process::pid)
    }

    /// Returns the path of the broker's log.
    pub fn log(&self) -> PathBuf {
        self.folder.join("kafka.log")
    }

    /// Creates a topic. An existing topic is left as it is.
    pub fn create_topic(&self, name: &str, partitions: u32) -> Result<()> {
        let problem = format!("Kafka does not create topic {name}");
        wait_for(&problem, TOPIC_TIMEOUT, || {
            wire::create_topic(self.port, name, partitions)
        })
    }

    /// Runs a console tool, named by its Java class, to its end, and returns what it prints.
    pub fn run_tool(&self, class: &str, arguments: &[&str], input: &str) -> Result<String> {
        self.jars
            .java(class)
            .args(["--bootstrap-server", &self.bootstrap()])
            .args(arguments)
            .output_of(input)
    }

    /// Checks that the broker runs.
    ///
    /// # Errors
    /// Fails, with the end of the log, if it has ended or is stopped.
    pub fn check_running(&mut self) -> Result<()> {
        match &mut self.server {
            Some(server) => server.check_running(),
            None => bail!("Kafka is stopped"),
        }
    }

    /// Stops it in good order.
    pub fn stop(&mut self) -> Result<()> {
        match self.server.take() {
            Some(mut server) => server.stop(Signal::TERM, STOP_TIMEOUT),
            None => Ok(()),
        }
    }

    /// Kills it by SIGKILL, like a crash.
    pub fn kill_nine(&mut self) {
        // Dropping a process kills it.
        self.server = None;
    }

    /// Starts it again with the same data and port. If it runs, it is stopped first.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.launch_server()
    }

    fn properties(&self) -> PathBuf {
        self.folder.join("server.properties")
    }

    fn says_port_is_taken(&self) -> bool {
        fs::read_to_string(self.log()).is_ok_and(|text| text.contains("Address already in use"))
    }

    fn format_and_launch(&mut self, settings: &[(&str, &str)]) -> Result<()> {
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder)
                .with_context(|| format!("cannot remove {}", self.folder.display()))?;
        }
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot create {}", self.folder.display()))?;
        self.port = ports::free_port()?;
        self.sasl_port = self.has_sasl.then(ports::free_port).transpose()?;
        let ports = Ports {
            plaintext: self.port,
            controller: ports::free_port()?,
            sasl: self.sasl_port,
        };
        let text = properties::render(&ports, &self.folder.join("data"), settings);
        let file = self.properties();
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        self.jars
            .java("kafka.tools.StorageTool")
            .args(["format", "--cluster-id", CLUSTER_ID, "--config"])
            .arg(&file)
            .log_to(self.folder.join("format.log"))
            .run()?;
        self.launch_server()
    }

    fn launch_server(&mut self) -> Result<()> {
        let mut server = self
            .jars
            .java("kafka.Kafka")
            .arg(self.properties())
            .log_to(self.log())
            .spawn()?;
        wait_for("Kafka does not start", START_TIMEOUT, || {
            server.check_running()?;
            Ok(wire::is_ready(self.port).then_some(()))
        })?;
        self.server = Some(server);
        Ok(())
    }
}

impl Drop for PrivateKafka {
    fn drop(&mut self) {
        self.kill_nine();
        if self.is_temporary {
            fs::remove_dir_all(&self.folder).ok();
        }
    }
}
