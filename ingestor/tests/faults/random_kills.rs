//! `kill -9` at random times for a minute, of two members that share the topic.

use std::time::{Duration, Instant};

use crate::support::{Daemon, Load, Scene};

const LENGTH: Duration = Duration::from_secs(60);
/// Longer than a session, so that the other member takes over the dead one's partitions.
const LONG_ABSENCE: Duration = Duration::from_secs(8);

/// A member of the group with a name of its own, so that it takes its place again as soon as it is back.
struct Member {
    kafka_config: String,
    daemon: Option<Daemon>,
    back_at: Instant,
}

impl Member {
    fn new(name: &str) -> Self {
        Self {
            kafka_config: format!(
                "session.timeout.ms=6000,heartbeat.interval.ms=1000,group.instance.id={name}"
            ),
            daemon: None,
            back_at: Instant::now(),
        }
    }

    fn come_back_if_due(&mut self, scene: &Scene) {
        if self.daemon.is_none() && self.back_at <= Instant::now() {
            let variables = [
                ("BATCH_MAX_RECORDS", "20"),
                ("KAFKA_CONFIG", self.kafka_config.as_str()),
            ];
            self.daemon = Some(scene.start_daemon_with(&variables));
        }
    }

    /// Returns whether there was a process to kill.
    fn kill(&mut self, absence: Duration) -> bool {
        self.back_at = Instant::now() + absence;
        self.daemon.take().map(Daemon::kill_nine).is_some()
    }
}

#[test]
fn kills_at_random_lose_and_repeat_nothing() {
    let scene = Scene::new(4);
    let mut load = Load::new(&scene);
    let mut members = [Member::new("one"), Member::new("two")];
    let (mut kills, mut fruitful_rounds) = (0, 0);
    let start = Instant::now();
    while start.elapsed() < LENGTH {
        let settled = scene.settled();
        let round_end = Instant::now() + Duration::from_millis(fastrand::u64(300..2_500));
        while Instant::now() < round_end {
            for member in &mut members {
                member.come_back_if_due(&scene);
            }
            load.produce(100);
        }
        fruitful_rounds += u32::from(scene.settled() > settled);
        let absence = if fastrand::u8(0..10) == 0 {
            LONG_ABSENCE
        } else {
            Duration::ZERO
        };
        kills += u32::from(fastrand::choice(&mut members).unwrap().kill(absence));
    }
    assert!(
        kills >= 10 && fruitful_rounds >= 10,
        "{kills} kills, progress in {fruitful_rounds} rounds: too few to prove anything"
    );
    for member in &mut members {
        member.back_at = Instant::now();
        member.come_back_if_due(&scene);
    }
    load.assert_exactly_once(&scene);
    println!(
        "{} messages, {kills} kills, progress in {fruitful_rounds} rounds",
        load.acknowledged()
    );
    for daemon in members.into_iter().filter_map(|member| member.daemon) {
        assert!(daemon.stop().success());
    }
}
