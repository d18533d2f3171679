//! `ingestor offsets ...`: what it shows, what it changes under a running daemon, and what it refuses.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Stdio;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;
use shared::testing::wait_until;

use crate::support::{PATIENCE, Scene, command};

/// A scene without a daemon, whose only partition has been read up to `records`.
fn scene_at(records: usize) -> Scene {
    let mut scene = Scene::new(1);
    scene.produce_orders(records);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(i64::try_from(records).unwrap());
    assert!(daemon.stop().success());
    scene
}

fn row(scene: &Scene) -> Vec<String> {
    scene.database.texts(
        "SELECT concat_ws(' ', next_offset, 'until', coalesce(replay_until::text, '-'), 'last',
                          coalesce(last_offset::text, '-'), CASE WHEN owner IS NULL THEN 'free' END) AS value
           FROM consumer_offsets ORDER BY partition",
    )
}

fn epoch(scene: &Scene) -> i64 {
    scene
        .database
        .integer("SELECT epoch AS value FROM consumer_offsets")
}

#[test]
fn show_prints_the_offset_of_each_partition() {
    let mut scene = scene_at(10);
    let without_lag = scene.run_well(&["offsets", "show"]);
    assert!(without_lag.starts_with("PARTITION  NEXT_OFFSET  LOW  HIGH  LAG  LAG_SECONDS"));
    let cells: Vec<&str> = without_lag
        .lines()
        .nth(1)
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(cells[..6], ["0", "10", "0", "10", "0", "0.0"]);

    scene.produce_orders(5);
    scene.database.execute(
        "UPDATE consumer_offsets SET last_timestamp = last_timestamp - 3600000;
         INSERT INTO offset_incidents (group_id, topic, partition, incarnation, kind, next_offset, low_watermark,
                                       high_watermark, detail, resume_offset, resume_incarnation)
         SELECT group_id, topic, partition, 0, 'retention', 10, 12, 15, 'records 10..12 are gone', 12, 0 FROM consumer_offsets",
    );
    let table = scene.run_well(&["offsets", "show"]);
    assert!(
        table.contains("partition 0 has waited since ")
            && table.contains("retention: records 10..12 are gone"),
        "{table}"
    );
    let document: Value =
        serde_json::from_str(&scene.run_well(&["offsets", "show", "--json"])).unwrap();
    let partition = &document["partitions"][0];
    assert_eq!(
        (
            &document["group_id"],
            &document["topic"],
            &document["broker_error"]
        ),
        (
            &scene.group.clone().into(),
            &scene.topic.clone().into(),
            &Value::Null
        )
    );
    for (field, expected) in [
        ("partition", 0),
        ("next_offset", 10),
        ("low_watermark", 0),
        ("high_watermark", 15),
        ("lag_records", 5),
        ("last_offset", 9),
        ("incarnation", 1),
        ("consecutive_bad", 0),
    ] {
        assert_eq!(partition[field], expected, "{field}");
    }
    let lag_seconds = partition["lag_seconds"].as_f64().unwrap();
    assert!((3600.0..4200.0).contains(&lag_seconds), "{lag_seconds}");
    assert_eq!(partition["halted"], false);
    assert_eq!(partition["owner"].as_str().unwrap().len(), 36);
    assert_eq!(partition["incident"]["resume_offset"], 12);
}

#[test]
fn show_works_without_a_broker_and_fails_if_nothing_is_known() {
    let scene = scene_at(3);
    let answer = scene.run_with(&["offsets", "show"], &[("KAFKA_BROKERS", "localhost:1")]);
    assert!(answer.success, "{answer:?}");
    let cells: Vec<&str> = answer
        .stdout
        .lines()
        .nth(1)
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(cells[..6], ["0", "3", "-", "-", "-", "-"]);
    assert!(
        answer
            .stdout
            .contains("the lag is not known: no broker told the partitions")
    );

    let answer = scene.run_with(&["offsets", "show"], &[("KAFKA_GROUP_ID", "nobody")]);
    assert!(!answer.success);
    let expected = format!(
        "has not read topic {} yet (these groups have: {})",
        scene.topic, scene.group
    );
    assert!(answer.stderr.contains(&expected), "{answer:?}");
    let answer = scene.run_with(&["offsets", "show"], &[("DB_PORT", "1")]);
    assert!(
        !answer.success && answer.stderr.contains("database"),
        "{answer:?}"
    );
}

#[test]
fn init_sets_where_a_new_group_starts_and_the_daemon_continues_by_itself() {
    let mut scene = scene_at(10);
    scene.group = format!("other-{}", scene.group);
    let daemon = scene.start_daemon();
    daemon.wait_until_logged("ingestor offsets init");
    let refusal = scene.run_badly(&["offsets", "init", "--from", "11", "--yes"]);
    assert!(
        refusal.contains("partition 0 holds offsets 0..10, and 11"),
        "{refusal}"
    );
    let refusal = scene.run_badly(&[
        "offsets",
        "init",
        "--from",
        "5",
        "--partition",
        "1",
        "--yes",
    ]);
    assert!(refusal.contains("has no partition 1"), "{refusal}");
    scene.database.execute("DELETE FROM orders");

    let printed = scene.run_well(&["offsets", "init", "--from", "7", "--yes"]);
    assert_eq!(
        printed,
        "partition 0 starts at offset 7 (the broker holds 0..10)\n"
    );
    wait_until("the daemon has read from there", PATIENCE, || {
        scene.stored() == 3
    });
    let refusal = scene.run_badly(&["offsets", "init", "--from", "earliest", "--yes"]);
    assert!(
        refusal.contains("partition 0 is already at offset 10")
            && refusal.contains("offsets rewind"),
        "{refusal}"
    );
    assert_eq!(scene.stored(), 3);
}

#[test]
fn init_knows_both_ends() {
    let scene = scene_at(10);
    scene.delete_records_of(0, 4);
    for (from, expected) in [("earliest", 4), ("latest", 10)] {
        let group = format!("{from}-{}", scene.group);
        let answer = scene.run_with(
            &["offsets", "init", "--from", from, "--yes"],
            &[("KAFKA_GROUP_ID", &group)],
        );
        assert!(answer.success, "{answer:?}");
        let start =
            format!("SELECT next_offset AS value FROM consumer_offsets WHERE group_id = '{group}'");
        assert_eq!(scene.database.integer(&start), expected);
    }
}

#[test]
fn a_command_that_would_skip_records_or_is_impossible_is_refused_and_changes_nothing() {
    let scene = scene_at(10);
    scene.delete_records_of(0, 4);
    let before = (row(&scene), epoch(&scene));
    for (arguments, expected) in [
        (
            &["accept-gap", "--partition", "0", "--yes"][..],
            "has no open incident",
        ),
        (
            &["accept-gap", "--partition", "7", "--yes"],
            "has no open incident",
        ),
        (
            &["rewind", "--all", "--to", "11", "--yes"],
            "going to 11 would skip records",
        ),
        (
            &["rewind", "--partition", "0", "--to", "3", "--yes"],
            "below offset 4 no longer exist",
        ),
        (
            &["rewind", "--partition", "1", "--to", "3", "--yes"],
            "partition 1 has not been read yet",
        ),
        (
            &["resume", "--partition", "1", "--yes"],
            "partition 1 has not been read yet",
        ),
        // There is no terminal, and --yes is not given.
        (
            &["rewind", "--all", "--to", "earliest"],
            "repeat the command with --yes",
        ),
    ] {
        let arguments = [&["offsets"], arguments].concat();
        let refusal = scene.run_badly(&arguments);
        assert!(refusal.contains(expected), "{arguments:?}: {refusal}");
    }
    let printed = scene.run_well(&["offsets", "rewind", "--all", "--to", "10"]);
    assert_eq!(printed, "partition 0 is already at offset 10\n");
    let printed = scene.run_well(&["offsets", "resume", "--all"]);
    assert_eq!(printed, "partition 0 is not halted\n");
    assert_eq!((row(&scene), epoch(&scene)), before);
}

#[test]
fn a_rewind_is_refused_while_the_topic_is_not_the_one_that_was_read() {
    let mut scene = scene_at(10);
    scene.recreate_topic(1);
    scene.produce_orders(30);
    let refusal = scene.run_badly(&["offsets", "rewind", "--all", "--to", "earliest", "--yes"]);
    assert!(
        refusal.contains("its log was cut or its topic was made anew"),
        "{refusal}"
    );

    let _daemon = scene.start_daemon();
    scene.wait_for_incidents(1);
    // The open incident alone must be reason enough, even if the topic looks right again.
    scene
        .database
        .execute("UPDATE consumer_offsets SET witnesses = '{}'");
    let refusal = scene.run_badly(&["offsets", "rewind", "--all", "--to", "earliest", "--yes"]);
    assert!(
        refusal.contains("partition 0 has an open incident"),
        "{refusal}"
    );
    assert_eq!(scene.settled(), 10);
}

#[test]
fn the_user_is_asked_at_a_terminal_and_only_yes_is_consent() {
    let scene = scene_at(10);
    for (typed, changed) in [("y\n", false), ("no\n", false), ("yes\n", true)] {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap();
        let mut child = command(
            &["offsets", "rewind", "--all", "--to", "4"],
            &scene.environment(),
        )
        .stdin(Stdio::from(slave))
        .spawn()
        .unwrap();
        File::from(master).write_all(typed.as_bytes()).unwrap();
        let success = child.wait().unwrap().success();
        let mut asked = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut asked)
            .unwrap();
        assert!(
            asked.contains("goes back from offset 10 to 4")
                && asked.contains("an order that is newer than its record is kept")
                && asked.contains("deleted through the api or erased since stays away"),
            "{asked}"
        );
        assert_eq!(
            (success, row(&scene)[0].starts_with("4 ")),
            (changed, changed),
            "{typed:?}"
        );
    }
}

#[test]
fn a_running_daemon_reads_rewound_records_again_and_the_replay_mark_stays() {
    let mut scene = Scene::new(1);
    scene.produce_orders(10);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(10);
    scene.database.execute("DELETE FROM orders");
    let before = epoch(&scene);
    let printed = scene.run_well(&[
        "offsets",
        "rewind",
        "--partition",
        "0",
        "--to",
        "4",
        "--yes",
    ]);
    assert_eq!(printed, "partition 0 goes back from offset 10 to 4\n");
    wait_until("the records are read again", PATIENCE, || {
        scene.stored() == 6
    });
    scene.wait_until_settled(10);
    assert!(
        epoch(&scene) >= before + 2,
        "fenced by the command, then claimed"
    );
    assert!(daemon.stop().success());
    // A second rewind, from an earlier offset, must not lower the mark.
    scene.run_well(&["offsets", "rewind", "--all", "--to", "6", "--yes"]);
    scene.run_well(&["offsets", "rewind", "--all", "--to", "earliest", "--yes"]);
    assert_eq!(row(&scene), ["0 until 10 last - free"]);
}

#[test]
fn a_rewind_keeps_newer_orders_and_stores_again_what_was_deleted_by_hand() {
    let mut scene = Scene::new(1);
    let orders = scene.produce_orders(10);
    let later = scene.later(orders[3].order_uid.as_str());
    scene.produce(std::slice::from_ref(&later));
    let _daemon = scene.start_daemon();
    scene.wait_until_settled(11);
    // This is what PUT does, and somebody who deletes by hand.
    let (put, deleted) = (orders[1].order_uid.as_str(), orders[2].order_uid.as_str());
    scene.database.execute(&format!(
        "UPDATE orders SET customer_id = 'put', source_partition = NULL, source_offset = NULL, source_incarnation = NULL,
                           version = nextval('order_version_seq') WHERE order_uid = '{put}';
         DELETE FROM orders WHERE order_uid = '{deleted}'",
    ));
    scene.audit_writes();

    scene.run_well(&["offsets", "rewind", "--all", "--to", "earliest", "--yes"]);
    // New records after the rewound ones are stored as usual.
    let newest = scene.later(orders[0].order_uid.as_str());
    scene.produce(std::slice::from_ref(&newest));
    scene.wait_until_settled(12);
    let source = format!(
        "SELECT source_offset AS value FROM orders WHERE order_uid = '{}'",
        newest.order_uid.as_str()
    );
    wait_until("the newest is stored", PATIENCE, || {
        scene.database.integer(&source) == 11
    });
    assert_eq!(
        scene
            .database
            .texts("SELECT order_uid AS value FROM orders WHERE customer_id = 'put'"),
        [put],
        "a PUT is newer than the message before it"
    );
    assert_eq!(scene.stored(), 10, "the deleted order is back");
    assert_eq!(
        scene.database.texts(
            "SELECT concat_ws(' ', uid, \"offset\") AS value FROM audit ORDER BY \"offset\""
        ),
        [
            format!("{deleted} 2"),
            format!("{} 11", newest.order_uid.as_str())
        ],
        "no other order may be written again"
    );
}

#[test]
fn resume_lets_a_halted_partition_run_again() {
    let mut scene = Scene::new(1);
    scene.produce_orders(10);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(10);
    scene
        .database
        .execute("UPDATE consumer_offsets SET halted = true, consecutive_bad = 1001");
    daemon.wait_until_logged("ingestor offsets resume --partition 0");
    scene.produce_orders(5);
    let printed = scene.run_well(&["offsets", "resume", "--all", "--yes"]);
    assert_eq!(
        printed,
        "partition 0 continues at offset 10, after 1001 bad messages in a row\n"
    );
    scene.wait_until_settled(15);
    assert_eq!(
        scene
            .database
            .integer("SELECT consecutive_bad AS value FROM consumer_offsets WHERE NOT halted"),
        0
    );
}
