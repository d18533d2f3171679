//! Kafka's console tools and psql, pointed at the servers of a running demo or `cargo xtask stack`.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use servers::kafka::Jars;
use servers::postgres::find_binaries;

use crate::stack::{env_file, parse_exports, variable};

/// The console tools by the names of their scripts in Kafka's own distribution.
const TOOLS: [(&str, &str); 5] = [
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

/// The Java class of a console tool.
pub fn kafka_tool_class(name: &str) -> Option<&'static str> {
    TOOLS
        .iter()
        .find(|(tool, _)| *tool == name)
        .map(|(_, class)| *class)
}

/// Becomes a console tool of Kafka's; returns only if that fails.
pub fn become_kafka_tool(class: &str, arguments: &[String]) -> Result<()> {
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
    let error = command.args(arguments).exec();
    Err(error).context("cannot start java")
}

/// Becomes psql; returns only if that fails.
pub fn become_psql(arguments: &[String]) -> Result<()> {
    let program = find_binaries().map_or_else(|_| PathBuf::from("psql"), |bin| bin.join("psql"));
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
    let error = command.args(arguments).exec();
    Err(error).context("cannot start psql")
}

/// A variable of the environment, else of the running demo, else of the running `cargo xtask stack`.
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
        "neither `cargo xtask demo` nor `cargo xtask stack` runs in this clone, and {name} is not set"
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
