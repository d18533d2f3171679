//! What the demo prints when everything runs: addresses, and commands to try.

use servers::process::find_program;
use servers::progress::say;

use super::SAMPLE_UID;
use crate::stack::{Broker, Stack, topic, variable};

/// Prints addresses and commands.
pub(super) fn print(
    api_port: u16,
    ingestor_port: u16,
    environment: &[(String, String)],
    servers: &Stack,
    rate: u32,
) {
    let value = |name: &str, default: &str| {
        environment
            .iter()
            .find(|(variable, _)| variable == name)
            .map(|(_, value)| value.clone())
            .or_else(|| variable(name))
            .unwrap_or_else(|| default.to_owned())
    };
    let brokers = value("KAFKA_BROKERS", "localhost:9092");
    let kafka = match servers.broker() {
        Broker::Private(_) => "Apache Kafka",
        Broker::Mock(_) => "librdkafka's in-process broker, NOT Apache Kafka",
        Broker::Given => "as KAFKA_BROKERS says",
    };
    let connection = format!(
        "postgresql://{}:{}@{}:{}/{}",
        value("DB_USER", "myapp_user"),
        // A password of the user's own is not printed.
        value_of_private(environment, "DB_PASSWORD").unwrap_or("..."),
        value("DB_HOST", "localhost"),
        value("DB_PORT", "5432"),
        value("DB_NAME", "myapp_db"),
    );
    say(&format!(
        "\nEverything runs.\n\n\
         the page      http://localhost:{api_port}/\n\
         the API       http://localhost:{api_port}/order/{SAMPLE_UID}\n\
         the ingestor  http://localhost:{ingestor_port}/health  /metrics\n\
         Kafka         {brokers}  ({kafka})\n\
         PostgreSQL    {connection}\n\
         logs          .stack/logs/ingestor.log  api.log  load.log\n\n\
         Try, in another terminal:\n"
    ));
    for (purpose, command) in commands(api_port, &brokers, &connection, servers) {
        say(&format!("  # {purpose}\n  {command}\n"));
    }
    if rate > 0 {
        say(&format!(
            "{rate} orders a second are coming in, 2 % of them invalid on purpose (dead letters)."
        ));
    }
    say("Ctrl-C stops everything. Nothing is kept: the next demo starts empty.\n");
}

fn value_of_private<'a>(environment: &'a [(String, String)], name: &str) -> Option<&'a str> {
    environment
        .iter()
        .find(|(variable, _)| variable == name)
        .map(|(_, value)| value.as_str())
}

fn commands(
    api_port: u16,
    brokers: &str,
    connection: &str,
    servers: &Stack,
) -> Vec<(&'static str, String)> {
    let topic = topic();
    let mut commands = vec![
        (
            "the sample order, through Kafka, the ingestor, PostgreSQL and the api",
            format!("curl http://localhost:{api_port}/order/{SAMPLE_UID}"),
        ),
        (
            "the newest orders",
            format!("curl 'http://localhost:{api_port}/api/v1/orders?limit=3'"),
        ),
        (
            "the cache: statistics, warm-up",
            format!(
                "curl http://localhost:{api_port}/api/v1/cache/stats; curl -X POST 'http://localhost:{api_port}/api/v1/cache/warmup?limit=1000'"
            ),
        ),
    ];
    // The pretty-printed file must become one line, which is one message.
    let one_line = "tr -d '\\n' < shared/data/model.json | sed 's/b563feb7b2b84b6test/my-order-1/'";
    if find_program("kcat").is_some() {
        commands.push((
            "an order of your own, by kcat",
            format!("{one_line} | kcat -P -b {brokers} -t {topic} -k my-order-1"),
        ));
    }
    if matches!(servers.broker(), Broker::Private(_)) {
        commands.push((
            "an order of your own, by Kafka's console producer",
            format!("{{ {one_line}; echo; }} | cargo xtask kafka-console-producer --topic {topic}"),
        ));
        commands.push((
            "and here it is",
            format!("curl http://localhost:{api_port}/order/my-order-1"),
        ));
        commands.push((
            "Kafka: the topic, the consumer group",
            format!(
                "cargo xtask kafka-topics --describe --topic {topic}; cargo xtask kafka-consumer-groups --describe --all-groups"
            ),
        ));
    }
    commands.push((
        "what the ingestor has read and refused, by its own commands",
        "source .stack/demo.env; cargo run -qp ingestor -- offsets show; cargo run -qp ingestor -- dead-letters list"
            .to_owned(),
    ));
    commands.push((
        "the tables, the invalid messages",
        format!(
            "psql '{connection}' -c '\\dt' -c 'SELECT reason, left(detail, 60) AS detail, created_at FROM dead_letters ORDER BY id DESC LIMIT 5'"
        ),
    ));
    commands
}
