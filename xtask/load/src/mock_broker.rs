//! librdkafka's in-process broker as a program. It is the substitute for Apache Kafka.

use std::io::Write as _;

use anyhow::Context as _;
use rdkafka::mocking::MockCluster;

/// Runs it until the process ends.
pub(crate) fn run(topic: &str, partitions: i32) -> anyhow::Result<()> {
    let cluster = MockCluster::new(1).context("cannot start the in-process broker")?;
    cluster
        .create_topic(topic, partitions, 1)
        .with_context(|| format!("cannot create topic {topic}"))?;
    let mut output = std::io::stdout().lock();
    // xtask reads this line.
    writeln!(output, "KAFKA_BROKERS={}", cluster.bootstrap_servers())?;
    output.flush()?;
    drop(output);
    loop {
        std::thread::park();
    }
}
