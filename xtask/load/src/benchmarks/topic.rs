//! A topic for one benchmark.

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

/// A topic that is deleted when it is dropped.
pub(super) struct Topic {
    pub name: String,
    admin: AdminClient<DefaultClientContext>,
}

impl Topic {
    /// Creates a topic with a random name. Its broker notes when it has appended a message.
    pub(super) fn create(brokers: &str, partitions: i32) -> anyhow::Result<Self> {
        let name = format!("bench-{:016x}", fastrand::u64(..));
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .create()?;
        let topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
        let topics = [topic.set("message.timestamp.type", "LogAppendTime")];
        let created = wait(admin.create_topics(&topics, &AdminOptions::new()))?;
        for outcome in created? {
            outcome
                .map_err(|(name, code)| anyhow::anyhow!("cannot create topic {name}: {code}"))?;
        }
        Ok(Self { name, admin })
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        // The user's own broker must stay as it was. If the topic cannot be deleted, the benchmark does not fail.
        wait(
            self.admin
                .delete_topics(&[&self.name], &AdminOptions::new()),
        )
        .ok();
    }
}

fn wait<F: Future>(future: F) -> std::io::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(future))
}
