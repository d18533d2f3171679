//! What the demo prints when everything runs: addresses, and commands to try.

use servers::process::find_program;
use servers::progress::say;

use super::{Options, SAMPLE_UID};
use crate::stack::{Broker, Stack, topic, variable};

/// Prints addresses and commands.
pub(super) fn print(options: Options, servers: &Stack) {
    let environment = servers.env();
    let private = |name: &str| {
        let found = environment.iter().find(|(variable, _)| variable == name);
        found.map(|(_, value)| value.clone())
    };
    let value = |name: &str, default: &str| {
        let value = private(name).or_else(|| variable(name));
        value.unwrap_or_else(|| default.to_owned())
    };
    let brokers = value("KAFKA_BROKERS", "localhost:9092");
    let kafka = match servers.broker() {
        Broker::Private(_) => "Apache Kafka",
        Broker::Mock(_) => "librdkafka's in-process broker, NOT Apache Kafka",
        Broker::Given => "the one that KAFKA_BROKERS names",
    };
    let connection = format!(
        "postgresql://{}:{}@{}:{}/{}",
        value("DB_USER", "myapp_user"),
        // The user's own password is not printed.
        private("DB_PASSWORD").as_deref().unwrap_or("..."),
        value("DB_HOST", "localhost"),
        value("DB_PORT", "5432"),
        value("DB_NAME", "myapp_db"),
    );
    let api = format!("http://localhost:{}", options.api_port);
    say(&format!(
        "\nEverything runs.\n\n\
         the page      {api}/\n\
         the API       {api}/order/{SAMPLE_UID}\n\
         the ingestor  http://localhost:{}/health  /metrics\n\
         the api       http://localhost:{}/health  /metrics\n\
         Kafka         {brokers}  ({kafka})\n\
         PostgreSQL    {connection}\n\
         logs          .stack/logs/ingestor.log  api.log  load.log\n\n\
         Try these commands in another terminal:\n",
        options.ingestor_port, options.ops_port
    ));
    let has_kafka_tools = matches!(servers.broker(), Broker::Private(_));
    for (purpose, command) in commands(&api, &brokers, &connection, has_kafka_tools) {
        say(&format!("  # {purpose}\n  {command}\n"));
    }
    if options.rate > 0 {
        say(&format!(
            "{} orders arrive per second. 2 % of them are invalid on purpose and become dead letters.",
            options.rate
        ));
    }
    say("Ctrl-C stops everything. Nothing is kept: the next demo starts with empty servers.\n");
}

fn commands(
    api: &str,
    brokers: &str,
    connection: &str,
    has_kafka_tools: bool,
) -> Vec<(&'static str, String)> {
    let topic = topic();
    let mut commands = vec![
        (
            "the sample order, which came through Kafka, the ingestor, PostgreSQL and the api",
            format!("curl {api}/order/{SAMPLE_UID}"),
        ),
        (
            "the newest orders",
            format!("curl '{api}/api/v1/orders?limit=3'"),
        ),
        (
            "the cache: statistics, warm-up",
            format!(
                "curl {api}/api/v1/cache/stats; curl -X POST '{api}/api/v1/cache/warmup?limit=1000'"
            ),
        ),
    ];
    // A message is one line, so the line breaks of the file are removed.
    let one_line = "tr -d '\\n' < shared/data/model.json | sed 's/b563feb7b2b84b6test/my-order-1/'";
    if find_program("kcat").is_some() {
        commands.push((
            "send your own order with kcat",
            format!("{one_line} | kcat -P -b {brokers} -t {topic} -k my-order-1"),
        ));
    }
    if has_kafka_tools {
        commands.extend([
            (
                "send your own order with Kafka's console producer",
                format!(
                    "{{ {one_line}; echo; }} | cargo xtask kafka-console-producer --topic {topic}"
                ),
            ),
            ("read it", format!("curl {api}/order/my-order-1")),
            (
                "Kafka: the topic, the consumer group",
                format!(
                    "cargo xtask kafka-topics --describe --topic {topic}; cargo xtask kafka-consumer-groups --describe --all-groups"
                ),
            ),
        ]);
    }
    commands.extend([
        (
            "what the ingestor has read, and which messages became dead letters",
            "source .stack/demo.env; cargo run -qp ingestor -- offsets show; cargo run -qp ingestor -- dead-letters list"
                .to_owned(),
        ),
        (
            "the tables, and the newest dead letters",
            format!(
                "psql '{connection}' -c '\\dt' -c 'SELECT reason, left(detail, 60) AS detail, created_at FROM dead_letters ORDER BY id DESC LIMIT 5'"
            ),
        ),
    ]);
    commands
}
