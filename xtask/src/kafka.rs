//! A private Apache Kafka: `KRaft`, one node that is broker and controller at once.
//!
//! Its jars come from Maven by `xtask/kafka/pom.xml` and are cached in `.stack/kafka` (see [`Jars`]).

mod jars;
mod mock;
mod properties;
mod wire;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

pub use jars::Jars;
pub use mock::MockBroker;

use crate::interrupt::wait_for;
use crate::ports;
use crate::process::{Process, Signal};

/// How long a start may take; two seconds are usual on an idle machine, but a build may run beside it.
const START_TIMEOUT: Duration = Duration::from_secs(90);
/// How long a stop in order may take before it becomes a kill.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the making of a topic may take; right after the start the broker may not be registered yet.
const TOPIC_TIMEOUT: Duration = Duration::from_secs(30);

/// Any 16 bytes in URL-safe base64; the cluster is alone in its folder.
const CLUSTER_ID: &str = "b3JkZXItc2VydmljZS1kZQ";

/// A running broker; dropping it kills it, and removes its folder if that is temporary.
#[derive(Debug)]
pub struct PrivateKafka {
    // Declared, and so dropped, before the folder.
    server: Option<Process>,
    folder: Folder,
    jars: Jars,
    port: u16,
}

impl PrivateKafka {
    /// Fetches the jars if need be, makes a broker in a folder that is made anew, and starts it.
    ///
    /// Without a folder it lives in a temporary one.
    pub fn start(folder: Option<&Path>) -> Result<Self> {
        Self::start_with(folder, &[])
    }

    /// As [`Self::start`], with further broker properties, which win over ours.
    pub fn start_with(folder: Option<&Path>, settings: &[(&str, &str)]) -> Result<Self> {
        let jars = Jars::fetch()?;
        let mut kafka = Self {
            server: None,
            folder: Folder::create(folder)?,
            jars,
            port: 0,
        };
        // Two ports are taken between the look and the bind once in a blue moon: then others are tried.
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

    /// The bootstrap address, `host:port`.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The variables that make the project's processes and tests use it.
    pub fn env(&self) -> Vec<(String, String)> {
        vec![("KAFKA_BROKERS".to_owned(), self.bootstrap())]
    }

    /// The broker's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Process::pid)
    }

    /// The broker's log.
    pub fn log(&self) -> PathBuf {
        self.folder.path.join("kafka.log")
    }

    /// Makes a topic; one that exists is left as it is.
    pub fn create_topic(&self, name: &str, partitions: u32) -> Result<()> {
        wait_for(&format!("topic {name}"), TOPIC_TIMEOUT, || {
            wire::create_topic(self.port, name, partitions)
        })
    }

    /// Runs one of Kafka's Java classes (a console tool) to its end and returns what it prints.
    pub fn run_tool(&self, class: &str, arguments: &[&str], input: &str) -> Result<String> {
        self.jars
            .java(class)
            .args(["--bootstrap-server", &self.bootstrap()])
            .args(arguments)
            .output_of(input)
    }

    /// Fails, with the end of the log, if the broker has ended.
    pub fn check_running(&mut self) -> Result<()> {
        match &mut self.server {
            Some(server) => server.check_running(),
            None => bail!("Kafka is stopped"),
        }
    }

    /// Stops it in order.
    pub fn stop(&mut self) -> Result<()> {
        match self.server.take() {
            Some(mut server) => server.stop(Signal::TERM, STOP_TIMEOUT),
            None => Ok(()),
        }
    }

    /// Kills it by SIGKILL, as a crash would.
    pub fn kill_nine(&mut self) {
        // Dropping a process kills it.
        self.server = None;
    }

    /// Starts it again, on the same data and port, after [`Self::stop`] or [`Self::kill_nine`]; a running one is stopped first.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.launch_server()
    }

    fn properties(&self) -> PathBuf {
        self.folder.path.join("server.properties")
    }

    fn says_port_is_taken(&self) -> bool {
        fs::read_to_string(self.log()).is_ok_and(|text| text.contains("Address already in use"))
    }

    fn format_and_launch(&mut self, settings: &[(&str, &str)]) -> Result<()> {
        self.folder.empty()?;
        self.port = ports::free_port()?;
        let text = properties::render(
            self.port,
            ports::free_port()?,
            &self.folder.path.join("data"),
            settings,
        );
        let file = self.properties();
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        self.jars
            .java("kafka.tools.StorageTool")
            .args(["format", "--cluster-id", CLUSTER_ID, "--config"])
            .arg(&file)
            .log_to(self.folder.path.join("format.log"))
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

/// Where a broker has its data and its log.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    temporary: bool,
}

impl Folder {
    fn create(wanted_opt: Option<&Path>) -> Result<Self> {
        let path = match wanted_opt {
            Some(wanted) => std::path::absolute(wanted)
                .with_context(|| format!("cannot find {}", wanted.display()))?,
            None => crate::temporary::folder("kafka"),
        };
        Ok(Self {
            path,
            temporary: wanted_opt.is_none(),
        })
    }

    fn empty(&self) -> Result<()> {
        if self.path.exists() {
            fs::remove_dir_all(&self.path)
                .with_context(|| format!("cannot remove {}", self.path.display()))?;
        }
        fs::create_dir_all(&self.path)
            .with_context(|| format!("cannot make {}", self.path.display()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.temporary {
            fs::remove_dir_all(&self.path).ok();
        }
    }
}
