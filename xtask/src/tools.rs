//! psql and the console tools of Kafka, for the servers of a running demo or stack.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use servers::kafka::Jars;
use servers::postgres::{find_binaries, find_client};

use crate::stack::{env_file, parse_exports, variable};

/// The console tools, by the names of their scripts in Kafka's own distribution.
pub(crate) const KAFKA_TOOLS: [(&str, &str); 5] = [
    ("kafka-topics", "org.apache.kafka.tools.TopicCommand"),
    (
        "kafka-consumer-groups",
        "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    ),
    (
        "kafka-console-producer",
        "org.apache.kafka.tools.ConsoleProducer",
    ),
    (
        "kafka-console-consumer",
        "org.apache.kafka.tools.consumer.ConsoleConsumer",
    ),
    ("kafka-get-offsets", "org.apache.kafka.tools.GetOffsetShell"),
];

/// Returns the Java class of a console tool.
pub(crate) fn kafka_tool_class(name: &str) -> Option<&'static str> {
    KAFKA_TOOLS
        .iter()
        .find(|(tool, _)| *tool == name)
        .map(|(_, class)| *class)
}

/// Replaces this process by a console tool of Kafka. It returns only if that fails.
pub(crate) fn become_kafka_tool(class: &str, arguments: &[String]) -> Result<ExitCode> {
    let jars = Jars::fetch()?;
    let mut command = Command::new("java");
    command
        .args(Jars::JAVA_OPTIONS)
        .arg("-cp")
        .arg(jars.class_path())
        .arg(class);
    if !arguments
        .iter()
        .any(|argument| argument.starts_with("--bootstrap-"))
    {
        command.args(["--bootstrap-server", &server_variable("KAFKA_BROKERS")?]);
    }
    Err(command.args(arguments).exec()).context("cannot start java")
}

/// Replaces this process by psql. It returns only if that fails.
pub(crate) fn become_psql(arguments: &[String]) -> Result<ExitCode> {
    let program = find_binaries().map_or_else(
        |_| PathBuf::from("psql"),
        |folder| find_client(&folder, "psql"),
    );
    let mut command = Command::new(program);
    for (name, source) in [
        ("PGHOST", "DB_HOST"),
        ("PGPORT", "DB_PORT"),
        ("PGUSER", "DB_USER"),
        ("PGPASSWORD", "DB_PASSWORD"),
        ("PGDATABASE", "DB_NAME"),
    ] {
        command.env(name, server_variable(source)?);
    }
    Err(command.args(arguments).exec()).context("cannot start psql")
}

/// Returns a variable of the environment, of the running demo, or of the running stack, whichever has it first.
fn server_variable(name: &str) -> Result<String> {
    if let Some(value) = variable(name) {
        return Ok(value);
    }
    for stack in ["demo", "dev"] {
        let text = std::fs::read_to_string(env_file(stack)).unwrap_or_default();
        if let Some((_, value)) = parse_exports(&text)
            .into_iter()
            .find(|(key, _)| key == name)
        {
            return Ok(value);
        }
    }
    bail!(
        "{name} is not set, and neither `cargo xtask demo` nor `cargo xtask stack` runs in this clone: start one of them, \
         or set {name}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_found_by_the_names_of_their_scripts() {
        assert_eq!(
            kafka_tool_class("kafka-topics"),
            Some("org.apache.kafka.tools.TopicCommand")
        );
        assert_eq!(kafka_tool_class("kafka"), None);
    }
}
