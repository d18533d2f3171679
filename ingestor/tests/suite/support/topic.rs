//! What can happen to a topic, and the commands by which operators respond.

use std::path::PathBuf;
use std::process::Output;

use rdkafka::admin::AdminOptions;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use servers::kafka::PrivateKafka;
use shared::db::rights::Role;
use shared::order::Order;
use shared::testing::wait_until;

use super::{PATIENCE, Scene, admin, command, create_topic};

/// The file that holds the first records of partition 0.
pub fn segment_of(kafka: &PrivateKafka, topic: &str) -> PathBuf {
    let folder = kafka.log().parent().unwrap().join("data");
    folder
        .join(format!("{topic}-0"))
        .join("00000000000000000000.log")
}

/// What a command printed, and whether it succeeded.
#[derive(Debug)]
pub struct Answer {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            success: output.status.success(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Scene {
    /// Deletes the topic and creates it again under its name.
    pub fn recreate_topic(&mut self, partitions: i32) {
        self.delete_topic();
        self.create_topic_again(partitions);
    }

    /// Deletes the topic, and waits until its name is free.
    pub fn delete_topic(&self) {
        let (admin, runtime) = admin(&self.brokers);
        let deleted = runtime
            .block_on(admin.delete_topics(&[&self.topic], &AdminOptions::new()))
            .unwrap();
        deleted
            .into_iter()
            .for_each(|outcome| drop(outcome.unwrap()));
        wait_until("the topic is deleted", PATIENCE, || {
            let metadata = admin.inner().fetch_metadata(None, PATIENCE).unwrap();
            !metadata
                .topics()
                .iter()
                .any(|topic| topic.name() == self.topic)
        });
    }

    /// Creates a topic of this name, and a producer that does not know the previous one.
    pub fn create_topic_again(&mut self, partitions: i32) {
        create_topic(&self.brokers, &self.topic, partitions, &[]);
        self.reconnect_producer();
    }

    /// Makes a producer that knows nothing of what was there before.
    pub fn reconnect_producer(&mut self) {
        self.producer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .create()
            .unwrap();
    }

    /// Makes the broker delete the older records of a partition, as retention does.
    pub fn delete_records_of(&self, partition: i32, below: i64) {
        let (admin, runtime) = admin(&self.brokers);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, partition, Offset::Offset(below))
            .unwrap();
        let deleted = runtime
            .block_on(admin.delete_records(&list, &AdminOptions::new()))
            .unwrap();
        assert!(
            deleted
                .elements()
                .iter()
                .all(|element| element.error().is_ok())
        );
    }

    /// Runs a command of the program to its end, without a terminal, as the role that has the rights for it.
    pub fn run(&self, arguments: &[&str]) -> Answer {
        self.run_with(arguments, &[])
    }

    pub fn run_with(&self, arguments: &[&str], more: &[(&str, &str)]) -> Answer {
        let role = match arguments.first() {
            Some(&("erase" | "migrate" | "purge")) => Role::Migrator,
            _ => Role::Ingestor,
        };
        let mut environment = self.environment_as(role);
        environment.extend(
            more.iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        command(arguments, &environment).output().unwrap().into()
    }

    /// Runs a command that must succeed, and returns what it printed.
    pub fn run_well(&self, arguments: &[&str]) -> String {
        let answer = self.run(arguments);
        assert!(answer.success, "{arguments:?}: {answer:?}");
        answer.stdout
    }

    /// Runs a command that must fail, and returns its last line.
    pub fn run_badly(&self, arguments: &[&str]) -> String {
        let answer = self.run(arguments);
        assert!(!answer.success, "{arguments:?}: {answer:?}");
        answer.stderr.trim_end().lines().last().unwrap().to_owned()
    }

    /// Accepts the incident of partition 0, and returns what the command printed.
    pub fn accept_gap(&self, how: &[&str]) -> String {
        let command = ["offsets", "accept-gap", "--partition", "0", "--yes"];
        self.run_well(&[&command[..], how].concat())
    }

    /// Returns how many of these orders are stored.
    pub fn stored_of(&self, orders: &[Order]) -> usize {
        let uids = self.database.texts("SELECT order_uid AS value FROM orders");
        orders
            .iter()
            .filter(|order| uids.iter().any(|uid| uid == order.order_uid.as_str()))
            .count()
    }

    /// Every incident, oldest first: its kind, our offset, what the broker held, where reading continues, whether it is open.
    pub fn incidents(&self) -> Vec<String> {
        self.database.texts(
            "SELECT concat_ws(' ', kind, 'p' || partition, next_offset, low_watermark || '..' || high_watermark, '->',
                              resume_offset, 'inc', resume_incarnation,
                              CASE WHEN resolved_at IS NULL THEN 'open' ELSE 'accepted' END) AS value
               FROM offset_incidents ORDER BY id",
        )
    }

    pub fn wait_for_incidents(&self, count: usize) {
        wait_until("the incident is recorded", PATIENCE, || {
            self.incidents().len() == count
        });
    }

    /// Waits until partition 0 is at this offset under this incarnation.
    pub fn wait_until_at(&self, next_offset: i64, incarnation: i32) {
        let expected = format!("{next_offset} {incarnation}");
        wait_until(&format!("partition 0 is at {expected}"), PATIENCE, || {
            self.database.texts(
                "SELECT concat_ws(' ', next_offset, incarnation) AS value FROM consumer_offsets WHERE partition = 0",
            ) == [expected.clone()]
        });
    }
}
