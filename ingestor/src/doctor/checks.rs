//! The checks of topic and group, each on what is known alone.

use chrono::TimeDelta;
use shared::doctor::{Check, Fault};

use super::Progress;
use super::survey::Survey;

/// The largest order, and what encloses it in a batch of records.
const LARGEST_MESSAGE: i64 = 256 * 1024 + 1024;

/// What the checks look at.
pub(super) struct Known {
    pub(super) survey: Survey,
    /// `None` if the database did not tell.
    pub(super) stored: Option<Progress>,
    /// How long the daemon may stand still.
    pub(super) longest_stop: TimeDelta,
}

impl Known {
    fn setting(&self, name: &str) -> Option<&str> {
        let settings = self.survey.settings.as_ref().ok()?;
        settings.get(name).map(String::as_str)
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.setting(name)?.parse().ok()
    }

    fn policy(&self, policy: &str) -> bool {
        let policies = self.setting("cleanup.policy").unwrap_or_default();
        policies.split(',').any(|each| each.trim() == policy)
    }
}

/// All checks.
pub(super) const CHECKS: [Check<Known>; 11] = [
    ("kafka.leaders", leaders),
    ("kafka.settings", settings),
    ("kafka.retention", retention),
    ("kafka.message_size", message_size),
    ("kafka.compaction", compaction),
    ("kafka.timestamps", timestamps),
    ("kafka.members", members),
    ("kafka.start", start),
    ("kafka.committed", committed),
    ("kafka.offsets", offsets),
    ("kafka.dead_letters", dead_letters),
];

fn leaders(known: &Known) -> Option<Fault> {
    let leaderless = &known.survey.leaderless;
    (!leaderless.is_empty()).then(|| {
        let numbers: Vec<String> = leaderless.iter().map(ToString::to_string).collect();
        Fault::error(
            format!(
                "these partitions of {} have no leader: {}",
                known.survey.topic,
                numbers.join(", ")
            ),
            "nobody can read or write them",
            "start the brokers that hold them",
        )
    })
}

fn settings(known: &Known) -> Option<Fault> {
    let reason = known.survey.settings.as_ref().err()?;
    Some(Fault::warning(
        format!(
            "the brokers do not tell the settings of {}: {reason}",
            known.survey.topic
        ),
        "retention, message size, compaction and timestamps are not checked",
        "allow DescribeConfigs on the topic to this client, or look at the settings yourself",
    ))
}

fn retention(known: &Known) -> Option<Fault> {
    let retention = TimeDelta::milliseconds(known.number("retention.ms")?);
    let is_bounded = known.policy("delete") && retention >= TimeDelta::zero();
    (is_bounded && retention < known.longest_stop).then(|| {
        Fault::warning(
            format!(
                "{} keeps messages for {} hours (retention.ms), and the ingestor may stand still for {} hours",
                known.survey.topic,
                retention.num_hours(),
                known.longest_stop.num_hours()
            ),
            "after a stop of that length, messages are gone before they were read",
            "raise retention.ms, or say by --longest-stop for how many days the ingestor may stand still",
        )
    })
}

fn message_size(known: &Known) -> Option<Fault> {
    let size = known.number("max.message.bytes")?;
    (size < LARGEST_MESSAGE).then(|| {
        Fault::warning(
            format!(
                "{} takes messages of at most {size} bytes (max.message.bytes)",
                known.survey.topic
            ),
            "an order may have 256 KiB, and the producer of a larger one gets an error",
            format!("set max.message.bytes to {LARGEST_MESSAGE} or more"),
        )
    })
}

fn compaction(known: &Known) -> Option<Fault> {
    known.policy("compact").then(|| {
        Fault::warning(
            format!("{} is compacted (cleanup.policy)", known.survey.topic),
            "of several messages with one key only the last is sure to be read, and each tombstone becomes a dead letter",
            "set cleanup.policy=delete, unless this is what you want",
        )
    })
}

fn timestamps(known: &Known) -> Option<Fault> {
    let kind = known.setting("message.timestamp.type")?;
    (kind != "LogAppendTime").then(|| {
        Fault::advice(
            format!(
                "messages of {} have the times of their producers (message.timestamp.type={kind})",
                known.survey.topic
            ),
            "a producer whose clock is ahead can bring back an order that was deleted a moment ago",
            "set message.timestamp.type=LogAppendTime, if producers' clocks may differ",
        )
    })
}

fn members(known: &Known) -> Option<Fault> {
    let survey = &known.survey;
    let is_foreign = |name: &&str| *name != survey.client_id;
    let names = survey
        .members
        .iter()
        .map(|member| member.client_id.as_str());
    let foreign: Vec<&str> = names.filter(is_foreign).collect();
    (!foreign.is_empty()).then(|| {
        Fault::error(
            format!(
                "these members of group {} are no ingestors: {}",
                survey.group_id,
                foreign.join(", ")
            ),
            "partitions that the group assigns to them are not stored",
            "give the other program another group, or set another KAFKA_GROUP_ID",
        )
    })
}

fn start(known: &Known) -> Option<Fault> {
    let Progress { rows, groups } = known.stored.as_ref()?;
    (rows.is_empty() && !groups.is_empty()).then(|| {
        Fault::error(
            format!(
                "group {} has not read {} yet, and these groups have: {}",
                known.survey.group_id,
                known.survey.topic,
                groups.join(", ")
            ),
            "a new group would replay all of the topic over PUTs and DELETEs, so the daemon waits",
            "set KAFKA_GROUP_ID to that group, or set where to start with `ingestor offsets init`",
        )
    })
}

fn committed(known: &Known) -> Option<Fault> {
    let Progress { rows, groups } = known.stored.as_ref()?;
    let has_read = rows.is_empty() && groups.is_empty() && !known.survey.committed.is_empty();
    has_read.then(|| {
        Fault::warning(
            format!(
                "Kafka has committed offsets of group {}, and the database has none of any group",
                known.survey.group_id
            ),
            "the database counts, so the topic would be read from its beginning",
            "name the right database in DB_NAME, or set where to start with `ingestor offsets init`",
        )
    })
}

fn offsets(known: &Known) -> Option<Fault> {
    let Progress { rows, .. } = known.stored.as_ref()?;
    let gaps: Vec<String> = rows
        .iter()
        .filter_map(|row| {
            let held = known.survey.watermarks.get(&row.partition)?;
            let is_held = (held.low..=held.high).contains(&row.next_offset);
            (!is_held).then(|| {
                format!(
                    "partition {} continues at {} and holds {}..{}",
                    row.partition, row.next_offset, held.low, held.high
                )
            })
        })
        .collect();
    (!gaps.is_empty()).then(|| {
        Fault::error(
            gaps.join(", "),
            "messages were lost before they were read, or this is another topic, so these partitions wait for a decision",
            "see `ingestor offsets show`, find out what happened, and decide with `ingestor offsets accept-gap`",
        )
    })
}

fn dead_letters(known: &Known) -> Option<Fault> {
    let (topic, exists) = known.survey.dlq_topic.as_ref()?;
    (!exists).then(|| {
        Fault::error(
            format!("topic {topic} of KAFKA_DLQ_TOPIC does not exist"),
            "dead letters are kept in the database, but are not published",
            "create the topic",
        )
    })
}
