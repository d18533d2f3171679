//! The substitute for Apache Kafka: librdkafka's in-process broker, run by the program `load`.
//!
//! It stores nothing on disk, knows no admin requests and only the simple part of consumer groups. It is good enough to look
//! at the service, but not to judge it.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use servers::interrupt::wait_for;
use servers::process::Process;
use servers::signals::Signal;

use crate::cargo::cargo;

/// This includes the build of `load` with librdkafka.
const START_TIMEOUT: Duration = Duration::from_secs(1_800);
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What `load mock-broker` prints before its bootstrap address.
const ADDRESS_PREFIX: &str = "KAFKA_BROKERS=";

/// A running in-process broker. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct MockBroker {
    process: Process,
    bootstrap: String,
}

impl MockBroker {
    /// Builds `load` if necessary, and starts the broker with one topic.
    pub(crate) fn start(folder: &Path, topic: &str, partitions: u32) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let log = folder.join("mock-broker.log");
        let mut process = cargo("the in-process broker")
            .args(["run", "--quiet", "-p", "load", "--", "mock-broker"])
            .args(["--topic", topic, "--partitions", &partitions.to_string()])
            .log_to(&log)
            .spawn()?;
        let bootstrap = wait_for(
            "the in-process broker does not start",
            START_TIMEOUT,
            || {
                process.check_running()?;
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                Ok(parse_address(&text))
            },
        )?;
        Ok(Self { process, bootstrap })
    }

    /// Returns the bootstrap address.
    pub(crate) fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Checks that it runs.
    ///
    /// # Errors
    /// Fails, with the end of its log, if it has ended.
    pub(crate) fn check_running(&mut self) -> Result<()> {
        self.process.check_running()
    }

    /// Stops it.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.process.stop(Signal::TERM, STOP_TIMEOUT)
    }
}

/// Returns the address in a complete line of the log.
fn parse_address(log: &str) -> Option<String> {
    log.split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'))
        .find_map(|line| line.strip_prefix(ADDRESS_PREFIX))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_written_address_is_waited_for() {
        assert_eq!(parse_address("noise\nKAFKA_BROKERS=127.0.0.1:99"), None);
        assert_eq!(
            parse_address("noise\nKAFKA_BROKERS=127.0.0.1:9992\n"),
            Some("127.0.0.1:9992".to_owned())
        );
    }
}
