//! The floor: how fast the machine is without ingestor and api. Messages of the same rate go to a consumer that does nothing
//! with them, and transactions change one row and notify.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use shared::testing::TestDatabase;

use super::commits::{self, Change};
use super::rival::{self, Calls, Heard};
use super::{Options, log};
use crate::benchmarks::clock::Clock;
use crate::benchmarks::joined;
use crate::benchmarks::times::Times;
use crate::benchmarks::topic::Topic;
use crate::orders::{Messages, Mix};
use crate::producer::{Pace, Producer, Target};

/// How long the floor is measured.
const DURATION: Duration = Duration::from_secs(8);
/// How long nothing counts at the beginning: connections are opened, and Java has not compiled its code yet.
const SETTLING: Duration = Duration::from_secs(3);

/// The times of the stages that have a floor: to Kafka's log, to the consumer, to the end of a transaction's last statement
/// before COMMIT, and to the notification.
pub(super) type Floor = [Times; 4];

/// Measures the floor.
pub(super) fn measure(
    options: &Options,
    database: &TestDatabase,
    own_uids: &[String],
    clock: Clock,
) -> anyhow::Result<Floor> {
    let topic = Topic::create(&options.servers.brokers, options.partitions)?;
    let target = options.target(&topic);
    let count = f64::from(options.rate) * (SETTLING + DURATION).as_secs_f64();
    let count = count as usize;
    let (sent, received, changes, heard) = thread::scope(|scope| {
        let receiving = scope.spawn(|| log::read(&target, options.partitions, count));
        let committing = scope.spawn(|| commit(options, database, own_uids));
        let sent = send(&target, options.rate, count)?;
        let (changes, heard) = joined(committing.join())?;
        anyhow::Ok((sent, joined(receiving.join())?, changes, heard))
    })?;
    let (mut appended, mut fetched) = (Vec::new(), Vec::new());
    let counts_from = clock.ms(received.first().context("no message arrived")?.received_at)
        + SETTLING.as_secs_f64() * 1e3;
    for message in &received {
        let sent_at = sent
            .get(&message.key)
            .context("an unknown message arrived")?;
        let (sent_ms, received_ms) = (clock.ms(*sent_at), clock.ms(message.received_at));
        if sent_ms >= counts_from {
            appended.push(message.appended_at_ms as f64 - sent_ms);
            fetched.push(received_ms - message.appended_at_ms as f64);
        }
    }
    let notified: Option<Vec<Duration>> = (changes.iter())
        .map(|(uid, change)| {
            let at = heard.first(uid, change.begun_at)?;
            Some(at.saturating_duration_since(change.written_at))
        })
        .collect();
    let written = changes
        .iter()
        .map(|(_, change)| change.written_at - change.begun_at);
    Ok([
        Times::of_ms(appended),
        Times::of_ms(fetched),
        Times::new(written),
        Times::new(notified.context("a change was not notified")?.into_iter()),
    ])
}

fn send(target: &Target, rate: u32, count: usize) -> anyhow::Result<HashMap<String, Instant>> {
    let producer = Producer::connect(target)?;
    let mut messages = Messages::new(Mix::only_new());
    let mut sent = HashMap::with_capacity(count);
    let pace = Pace::start(rate);
    for number in 0..count {
        let message = messages.next_message()?;
        pace.wait_for(number);
        let at = Instant::now();
        producer.send(&message)?;
        sent.insert(message.key, at);
    }
    producer.finish()?;
    Ok(sent)
}

type Changes<'a> = Vec<(&'a str, Change)>;

fn commit<'a>(
    options: &Options,
    database: &TestDatabase,
    uids: &'a [String],
) -> anyhow::Result<(Changes<'a>, Heard)> {
    rival::listen_during(&database.settings(), &Calls::default(), || {
        let mut changes = Vec::new();
        let mut connection = database.connect();
        let interval = Duration::from_secs_f64(1.0 / f64::from(options.samples));
        thread::sleep(SETTLING);
        let started_at = Instant::now();
        for uid in uids.iter().cycle() {
            if started_at.elapsed() >= DURATION {
                break;
            }
            changes.push((uid.as_str(), commits::change(&mut connection, uid)?));
            thread::sleep(interval);
        }
        Ok(changes)
    })
}
