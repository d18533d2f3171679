//! What can happen to a topic. Each case is an incident with its exact range. Nothing is read or skipped silently, and
//! after the incident was accepted, reading continues exactly there.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ingestor::board::Board;
use ingestor::config::KafkaSettings;
use ingestor::guard::Guard;
use ingestor::kafka::Probe;
use ingestor::metrics::Metrics;
use ingestor::offsets::Claim;
use ingestor::record::{Epoch, Incarnation, Offset, Partition};
use ingestor::watch::topic::TopicWatch;
use ingestor::witnesses::Witnesses;
use shared::testing::wait_until;

use crate::support::{PATIENCE, Scene};

const ACCEPT: [&str; 5] = ["offsets", "accept-gap", "--partition", "0", "--yes"];

/// Reads ten orders, recreates the topic while nobody reads it, and accepts the incident.
fn recreate_while_stopped(new_records: usize) {
    let mut scene = Scene::new(1);
    scene.produce_orders(10);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(10);
    assert!(daemon.stop().success());
    scene.recreate_topic(1);
    let orders = scene.produce_orders(new_records);

    let daemon = scene.start_daemon();
    scene.wait_for_incidents(1);
    let open = format!("recreated p0 10 0..{new_records} -> inc open");
    assert_eq!(scene.incidents(), [open]);
    daemon.wait_until_logged("accept-gap --partition 0");
    assert_eq!(
        (scene.settled(), scene.stored_of(&orders)),
        (10, 0),
        "nothing may be read silently"
    );
    // Only the operator knows whether the records were read before.
    let refusal = scene.run_badly(&ACCEPT);
    assert!(
        refusal.contains("--new-topic") && refusal.contains("--resume-at OFFSET"),
        "{refusal}"
    );
    let printed = scene.accept_gap(&["--new-topic"]);
    assert!(
        printed.contains("continues at 0 as incarnation 2"),
        "{printed}"
    );
    // The daemon continues by itself.
    scene.wait_until_at(i64::try_from(new_records).unwrap(), 2);
    assert_eq!(scene.stored_of(&orders), new_records);
    let accepted = format!("recreated p0 10 0..{new_records} -> 0 inc 2 accepted");
    assert_eq!(scene.incidents(), [accepted]);
    wait_until("all is well", PATIENCE, || {
        daemon
            .get("/health")
            .is_some_and(|(_, body)| body.contains("\"status\":\"ok\""))
    });
}

#[test]
fn a_recreated_and_shorter_topic_is_read_from_its_start_once_accepted() {
    recreate_while_stopped(4);
}

#[test]
fn a_recreated_and_longer_topic_is_read_from_its_start_once_accepted() {
    recreate_while_stopped(30);
}

#[test]
fn a_recreated_and_empty_topic_is_an_incident_too() {
    let mut scene = Scene::new(1);
    scene.produce_orders(10);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(10);
    assert!(daemon.stop().success());
    scene.recreate_topic(1);
    let _daemon = scene.start_daemon();
    scene.wait_for_incidents(1);
    assert_eq!(scene.incidents(), ["recreated p0 10 0..0 -> inc open"]);
}

fn probe(scene: &Scene) -> Probe {
    let settings = KafkaSettings {
        brokers: scene.brokers().to_owned(),
        topic: scene.topic.clone(),
        group_id: scene.group.clone(),
        dlq_topic: None,
        overrides: Vec::new(),
    };
    Probe::new(&settings).unwrap()
}

#[test]
fn the_watch_suspects_a_recreated_topic_and_no_other() {
    let mut scene = Scene::new(1);
    scene.produce_orders(10);
    let probe = Arc::new(probe(&scene));
    let board = Arc::new(Board::default());
    let (suspicions_tx, suspicions_rx) = mpsc::channel();
    let watch = TopicWatch {
        board: Arc::clone(&board),
        probe: Arc::clone(&probe),
        metrics: Arc::new(Metrics::new()),
        topic: scene.topic.clone(),
        suspicions_tx,
    };
    const P0: Partition = Partition(0);
    const INCARNATION: Incarnation = Incarnation(1);
    let record_at = |offset| probe.record_at(P0, Offset(offset)).unwrap();
    let claim = |epoch, next_offset, witness| Claim {
        epoch: Epoch(epoch),
        next_offset: Offset(next_offset),
        guard: Guard {
            partition: P0,
            incarnation: INCARNATION,
            log_since: INCARNATION,
            replay_until: None,
            doubt: None,
        },
        consecutive_bad: 0,
        witnesses: Witnesses::default().with(witness),
        end_offset: Offset(next_offset),
    };
    let reading = board.begin_claim(P0);
    board.claimed(reading, &claim(1, 5, record_at(4)));
    board.start(reading);
    let stored = |next_offset, witness| board.stored(reading, Offset(next_offset), witness, 0);
    let witness = || board.held_witness(P0, INCARNATION).unwrap().offset().0;
    stored(10, record_at(9));
    assert_eq!(witness(), 4);
    watch.look_at_records(0);
    assert!(suspicions_rx.try_recv().is_err());
    assert_eq!(witness(), 9, "the look moves on to later records");

    // The new topic is long enough, so reading has continued in it, up to a record that exists.
    board.claimed(reading, &claim(2, 10, record_at(9)));
    scene.recreate_topic(1);
    scene.produce_orders(30);
    wait_until("the new topic answers", PATIENCE, || {
        probe
            .first_record_from(P0, Offset(29))
            .is_ok_and(|found| found.is_some())
    });
    stored(30, record_at(29));
    watch.look_at_records(1);
    assert_eq!(suspicions_rx.try_recv(), Ok(reading));
    assert_eq!(witness(), 9, "the new record proves nothing");
}

#[test]
fn a_partition_whose_offset_is_beyond_the_end_continues_at_the_end_once_accepted() {
    let mut scene = Scene::new(1);
    scene.produce_orders(10);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(10);
    scene
        .database
        .execute("UPDATE consumer_offsets SET next_offset = 100, last_offset = 99");
    scene.wait_for_incidents(1);
    assert_eq!(scene.incidents(), ["truncated p0 100 0..10 -> 10 inc open"]);
    let orders = scene.produce_orders(5);
    scene.accept_gap(&[]);
    scene.wait_until_at(15, 2);
    assert_eq!((scene.stored_of(&orders), scene.stored()), (5, 15));
    assert!(daemon.stop().success());
}

#[test]
fn an_accepted_gap_is_the_recorded_one_and_later_losses_are_another() {
    let mut scene = Scene::new(1);
    scene.produce_orders(10);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(10);
    assert!(daemon.stop().success());
    let orders = scene.produce_orders(40);
    scene.delete_records_of(0, 20);

    let daemon = scene.start_daemon();
    scene.wait_for_incidents(1);
    assert_eq!(
        scene.incidents(),
        ["retention p0 10 20..50 -> 20 inc 1 open"]
    );
    scene.delete_records_of(0, 30);
    scene.accept_gap(&[]);
    scene.wait_for_incidents(2);
    assert_eq!(
        scene.incidents(),
        [
            "retention p0 10 20..50 -> 20 inc 1 accepted",
            "retention p0 20 30..50 -> 30 inc 1 open"
        ]
    );
    daemon.wait_until_logged("records 20..30 were deleted before they were read");
    scene.accept_gap(&[]);
    scene.wait_until_at(50, 1);
    assert_eq!(scene.stored_of(&orders[20..]), 20);
    assert_eq!(scene.stored(), 30);
}

#[test]
fn a_topic_that_grows_while_it_is_read_is_read_whole() {
    let mut scene = Scene::new(4);
    let mut orders = scene.produce_orders(40);
    scene.audit_writes();
    let _daemon = scene.start_daemon_with(&[(
        "KAFKA_CONFIG",
        "topic.metadata.refresh.interval.ms=500,session.timeout.ms=6000",
    )]);
    scene.wait_until_settled(40);
    scene.add_partitions(8);
    orders.extend(scene.produce_orders(200));
    scene.wait_until_settled(240);
    scene.assert_each_stored_once(&orders);
    let rows = "SELECT count(*) AS value FROM consumer_offsets WHERE owner IS NOT NULL";
    assert_eq!(scene.database.integer(rows), 8);
    assert_eq!(scene.incidents(), [] as [&str; 0]);
}

#[test]
fn an_added_partition_that_has_already_lost_records_is_an_incident() {
    let mut scene = Scene::new(1);
    scene.produce_orders(10);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(10);
    assert!(daemon.stop().success());
    scene.add_partitions(2);
    scene.produce_orders(100);
    scene.delete_records_of(1, 5);
    let _daemon = scene.start_daemon();
    scene.wait_for_incidents(1);
    let incident = scene.incidents().remove(0);
    assert!(
        incident.starts_with("retention p1 0 5..") && incident.contains(" -> 5 inc "),
        "{incident}"
    );
    scene.run_well(&["offsets", "accept-gap", "--partition", "1", "--yes"]);
    wait_until("all but the lost ones are stored", PATIENCE, || {
        scene.stored() == 105
    });
}

#[test]
fn a_record_is_looked_up_by_its_offset() {
    let mut scene = Scene::new(1);
    scene.produce_orders(10);
    scene.delete_records_of(0, 2);
    let probe = probe(&scene);
    for (asked, expected) in [
        (9, Some(9)),
        (4, Some(4)),
        (2, Some(2)),
        (0, None),
        (10, None),
    ] {
        let found = probe
            .first_record_from(Partition(0), Offset(asked))
            .unwrap();
        assert_eq!(found.map(|record| record.offset().0), expected, "{asked}");
    }
}

#[test]
fn the_records_of_many_partitions_are_looked_up_at_once() {
    let mut scene = Scene::new(8);
    scene.produce_orders(200);
    let probe = probe(&scene);
    let started_at = Instant::now();
    for partition in 0..8 {
        let first = probe.first_record_from(Partition(partition), Offset(0));
        assert!(first.unwrap().is_some());
    }
    // A restart waits for these look-ups. By default the client pauses for a second before the next partition.
    let taken = started_at.elapsed();
    assert!(taken < Duration::from_secs(2), "{taken:?}");
}
