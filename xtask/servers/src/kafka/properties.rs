//! The broker's `server.properties`.

use std::path::Path;

/// The ports of the broker's listeners.
pub(super) struct Ports {
    pub(super) plaintext: u16,
    pub(super) controller: u16,
    /// A listener whose clients authenticate by SASL.
    pub(super) sasl: Option<u16>,
}

/// Renders the properties of a cluster with one node, which starts in seconds. `settings` override ours.
pub(super) fn render(ports: &Ports, data: &Path, settings: &[(&str, &str)]) -> String {
    let mut advertised = format!("PLAINTEXT://127.0.0.1:{}", ports.plaintext);
    if let Some(port) = ports.sasl {
        advertised.push_str(&format!(",SASL_PLAINTEXT://127.0.0.1:{port}"));
    }
    let listeners = format!("{advertised},CONTROLLER://127.0.0.1:{}", ports.controller);
    let voters = format!("1@127.0.0.1:{}", ports.controller);
    let data = data.display().to_string();
    let ours = [
        ("process.roles", "broker,controller"),
        ("node.id", "1"),
        ("controller.quorum.voters", &voters),
        ("controller.listener.names", "CONTROLLER"),
        ("listeners", &listeners),
        ("advertised.listeners", &advertised),
        (
            "listener.security.protocol.map",
            "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT",
        ),
        ("inter.broker.listener.name", "PLAINTEXT"),
        ("log.dirs", &data),
        // One node can hold only one replica.
        ("offsets.topic.replication.factor", "1"),
        ("transaction.state.log.replication.factor", "1"),
        ("transaction.state.log.min.isr", "1"),
        ("share.coordinator.state.topic.replication.factor", "1"),
        ("share.coordinator.state.topic.min.isr", "1"),
        // To create internal topics of 50 partitions takes longer than the start of the broker.
        ("offsets.topic.num.partitions", "4"),
        ("transaction.state.log.num.partitions", "2"),
        ("share.coordinator.state.topic.num.partitions", "1"),
        // Tests wait for the first assignment, and until the group notices a dead member.
        ("group.initial.rebalance.delay.ms", "0"),
        ("group.min.session.timeout.ms", "1000"),
        // A killed broker can come back only when its old session has ended. By default that takes 9 s.
        ("broker.session.timeout.ms", "3000"),
        ("broker.heartbeat.interval.ms", "500"),
        // A misspelt name must not create a topic.
        ("auto.create.topics.enable", "false"),
    ];
    ours.iter()
        .chain(settings)
        .map(|(name, value)| format!("{name}={}\n", escape(value)))
        .collect()
}

/// Escapes a value: in a properties file a backslash starts an escape sequence.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_name_the_listeners_and_given_ones_come_last() {
        let mut ports = Ports {
            plaintext: 1111,
            controller: 2222,
            sasl: None,
        };
        let data = Path::new("/some folder/data");
        let text = render(&ports, data, &[("message.max.bytes", "5")]);
        assert!(
            text.contains("\nlisteners=PLAINTEXT://127.0.0.1:1111,CONTROLLER://127.0.0.1:2222\n"),
            "{text}"
        );
        assert!(text.contains("\ncontroller.quorum.voters=1@127.0.0.1:2222\n"));
        assert!(text.contains("\nlog.dirs=/some folder/data\n"));
        assert!(text.ends_with("\nmessage.max.bytes=5\n"));

        ports.sasl = Some(3333);
        let text = render(&ports, data, &[]);
        let clients = "PLAINTEXT://127.0.0.1:1111,SASL_PLAINTEXT://127.0.0.1:3333";
        assert!(
            text.contains(&format!("\nadvertised.listeners={clients}\n")),
            "{text}"
        );
        assert!(
            text.contains(&format!("\nlisteners={clients},CONTROLLER:")),
            "{text}"
        );
    }
}
