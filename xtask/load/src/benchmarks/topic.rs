//! A topic of the benchmark's own.

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

/// It is deleted at the end.
pub(super) struct Topic {
    pub name: String,
    admin: AdminClient<DefaultClientContext>,
}

impl Topic {
    /// Makes one under a random name, whose broker notes when it appended a message.
    pub(super) fn create(brokers: &str, partitions: i32) -> anyhow::Result<Self> {
        let name = format!("bench-{:016x}", fastrand::u64(..));
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .create()?;
        let topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
        let topics = [topic.set("message.timestamp.type", "LogAppendTime")];
        let made = wait(admin.create_topics(&topics, &AdminOptions::new()))?;
        for outcome in made? {
            outcome.map_err(|(name, code)| anyhow::anyhow!("cannot make topic {name}: {code}"))?;
        }
        Ok(Self { name, admin })
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        // A broker of the user's stays as it was; a topic that cannot be deleted is no reason to fail.
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
